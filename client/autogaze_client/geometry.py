"""From cells to pixels, exactly.

Column ``c`` of a grid over ``W`` pixels covers ``floor(c·W/grid) … ceil((c+1)·W/grid)`` in integer
arithmetic, so a cell keeps every pixel that it touches and no rounding drifts. Fixations travel as float32
centres and extents; the integers are recovered from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError

__all__ = ["cell_pixel_rects", "fixation_pixel_rects"]

# float32 keeps 24 bits: a centre is off by up to 2^-25, an extent by 2^-25 of itself. Both get a few bits
# of room.
_FLOAT32_ERROR = 2.0**-22


def cell_pixel_rects(
    grid: int | NDArray[np.integer[Any]],
    row: int | NDArray[np.integer[Any]],
    col: int | NDArray[np.integer[Any]],
    *,
    width: int,
    height: int,
    tile_size: tuple[int, int] | None = None,
    tile_origin: tuple[int | NDArray[np.integer[Any]], int | NDArray[np.integer[Any]]] = (0, 0),
) -> NDArray[np.int64]:
    """Pixels that cells cover, by integer arithmetic.

    Args:
        grid: cells per side, an integer or int ``[n]``; ``row`` and ``col`` likewise, broadcast together.
        row: row of the cell, 0 at the top.
        col: column of the cell, 0 at the left.
        width: of the source, in pixels.
        height: of the source, in pixels.
        tile_size: (width, height) in source pixels of the square the grid divides; None = the whole source.
        tile_origin: (x, y) of that square's top left corner in the source.

    Returns:
        int64 ``[n, 4]``: x0, x1, y0, y1, half-open, clipped to the source. A cell that lies wholly beyond the
        source (in a tile's padding) has no pixels: x1 ≤ x0 or y1 ≤ y0.

    Raises:
        InvalidInputError: a size is below 1, or a row or column lies outside its grid.

    Example:
        >>> cell_pixel_rects(14, 0, 1, width=10, height=10).tolist()
        [[0, 2, 0, 1]]
    """
    _check_size(width, height)
    grids, rows, cols = (
        np.asarray(part, np.int64) for part in np.broadcast_arrays(np.atleast_1d(grid), row, col)
    )
    if (grids < 1).any():
        raise InvalidInputError(f"grid is {int(grids.min())}; it must be at least 1 cell per side")
    for name, index in (("row", rows), ("col", cols)):
        outside = (index < 0) | (index >= grids)
        if outside.any():
            first = int(np.argmax(outside))
            raise InvalidInputError(
                f"{name} is {int(index[first])} on a grid of {int(grids[first])}; it must be "
                f"0..{int(grids[first]) - 1}"
            )
    tile_width, tile_height = tile_size or (width, height)
    x0, x1 = _spans(cols, grids, tile_width)
    y0, y1 = _spans(rows, grids, tile_height)
    x, y = (np.asarray(part, np.int64) for part in tile_origin)
    edges = (x + x0, np.minimum(x + x1, width), y + y0, np.minimum(y + y1, height))
    return np.stack(np.broadcast_arrays(*edges), axis=-1)


def fixation_pixel_rects(fixations: NDArray[Any], *, width: int, height: int) -> NDArray[np.int64]:
    """Pixels that fixations cover on a source of ``width`` x ``height``.

    Each axis is handled by itself. Where the extent is 1/G for an integer G and the centre is that of a
    cell of G, both to float32 precision, the cell's integer column and the exact rule of
    ``cell_pixel_rects`` are used. That holds in resize mode, where G is the fixation's grid, and in tiled
    modes whose tiles divide the source, where G counts the cells across all tiles and the fixation's own
    grid is local to its tile. Elsewhere (tiles that overhang the source, cells clipped at its edge) the
    edges are rounded outwards, except that an edge within float32 error of a pixel border is that border.

    Args:
        fixations: ``[n, 7]`` (frame, x, y, width, height, confidence, grid) or ``[n, 6]`` without the frame.
        width: of the source, in pixels.
        height: of the source, in pixels.

    Returns:
        int64 ``[n, 4]``: x0, x1, y0, y1, half-open, inside the source, at least one pixel each.

    Raises:
        InvalidInputError: wrong shape, a size below 1, or a value that is not finite.
    """
    _check_size(width, height)
    rows = np.asarray(fixations, np.float64)
    if rows.ndim != 2 or rows.shape[1] not in (6, 7):
        raise InvalidInputError(
            f"fixations has shape {rows.shape}; it must be [n, 7], or [n, 6] without the frame"
        )
    x, y, extent_x, extent_y = rows[:, -6:-2].T
    if not np.isfinite(rows[:, -6:-2]).all():
        raise InvalidInputError("a fixation's centre or extent is not finite; drop such rows first")
    x0, x1 = _pixel_span(x, extent_x, width)
    y0, y1 = _pixel_span(y, extent_y, height)
    return np.stack([x0, x1, y0, y1], axis=1)


def _pixel_span(
    centre: NDArray[np.float64], extent: NDArray[np.float64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    extent = np.clip(extent, _FLOAT32_ERROR, 1.0)
    cells = np.rint(1.0 / extent).astype(np.int64)
    index = np.clip(np.rint(centre * cells - 0.5), 0, cells - 1).astype(np.int64)
    exact = (np.abs(extent * cells - 1.0) <= _FLOAT32_ERROR) & (
        np.abs(centre - (index + 0.5) / cells) <= _FLOAT32_ERROR
    )
    exact_start, exact_end = _spans(index, cells, size)
    low, high = (centre - extent / 2) * size, (centre + extent / 2) * size
    tolerance = size * _FLOAT32_ERROR
    start = np.clip(np.floor(low + tolerance), 0, size - 1).astype(np.int64)
    end = np.clip(np.ceil(high - tolerance), start + 1, size).astype(np.int64)
    return np.where(exact, exact_start, start), np.where(exact, exact_end, end)


def _spans(
    index: NDArray[np.int64], cells: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return index * size // cells, -(-(index + 1) * size // cells)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InvalidInputError(f"the source is {width}x{height} pixels; both sides must be at least 1")
