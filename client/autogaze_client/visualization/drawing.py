"""Cells drawn in the colours of their scales: a border of one pixel, a dimmer interior (spec §4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autogaze_client.visualization.cells import PixelCells, pixel_cells
from autogaze_client.visualization.mixing import image_pixels
from autogaze_client.visualization.modes import AutoGazeMaskGeometryMode
from autogaze_client.visualize import scale_color

__all__ = ["band_layout", "draw_cells", "draw_scale_rows", "drawing_order"]

Image = NDArray[np.uint8]

_INTERIOR_PERCENT = 42


def drawing_order(cells: PixelCells, geometry: AutoGazeMaskGeometryMode) -> PixelCells:
    """The cells in the order in which they are painted: large ones first, of equals the later on top.

    Effective cells become one a rectangle, in the colour of the finest, by x0, x1, y0, y1.
    """
    if geometry is not AutoGazeMaskGeometryMode.EFFECTIVE:
        return cells.take(np.lexsort((-cells.extents[:, 1], -cells.extents[:, 0])))
    x0, x1, y0, y1 = cells.rects.T
    cells = cells.take(np.lexsort((cells.grids, y1, y0, x1, x0)))
    last = np.r_[(cells.rects[1:] != cells.rects[:-1]).any(axis=1), np.ones(min(len(cells), 1), np.bool_)]
    return cells.take(np.flatnonzero(last))


def draw_cells(canvas: Image, cells: PixelCells) -> None:
    """Paints cells, in their order, on uint8 RGBA ``[H, W, 4]`` (contiguous); pixels are replaced, not mixed."""
    pixels = image_pixels(canvas)
    distinct, scale = np.unique(cells.grids, return_inverse=True)
    colours = [_pixel_colours(int(grid)) for grid in distinct]
    for (x0, x1, y0, y1), index in zip(cells.rects.tolist(), scale.tolist(), strict=True):
        border, interior = colours[index]
        pixels[y0:y1, x0:x1] = border
        if x1 - x0 > 2 and y1 - y0 > 2:
            pixels[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = interior


def band_layout(band: int, bands: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Where a scale's picture stands among ``bands``: x, y, width and height in pixels, aspect kept."""
    top, bottom = band * height // bands, -(-(band + 1) * height // bands)
    tall = bottom - top
    wide = min(max((2 * tall * width + height) // (2 * height), 1), width)
    return (width - wide) // 2, top, wide, tall


def draw_scale_rows(canvas: Image, cells: PixelCells, cell_scale: float) -> None:
    """Paints one band for each scale that has cells, coarsest on top.

    Args:
        canvas: uint8 RGBA ``[H, W, 4]``, contiguous.
        cells: of the frame.
        cell_scale: grows the cells about their centres.
    """
    height, width = canvas.shape[:2]
    scales = np.unique(cells.grids)
    for band, grid in enumerate(scales):
        x, y, wide, tall = band_layout(band, len(scales), width, height)
        chosen = cells.rows[cells.grids == grid]
        small = pixel_cells(chosen, wide, tall, cell_scale, AutoGazeMaskGeometryMode.NATIVE)
        small = drawing_order(small, AutoGazeMaskGeometryMode.NATIVE)
        shifted = small.rects + np.array([x, x, y, y])
        draw_cells(canvas, PixelCells(shifted, small.rows, np.full(len(small), grid)))


def _pixel_colours(grid: int) -> tuple[np.uint32, np.uint32]:
    colour = scale_color(grid)
    interior = [(value * _INTERIOR_PERCENT + 50) // 100 for value in colour]
    packed = np.array([[*colour, 255], [*interior, 255]], np.uint8).view(np.uint32)[:, 0]
    return packed[0], packed[1]
