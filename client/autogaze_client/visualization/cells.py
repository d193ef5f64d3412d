"""From fixations to the pixels that they stand for, under the three geometries (spec: visualization §1, §3).

Cells of a grid are exact integers, so cells nest: the reference's single precision makes some a pixel wider.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import library_of
from autogaze_client._errors import InvalidInputError
from autogaze_client._points import MIN_EXTENT
from autogaze_client.geometry import FLOAT32_ERROR, cell_spans, fixation_pixel_rects, recover_cells
from autogaze_client.readout._cells import point_rows
from autogaze_client.readout.grids import Points
from autogaze_client.visualization.coverage import Coverage
from autogaze_client.visualization.modes import AutoGazeMaskGeometryMode

__all__ = ["PixelCells", "active_rows", "check_cell_scale", "pixel_cells"]

Ints = NDArray[np.int64]

_NAMED_GRIDS = np.array([2, 4, 7, 14])
_LEAST_EFFECTIVE_CELLS = 14


@dataclass(frozen=True, eq=False)
class PixelCells:
    """Cells of one frame as pixels.

    Attributes:
        rects: int64 ``[n, 4]`` x0, x1, y0, y1, half-open, at least one pixel each.
        rows: float ``[n, 6]``, the same cells as ``active_rows`` gives them.
        grids: int64 ``[n]``, cells per side of each cell's scale; of cells of unknown grid the nearest of
            2, 4, 7 and 14.
    """

    rects: Ints
    rows: NDArray[Any]
    grids: Ints

    def __len__(self) -> int:
        return len(self.rects)

    @property
    def extents(self) -> NDArray[Any]:
        """Float ``[n, 2]``, width and height as fractions of the frame."""
        return self.rows[:, 2:4]

    def take(self, index: NDArray[Any]) -> PixelCells:
        """Some of the cells, in another order."""
        return PixelCells(self.rects[index], self.rows[index], self.grids[index])


def active_rows(points: Points) -> NDArray[Any]:
    """The points of confidence above 0 as float ``[n, 6]``: x, y, width, height, confidence, grid.

    Raises:
        InvalidInputError: an array of another shape, or a centre or extent that is not finite.
    """
    rows = point_rows(points)
    rows = rows[rows[:, 4] > 0]
    if not np.isfinite(rows[:, :4]).all():
        row, column = np.argwhere(~np.isfinite(rows[:, :4]))[0]
        name = ("x", "y", "width", "height")[column]
        raise InvalidInputError(
            f"{name} of active fixation {row} is {rows[row, column]}; it must be finite (drop the fixation)"
        )
    return rows


def check_cell_scale(scale: float) -> float:
    """The factor that cells grow by, raised to at least 1e-6.

    Raises:
        InvalidInputError: it is not finite.
    """
    if not math.isfinite(scale):
        raise InvalidInputError(f"cell_scale is {scale}; it must be finite (1 = the cells as they are)")
    return max(float(scale), MIN_EXTENT)


def pixel_cells(
    rows: NDArray[Any], width: int, height: int, cell_scale: float, geometry: AutoGazeMaskGeometryMode
) -> PixelCells:
    """The cells of ``active_rows`` on a frame.

    Native and effective cells come in input order, repeats kept; deduplicated ones largest first.

    Args:
        rows: of ``active_rows``.
        width: of the frame, in pixels.
        height: of the frame, in pixels.
        cell_scale: grows the cells about their centres.
        geometry: the rule.

    Raises:
        InvalidInputError: the scale is not finite.
    """
    scale = check_cell_scale(cell_scale)
    grids = np.where(rows[:, 5] > 0, rows[:, 5], _nearest_grids(rows)).astype(np.int64)
    if geometry is AutoGazeMaskGeometryMode.EFFECTIVE:
        return PixelCells(_effective_rects(rows, width, height, scale), rows, grids)
    if scale == 1.0:
        rects = fixation_pixel_rects(rows, width=width, height=height)
    else:
        spans = [
            _scaled_span(rows[:, axis], rows[:, axis + 2], size, scale)
            for axis, size in ((0, width), (1, height))
        ]
        rects = np.stack([*spans[0], *spans[1]], axis=1)
    cells = PixelCells(rects, rows, grids)
    if geometry is AutoGazeMaskGeometryMode.DEDUPLICATED:
        return _deduplicated(cells, width, height)
    return cells


def _nearest_grids(rows: NDArray[Any]) -> Ints:
    extents = np.maximum(rows[:, 2:4].max(axis=1, initial=MIN_EXTENT), MIN_EXTENT)
    nearest: Ints = _NAMED_GRIDS[np.abs(_NAMED_GRIDS - 1.0 / extents[:, None]).argmin(axis=1)]
    return nearest


def _outward(low: NDArray[Any], high: NDArray[Any], half: NDArray[Any], size: int) -> tuple[Ints, Ints]:
    """Edges in 0..1 as pixels, rounded outwards, except within float32 error of a pixel's border."""
    slack = np.minimum(size * FLOAT32_ERROR, half * size / 2)
    start = np.clip(np.floor(np.clip(low, 0, 1) * size + slack), 0, size - 1).astype(np.int64)
    end = np.minimum(np.ceil(np.clip(high, 0, 1) * size - slack), size).astype(np.int64)
    return start, np.maximum(end, start + 1)


