"""Rectangles and update plans: which pixels an interframe output takes from the new frame (spec §1, §2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import Array, library_of
from autogaze_client._errors import InvalidInputError
from autogaze_client.device_mask import AutoGazeMaskPlanStats
from autogaze_client.readout.grids import Points
from autogaze_client.visualization.cells import active_rows, pixel_cells
from autogaze_client.visualization.coverage import Coverage
from autogaze_client.visualization.modes import AutoGazeMaskGeometryMode

__all__ = [
    "AutoGazeSparseUpdatePlan",
    "FixationPixelRect",
    "copy_sparse_update_rgba",
    "copy_sparse_update_tensor",
    "fixation_alpha_mask",
    "fixation_cell_rects",
    "fixation_deduplicated_cell_rects",
    "fixation_deduplicated_sparse_update_plan",
    "fixation_effective_alpha_mask",
    "fixation_effective_cell_rects",
    "fixation_effective_sparse_update_plan",
    "fixation_rect_union_pixel_count",
    "fixation_sparse_update_plan",
]

Ints = NDArray[np.int64]


class FixationPixelRect(NamedTuple):
    """A rectangle of pixels, half-open; compares equal to a tuple of its edges."""

    x0: int
    x1: int
    y0: int
    y1: int

    def is_empty(self) -> bool:
        """Whether it has no pixels."""
        return self.x1 <= self.x0 or self.y1 <= self.y0

    def clamped(self, width: int, height: int) -> FixationPixelRect:
        """The part inside a frame; edges beyond it become its edges."""
        x0, x1 = (min(max(x, 0), width) for x in (self.x0, self.x1))
        y0, y1 = (min(max(y, 0), height) for y in (self.y0, self.y1))
        return FixationPixelRect(x0, x1, y0, y1)

    def pixel_count(self, width: int, height: int) -> int:
        """Pixels of it inside a frame."""
        inside = self.clamped(width, height)
        return 0 if inside.is_empty() else (inside.x1 - inside.x0) * (inside.y1 - inside.y0)


@dataclass(frozen=True)
class AutoGazeSparseUpdatePlan:
    """Rectangles to copy, side by side where they could be joined; they may still overlap.

    Attributes:
        width: of the frame, in pixels.
        height: of the frame, in pixels.
        rects: sorted by y0, y1, x0, x1.
        pixel_count: pixels that they cover, overlaps counted once.
    """

    width: int
    height: int
    rects: tuple[FixationPixelRect, ...]
    pixel_count: int

    @classmethod
    def new(
        cls, width: int, height: int, rects: Iterable[tuple[int, int, int, int]]
    ) -> AutoGazeSparseUpdatePlan:
        """Clips rectangles (x0, x1, y0, y1), drops empty ones, and joins those of equal rows that touch.

        Raises:
            InvalidInputError: a side of the frame is below 1.

        Example:
            >>> AutoGazeSparseUpdatePlan.new(4, 4, [(0, 2, 0, 2), (2, 4, 0, 2)]).rects
            (FixationPixelRect(x0=0, x1=4, y0=0, y1=2),)
        """
        _check_frame(width, height)
        merged = merged_rects(_clipped(rects, width, height))
        count = Coverage.of(merged, width, height).pixel_count
        return cls(width, height, as_rects(merged), count)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to copy."""
        return not self.rects

    def update_ratio(self) -> float:
        """Covered pixels / pixels of the frame."""
        return self.pixel_count / (self.width * self.height)

    def stats(self) -> AutoGazeMaskPlanStats:
        """Its size in numbers."""
        coverage = Coverage.of(_array(self.rects), self.width, self.height)
        return AutoGazeMaskPlanStats(len(self.rects), coverage.row_span_count, self.pixel_count)


def merged_rects(rects: Ints) -> Ints:
    """Rectangles sorted by y0, y1, x0, x1; those that share both rows and touch or overlap are joined."""
    if not len(rects):
        return rects
    rects = rects[np.lexsort((rects[:, 1], rects[:, 0], rects[:, 3], rects[:, 2]))]
    group = np.cumsum(np.r_[0, (rects[1:, 2:] != rects[:-1, 2:]).any(axis=1)])
    # Groups lie on a line far apart, so that one running maximum serves them all.
    shift = group * (int(rects[:, 1].max()) + 2)
    reach = np.maximum.accumulate(rects[:, 1] + shift)
    first = np.flatnonzero(np.r_[True, rects[1:, 0] + shift[1:] > reach[:-1]])
    merged = rects[first].copy()
    last = np.r_[first[1:], len(rects)] - 1
    merged[:, 1] = reach[last] - shift[last]
    return merged


