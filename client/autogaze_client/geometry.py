"""From cells to pixels, exactly.

Column ``c`` of a grid over ``W`` pixels covers ``floor(c·W/grid) … ceil((c+1)·W/grid)`` in integer
arithmetic, so a cell keeps every pixel that it touches and no rounding drifts. Fixations travel as float32
centres and extents; the integers are recovered from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import Array, NumpyLibrary, library_of
from autogaze_client._errors import InvalidInputError

__all__ = ["cell_pixel_rects", "fixation_pixel_rects"]

# float32 keeps 24 bits: a centre is off by up to 2^-25, an extent by 2^-25 of itself. Both get a few bits
# of room.
FLOAT32_ERROR = 2.0**-22


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
    x0, x1 = cell_spans(cols, grids, tile_width)
    y0, y1 = cell_spans(rows, grids, tile_height)
    x, y = (np.asarray(part, np.int64) for part in tile_origin)
    edges = (x + x0, np.minimum(x + x1, width), y + y0, np.minimum(y + y1, height))
    return np.stack(np.broadcast_arrays(*edges), axis=-1)


def fixation_pixel_rects(fixations: Array, *, width: int, height: int) -> Array:
    """Pixels that fixations cover on a source of ``width`` x ``height``.

    Each axis is handled by itself. Where the extent is 1/G for an integer G and the centre is that of a
    cell of G, both to float32 precision, the cell's integer column and the exact rule of
    ``cell_pixel_rects`` are used. That holds in resize mode, where G is the fixation's grid, and in tiled
    modes whose tiles divide the source, where G counts the cells across all tiles and the fixation's own
    grid is local to its tile. Elsewhere (tiles that overhang the source, cells clipped at its edge) the
    edges are rounded outwards, except that an edge within float32 error of a pixel border is that border.

    Args:
        fixations: ``[n, 7]`` (frame, x, y, width, height, confidence, grid) or ``[n, 6]`` without the frame.
            A torch or CuPy array stays on its device; its values are not checked.
        width: of the source, in pixels.
        height: of the source, in pixels.

    Returns:
        int64 ``[n, 4]``: x0, x1, y0, y1, half-open, inside the source, at least one pixel each.

    Raises:
        InvalidInputError: wrong shape, a size below 1, or a value that is not finite.
    """
    _check_size(width, height)
    library = library_of(fixations=fixations)
    rows = library.float64(library.asarray(fixations))
    if rows.ndim != 2 or rows.shape[1] not in (6, 7):
        raise InvalidInputError(
            f"fixations has shape {tuple(rows.shape)}; it must be [n, 7], or [n, 6] without the frame"
        )
    if library.on_host and not np.isfinite(rows[:, -6:-2]).all():
        raise InvalidInputError("a fixation's centre or extent is not finite; drop such rows first")
    x0, x1 = _pixel_span(library, rows[:, -6], rows[:, -4], width)
    y0, y1 = _pixel_span(library, rows[:, -5], rows[:, -3], height)
    return library.stack([x0, x1, y0, y1], axis=1)


def recover_cells(centre: Array, extent: Array, *, library: NumpyLibrary) -> tuple[Array, Array, Array]:
    """The integer cells behind float32 centres and extents of one axis.

    Returns:
        Cell index and cells along the axis, both int64, and whether they are exact: whether centre and
        extent are those of the cell to float32 precision.
    """
    extent = library.clip(extent, FLOAT32_ERROR, 1.0)
    cells = library.round(1.0 / extent)
    index = library.maximum(library.round(centre * cells - 0.5), 0.0 * cells)
    index = library.minimum(index, cells - 1)
    exact = (abs(extent * cells - 1.0) <= FLOAT32_ERROR) & (
        abs(centre - (index + 0.5) / cells) <= FLOAT32_ERROR
    )
    return library.int64(index), library.int64(cells), exact


def _pixel_span(library: NumpyLibrary, centre: Array, extent: Array, size: int) -> tuple[Array, Array]:
    index, cells, exact = recover_cells(centre, extent, library=library)
    exact_start, exact_end = cell_spans(index, cells, size)
    low, high = (centre - extent / 2) * size, (centre + extent / 2) * size
    tolerance = size * FLOAT32_ERROR
    start = library.int64(library.clip(library.xp.floor(low + tolerance), 0, size - 1))
    end = library.int64(library.clip(library.xp.ceil(high - tolerance), 1, size))
    end = library.maximum(end, start + 1)
    return library.xp.where(exact, exact_start, start), library.xp.where(exact, exact_end, end)


def cell_spans(index: Array, cells: Any, size: int) -> tuple[Array, Array]:
    """The half-open spans that cells of an axis cover on ``size`` pixels or tokens, in integers."""
    return index * size // cells, -(-(index + 1) * size // cells)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InvalidInputError(f"the source is {width}x{height} pixels; both sides must be at least 1")