def _recovered(centre: NDArray[Any], extent: NDArray[Any]) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    index, cells, exact = recover_cells(
        centre.astype(np.float64), extent.astype(np.float64), library=library_of(centre=centre)
    )
    return index, cells, exact


def _scaled_span(centre: NDArray[Any], extent: NDArray[Any], size: int, scale: float) -> tuple[Ints, Ints]:
    index, cells, exact = _recovered(centre, extent)
    middle = np.where(exact, (index + 0.5) / cells, centre)
    half = np.minimum(np.where(exact, 1.0 / cells, extent) * scale / 2, 0.5)
    return _outward(middle - half, middle + half, half, size)


def _effective_rects(rows: NDArray[Any], width: int, height: int, scale: float) -> Ints:
    if not len(rows):
        return np.zeros((0, 4), np.int64)
    spans: list[Ints] = []
    for axis, size in ((0, width), (1, height)):
        centre, extent = rows[:, axis], np.maximum(rows[:, axis + 2], MIN_EXTENT)
        target = max(_LEAST_EFFECTIVE_CELLS, math.floor(float((1.0 / extent.astype(np.float64)).max()) + 0.5))
        index, cells, exact = _recovered(centre, extent)
        # The centre of cell i of n lies in cell (2i+1)·target / 2n of the target, in integers.
        column = np.where(exact, (2 * index + 1) * target // (2 * cells), np.floor(centre * target))
        column = np.clip(column, 0, target - 1).astype(np.int64)
        if scale == 1.0:
            start, end = cell_spans(column, target, size)
        else:
            middle = (column + 0.5) / target
            half = np.full(len(rows), min(scale / target / 2, 0.5))
            start, end = _outward(middle - half, middle + half, half, size)
        spans += [start, end]
    return np.stack(spans, axis=1)


def _deduplicated(cells: PixelCells, width: int, height: int) -> PixelCells:
    """Largest first; a cell stays unless those kept before it cover every pixel of it."""
    cells = cells.take(np.lexsort((cells.grids, -cells.extents[:, 1], -cells.extents[:, 0])))
    if not len(cells):
        return cells
    frame = Coverage.of(cells.rects, width, height)
    boxes = frame.compact(cells.rects)
    covered = np.zeros(frame.cells.shape, np.bool_)
    keep = np.ones(len(cells), np.bool_)
    keys = np.column_stack([cells.extents, cells.grids])
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
    for start, end in zip(starts, np.r_[starts[1:], len(cells)], strict=True):
        _keep_uncovered(boxes[start:end], covered, keep[start:end])
    return cells.take(np.flatnonzero(keep))


def _keep_uncovered(boxes: Ints, covered: NDArray[np.bool_], keep: NDArray[np.bool_]) -> None:
    """Decides about cells of one size at once, where that is safe, and marks what they cover."""
    rows, columns = covered.shape
    counts = Coverage.counts(boxes, columns, rows)
    # A place that this cell alone covers: with one of them the cell stays, whatever its neighbours do.
    own = np.zeros((rows + 1, columns + 1), np.int64)
    own[1:, 1:] = np.cumsum(np.cumsum((counts == 1) & ~covered, axis=0), axis=1)
    fresh = np.zeros((rows + 1, columns + 1), np.int64)
    fresh[1:, 1:] = np.cumsum(np.cumsum(~covered, axis=0), axis=1)
    keep[:] = _box_sums(fresh, boxes) > 0
    if not (keep & (_box_sums(own, boxes) == 0)).any():
        covered |= Coverage.counts(boxes[keep], columns, rows) > 0
        return
    for index in np.flatnonzero(keep):
        x0, x1, y0, y1 = boxes[index]
        keep[index] = not covered[y0:y1, x0:x1].all()
        covered[y0:y1, x0:x1] = True


def _box_sums(sums: Ints, boxes: Ints) -> Ints:
    x0, x1, y0, y1 = boxes.T
    total: Ints = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return total