def as_rects(rects: Ints) -> tuple[FixationPixelRect, ...]:
    """int64 ``[n, 4]`` as rectangles."""
    return tuple(FixationPixelRect(*row) for row in rects.tolist())


def fixation_cell_rects(
    points: Points, width: int, height: int, cell_scale: float = 1.0
) -> tuple[FixationPixelRect, ...]:
    """The pixels of every active cell, in input order; a side of 0 counts as 1.

    Args:
        points: fixations; those whose confidence is not above 0 are left out.
        width: of the frame, in pixels.
        height: of the frame, in pixels.
        cell_scale: grows the cells about their centres.

    Raises:
        InvalidInputError: a value is not finite.

    Example:
        >>> fixation_cell_rects([FixationPoint.with_grid_extent(0.125, 0.25, 0.25, 0.5, 1.0, 4)], 4, 2)
        (FixationPixelRect(x0=0, x1=1, y0=0, y1=1),)
    """
    return _rects(points, width, height, cell_scale, AutoGazeMaskGeometryMode.NATIVE)


def fixation_deduplicated_cell_rects(
    points: Points, width: int, height: int, cell_scale: float = 1.0
) -> tuple[FixationPixelRect, ...]:
    """As ``fixation_cell_rects``, largest first and without cells that earlier ones cover."""
    return _rects(points, width, height, cell_scale, AutoGazeMaskGeometryMode.DEDUPLICATED)


def fixation_effective_cell_rects(
    points: Points, width: int, height: int, cell_scale: float = 1.0
) -> tuple[FixationPixelRect, ...]:
    """As ``fixation_cell_rects``, each cell shrunk to the cell of the finest grid that holds its centre."""
    return _rects(points, width, height, cell_scale, AutoGazeMaskGeometryMode.EFFECTIVE)


def fixation_sparse_update_plan(
    points: Points, width: int, height: int, cell_scale: float = 1.0
) -> AutoGazeSparseUpdatePlan:
    """The plan of native cells.

    Raises:
        InvalidInputError: a side is below 1, or a value is not finite.
    """
    return _plan(points, width, height, cell_scale, AutoGazeMaskGeometryMode.NATIVE)


def fixation_deduplicated_sparse_update_plan(
    points: Points, width: int, height: int, cell_scale: float = 1.0
) -> AutoGazeSparseUpdatePlan:
    """The plan of deduplicated cells; as ``fixation_sparse_update_plan``."""
    return _plan(points, width, height, cell_scale, AutoGazeMaskGeometryMode.DEDUPLICATED)


def fixation_effective_sparse_update_plan(
    points: Points, width: int, height: int, cell_scale: float = 1.0
) -> AutoGazeSparseUpdatePlan:
    """The plan of effective cells; as ``fixation_sparse_update_plan``."""
    return _plan(points, width, height, cell_scale, AutoGazeMaskGeometryMode.EFFECTIVE)


def fixation_alpha_mask(
    points: Points, width: int, height: int, cell_scale: float = 1.0
) -> NDArray[np.uint8]:
    """uint8 ``[H, W]``: 255 on every pixel that an active cell covers, else 0; a side of 0 counts as 1."""
    return _alpha(points, width, height, cell_scale, AutoGazeMaskGeometryMode.NATIVE)


def fixation_effective_alpha_mask(
    points: Points, width: int, height: int, cell_scale: float = 1.0
) -> NDArray[np.uint8]:
    """``fixation_alpha_mask`` of effective cells."""
    return _alpha(points, width, height, cell_scale, AutoGazeMaskGeometryMode.EFFECTIVE)


