"""The arithmetic of every readout, over all frames of a clip at once.

Cells are kept flat and sorted by frame. A token's *key* is ``frame · tokens + token``; sequences of keys are
put in the order in which a loop over frames, cells, rows and columns would first meet them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import library_of, to_numpy
from autogaze_client._errors import InvalidInputError
from autogaze_client._points import MIN_EXTENT
from autogaze_client.fixations import FixationSet
from autogaze_client.geometry import FLOAT32_ERROR, cell_spans, recover_cells
from autogaze_client.readout.grids import Points, SparseReadoutOptions

Ints = NDArray[np.int64]

_NAMES = ("x", "y", "width", "height", "confidence")
_MIN_OVERLAP = 1e-6
_TABLE_SLACK = 8


@dataclass(frozen=True, slots=True)
class FrameRects:
    """Rectangles of a clip, sorted by frame: int64 ``[n]`` and float64 ``[n, 4]`` x0, y0, x1, y1."""

    frame: Ints
    edges: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CellRanges:
    """Half-open ranges of rows and columns on a token grid, int64 ``[n]`` each."""

    row0: Ints
    row1: Ints
    col0: Ints
    col1: Ints


def point_rows(points: Points) -> NDArray[Any]:
    """Fixations as float ``[n, 6]``: x, y, width, height, confidence, grid.

    Raises:
        InvalidInputError: an array of another shape.
    """
    if isinstance(points, FixationSet):
        return points.rows
    if not hasattr(points, "shape"):
        return FixationSet(points).rows
    rows = to_numpy(points)
    if rows.ndim != 2 or rows.shape[1] not in (6, 7):
        raise InvalidInputError(
            f"points have shape {list(rows.shape)}; they must be [n, 7], or [n, 6] without the frame"
        )
    return rows[:, -6:]


def rects_of(frame: Ints, rows: NDArray[Any], options: SparseReadoutOptions) -> FrameRects:
    """The rectangles of the cells that the options keep (readout §3, algorithm A), exact where they can be.

    Args:
        frame: int64 ``[n]``, ascending.
        rows: float ``[n, 6]``: x, y, width, height, confidence, grid.
        options: the threshold, the growth and the cap of cells.

    Raises:
        InvalidInputError: a value is NaN.
    """
    nan = np.isnan(rows[:, :5])
    if nan.any():
        row, column = np.argwhere(nan)[0]
        raise InvalidInputError(
            f"{_NAMES[column]} of fixation {row} (frame {frame[row]}) is NaN; it must be a number"
        )
    keep = rows[:, 4] > min(max(options.confidence_threshold, 0.0), 1.0)
    if not keep.all():
        frame, rows = frame[keep], rows[keep]
    scale = max(options.fixation_scale, MIN_EXTENT)
    x0, x1 = _axis_edges(rows[:, 0], rows[:, 2], scale)
    y0, y1 = _axis_edges(rows[:, 1], rows[:, 3], scale)
    edges = np.stack([x0, y0, x1, y1], axis=1)
    keep = (x1 > x0) & (y1 > y0)
    if options.max_fixations_per_frame is not None:
        keep[keep] = _rank(frame[keep]) < options.max_fixations_per_frame
    return FrameRects(frame, edges) if keep.all() else FrameRects(frame[keep], edges[keep])


def _axis_edges(
    centre: NDArray[Any], extent: NDArray[Any], scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    middle, size = centre.astype(np.float64), np.clip(extent.astype(np.float64), MIN_EXTENT, 1.0)
    index, cells, exact = recover_cells(middle, size, library=library_of(centre=middle))
    if scale == 1.0:
        low = np.where(exact, index / cells, middle - size / 2)
        high = np.where(exact, (index + 1) / cells, middle + size / 2)
    else:
        half = np.minimum(np.where(exact, 1.0 / cells, size) * scale / 2, 0.5)
        middle = np.where(exact, (index + 0.5) / cells, middle)
        low, high = middle - half, middle + half
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def ranges_of_rects(edges: NDArray[np.float64], height: int, width: int, dilation: int) -> CellRanges:
    """The tokens that rectangles overlap, grown by ``dilation`` (readout §3, algorithm B).

    Touching is no overlap: an overlap counts from 1e-6 of a token, or from the precision of float32 edges on
    grids finer than 4 (2^-22 of the image), so that a cell that arrived as float32 never spills over. A
    rectangle without area overlaps nothing.
    """
    area = (edges[:, 0] < edges[:, 2]) & (edges[:, 1] < edges[:, 3])
    row0, row1 = _axis_range(edges[:, 1], edges[:, 3], height, dilation)
    col0, col1 = _axis_range(edges[:, 0], edges[:, 2], width, dilation)
    return CellRanges(row0, np.where(area, row1, row0), col0, col1)


def _axis_range(
    low: NDArray[np.float64], high: NDArray[np.float64], size: int, dilation: int
) -> tuple[Ints, Ints]:
    slack = max(_MIN_OVERLAP, size * FLOAT32_ERROR)
    first = np.floor(low * size + slack).astype(np.int64) - dilation
    end = np.ceil(high * size - slack).astype(np.int64) + dilation
    return np.clip(first, 0, size), np.clip(end, 0, size)


def ranges_of_tokens(
    tokens: Ints, source: tuple[int, int], target: tuple[int, int], dilation: int
) -> CellRanges:
    """The tokens of a ``target`` grid (rows, columns) that tokens of a ``source`` grid overlap; integers."""
    spans = []
    for index, cells, size in zip(np.divmod(tokens, source[1]), source, target, strict=True):
        start, end = cell_spans(index, cells, size)
        spans += [np.maximum(start - dilation, 0), np.minimum(end + dilation, size)]
    return CellRanges(*spans)


def expand(group: Ints, ranges: CellRanges, tokens: int, width: int) -> Ints:
    """The keys of all tokens of the ranges, in order: ranges as they come, rows, then columns."""
    rows = np.maximum(ranges.row1 - ranges.row0, 0)
    cols = np.maximum(ranges.col1 - ranges.col0, 0)
    first = group * tokens + ranges.row0 * width + ranges.col0
    if (rows == 1).all() and (cols == 1).all():
        return first
    starts = np.cumsum(rows) - rows
    row_first = np.repeat(first - width * starts, rows)
    row_first += width * np.arange(len(row_first))
    cols = np.repeat(cols, rows)
    starts = np.cumsum(cols) - cols
    keys: Ints = np.repeat(row_first - starts, cols)
    keys += np.arange(len(keys))
    return keys


def first_seen(keys: Ints, size: int) -> Ints:
    """The distinct keys (all below ``size``), in the order in which they first occur."""
    if size > _TABLE_SLACK * len(keys) + 4096:
        return keys[np.sort(np.unique(keys, return_index=True)[1])]
    first = np.empty(size, np.int64)
    order = np.arange(len(keys))
    # Of repeated indices the last write wins: backwards, that is the first occurrence.
    first[keys[::-1]] = order[::-1]
    distinct: Ints = keys[first[keys] == order]
    return distinct


def cap_each_frame(keys: Ints, tokens: int, limit: int | None) -> Ints:
    """The first ``limit`` keys of every frame."""
    return keys if limit is None else keys[_rank(keys // tokens) < limit]


def split_frames(keys: Ints, tokens: int, frames: int) -> list[Ints]:
    """Keys as one array of tokens a frame."""
    if not frames:
        return []
    owner = keys // tokens
    return np.split(keys - owner * tokens, np.searchsorted(owner, np.arange(1, frames)))


def join_frames(parts: Iterable[Ints]) -> tuple[Ints, Ints]:
    """Frame numbers and values of one array a frame."""
    arrays = list(parts)
    frame = np.repeat(np.arange(len(arrays)), [len(part) for part in arrays])
    return frame, np.concatenate([np.zeros(0, np.int64), *arrays])


def _rank(group: Ints) -> Ints:
    """The place of each element within its run of equal, ascending groups."""
    position = np.arange(len(group))
    start = position.copy()
    start[1:][group[1:] == group[:-1]] = 0
    rank: Ints = position - np.maximum.accumulate(start)
    return rank