def fixation_rect_union_pixel_count(
    rects: Iterable[tuple[int, int, int, int]], width: int, height: int
) -> int:
    """Pixels of a frame that rectangles cover, each counted once; 0 where a side is 0.

    Example:
        >>> fixation_rect_union_pixel_count([(0, 3, 0, 2), (2, 4, 1, 3)], 4, 4)
        9
    """
    if width < 1 or height < 1:
        return 0
    return Coverage.of(_clipped(rects, width, height), width, height).pixel_count


def copy_sparse_update_rgba(source: Any, target: Any, plan: AutoGazeSparseUpdatePlan) -> int:
    """Copies the planned pixels, all four bytes, from ``source`` into ``target``.

    Args:
        source: W·H·4 bytes, as an array or bytes.
        target: a writable array or bytearray of the same length; changed in place.
        plan: what to copy.

    Returns:
        The number of pixels copied.

    Raises:
        InvalidInputError: a length is wrong.
    """
    pixels = [np.frombuffer(value, np.uint8) for value in (source, target)]
    expected = plan.width * plan.height * 4
    for name, values in zip(("source", "target"), pixels, strict=True):
        if values.size != expected:
            raise InvalidInputError(
                f"{name} has {values.size} bytes; a plan of {plan.width}x{plan.height} needs {expected}"
            )
    taken, given = (values.reshape(plan.height, plan.width, 4) for values in pixels)
    for x0, x1, y0, y1 in plan.rects:
        given[y0:y1, x0:x1] = taken[y0:y1, x0:x1]
    return plan.pixel_count


def copy_sparse_update_tensor(source: Array, target: Array, plan: AutoGazeSparseUpdatePlan) -> Array:
    """A new tensor: ``target`` with the planned pixels of ``source``.

    Args:
        source: ``[H, W, 4]`` of numpy, torch or CuPy.
        target: likewise, of the same library and device.
        plan: what to copy.

    Raises:
        InvalidInputError: a shape is wrong.
    """
    library_of(source=source, target=target)  # one library and device, or an error
    for name, values in (("source", source), ("target", target)):
        if tuple(values.shape) != (plan.height, plan.width, 4):
            raise InvalidInputError(
                f"{name} has shape {list(values.shape)}; the plan needs [{plan.height}, {plan.width}, 4]"
            )
    result = _copied(target)
    for x0, x1, y0, y1 in plan.rects:
        result[y0:y1, x0:x1] = source[y0:y1, x0:x1]
    return result


def _copied(array: Array) -> Array:
    return array.clone() if hasattr(array, "clone") else array.copy()


def _cells(points: Points, width: int, height: int, scale: float, geometry: AutoGazeMaskGeometryMode) -> Ints:
    return pixel_cells(active_rows(points), width, height, scale, geometry).rects


def _rects(
    points: Points, width: int, height: int, scale: float, geometry: AutoGazeMaskGeometryMode
) -> tuple[FixationPixelRect, ...]:
    return as_rects(_cells(points, max(width, 1), max(height, 1), scale, geometry))


def _plan(
    points: Points, width: int, height: int, scale: float, geometry: AutoGazeMaskGeometryMode
) -> AutoGazeSparseUpdatePlan:
    _check_frame(width, height)
    merged = merged_rects(_cells(points, width, height, scale, geometry))
    count = Coverage.of(merged, width, height).pixel_count
    return AutoGazeSparseUpdatePlan(width, height, as_rects(merged), count)


def _alpha(
    points: Points, width: int, height: int, scale: float, geometry: AutoGazeMaskGeometryMode
) -> NDArray[np.uint8]:
    width, height = max(width, 1), max(height, 1)
    rects = _cells(points, width, height, scale, geometry)
    return Coverage.of(rects, width, height).mask.astype(np.uint8) * np.uint8(255)


def _array(rects: Iterable[tuple[int, int, int, int]]) -> Ints:
    return np.array(list(rects), np.int64).reshape(-1, 4)


def _clipped(rects: Iterable[tuple[int, int, int, int]], width: int, height: int) -> Ints:
    clipped = np.clip(_array(rects), 0, [width, width, height, height])
    return clipped[(clipped[:, 0] < clipped[:, 1]) & (clipped[:, 2] < clipped[:, 3])]


def _check_frame(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InvalidInputError(f"the frame is {width}x{height} pixels; both sides must be at least 1")
