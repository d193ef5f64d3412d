"""Fixations: the cells that a frame's tokens name, as normalised geometry (spec: readout §1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError

__all__ = ["MIN_EXTENT", "FixationBounds", "FixationPoint", "FixationSet", "FrameFixationTrace"]

MIN_EXTENT = 1e-6
"""The smallest extent of a cell, as a fraction of the image."""

_COLUMNS = ("frame", "x", "y", "width", "height", "confidence", "grid")


def _clamp(name: str, value: float, low: float, high: float) -> float:
    if math.isnan(value):
        raise InvalidInputError(
            f"{name} is NaN; it must be a number, which is then clamped to {low:g}..{high:g}"
        )
    return min(max(float(value), low), high)


@dataclass(frozen=True, slots=True)
class FixationBounds:
    """Corners of a cell, normalised to 0..1, y downwards."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True, slots=True)
class FixationPoint:
    """One fixated cell.

    Constructing it directly checks and clamps nothing; ``new``, ``with_extent`` and ``with_grid_extent`` do.

    Attributes:
        x: centre of the cell, normalised 0..1.
        y: centre of the cell, normalised 0..1, downwards.
        scale: the larger of both extents.
        confidence: 0..1; 0 means padding everywhere downstream.
        width: full extent as a fraction of the image; 0 = unknown, ``scale`` stands in.
        height: full extent as a fraction of the image; 0 = unknown, ``scale`` stands in.
        grid: cells per side of the source scale; 0 = unknown. Local to a tile in tiled modes.
    """

    x: float
    y: float
    scale: float
    confidence: float
    width: float = 0.0
    height: float = 0.0
    grid: int = 0

    @classmethod
    def new(cls, x: float, y: float, scale: float, confidence: float) -> FixationPoint:
        """A square cell of unknown grid. Clamps as ``with_grid_extent``."""
        return cls.with_grid_extent(x, y, scale, scale, confidence, 0)

    @classmethod
    def with_extent(cls, x: float, y: float, width: float, height: float, confidence: float) -> FixationPoint:
        """A cell of unknown grid. Clamps as ``with_grid_extent``."""
        return cls.with_grid_extent(x, y, width, height, confidence, 0)

    @classmethod
    def with_grid_extent(
        cls, x: float, y: float, width: float, height: float, confidence: float, grid: int
    ) -> FixationPoint:
        """A cell of ``grid``; x, y and confidence are clamped to 0..1, extents to 1e-6..1.

        Raises:
            InvalidInputError: a value is NaN, or ``grid`` is negative.

        Example:
            >>> FixationPoint.with_grid_extent(-0.2, 1.5, 0.5, 0.25, 7, 2)
            FixationPoint(x=0.0, y=1.0, scale=0.5, confidence=1.0, width=0.5, height=0.25, grid=2)
        """
        if grid < 0:
            raise InvalidInputError(
                f"grid is {grid}; it must be 0 (unknown) or the cells per side of a scale"
            )
        width = _clamp("width", width, MIN_EXTENT, 1.0)
        height = _clamp("height", height, MIN_EXTENT, 1.0)
        return cls(
            x=_clamp("x", x, 0.0, 1.0),
            y=_clamp("y", y, 0.0, 1.0),
            scale=max(width, height),
            confidence=_clamp("confidence", confidence, 0.0, 1.0),
            width=width,
            height=height,
            grid=int(grid),
        )

    @classmethod
    def padding(cls) -> FixationPoint:
        """The filler point: centre (0.5, 0.5), extent 0.25, confidence 0."""
        return _PAD

    def cell_grid(self) -> int | None:
        """Cells per side of the source scale, or None when unknown."""
        return self.grid or None

    def cell_width(self) -> float:
        """The stored width, or ``scale`` where none is stored; within 1e-6..1."""
        return min(max(self.width if self.width > 0 else self.scale, MIN_EXTENT), 1.0)

    def cell_height(self) -> float:
        """The stored height, or ``scale`` where none is stored; within 1e-6..1."""
        return min(max(self.height if self.height > 0 else self.scale, MIN_EXTENT), 1.0)

    def bounds(self) -> FixationBounds:
        """The cell's corners, clamped to the image."""
        return self.scaled_bounds(1.0)

    def scaled_bounds(self, scale: float) -> FixationBounds:
        """The corners of the cell grown by ``scale`` about its centre, which never moves.

        ``scale`` is floored at 1e-6 (NaN too); the half extent saturates at 0.5; corners are clamped to 0..1.
        """
        scale = scale if scale > MIN_EXTENT else MIN_EXTENT
        half_x = min(self.cell_width() * scale / 2, 0.5)
        half_y = min(self.cell_height() * scale / 2, 0.5)
        return FixationBounds(
            x_min=min(max(self.x - half_x, 0.0), 1.0),
            y_min=min(max(self.y - half_y, 0.0), 1.0),
            x_max=min(max(self.x + half_x, 0.0), 1.0),
            y_max=min(max(self.y + half_y, 0.0), 1.0),
        )

    def to_dict(self) -> dict[str, float | int]:
        """The JSON form: the field names; ``grid`` is left out when unknown."""
        fields: dict[str, float | int] = {
            "x": self.x,
            "y": self.y,
            "scale": self.scale,
            "confidence": self.confidence,
            "width": self.width,
            "height": self.height,
        }
        if self.grid:
            fields["grid"] = self.grid
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FixationPoint:
        """Reads the JSON form; missing ``width``, ``height`` and ``grid`` are 0, and nothing is clamped.

        Raises:
            InvalidInputError: x, y, scale or confidence is missing, or a value is no number.
        """
        try:
            return cls(
                x=float(fields["x"]),
                y=float(fields["y"]),
                scale=float(fields["scale"]),
                confidence=float(fields["confidence"]),
                width=float(fields.get("width", 0.0)),
                height=float(fields.get("height", 0.0)),
                grid=int(fields.get("grid", 0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{dict(fields)!r} is no fixation point ({error!r}); it needs numbers x, y, scale "
                "and confidence"
            ) from error


_PAD = FixationPoint(x=0.5, y=0.5, scale=0.25, confidence=0.0, width=0.25, height=0.25)


@dataclass(frozen=True, slots=True)
class FixationSet:
    """The fixations of one frame, in decoder order.

    Attributes:
        points: the cells; those of confidence 0 are padding.
        stop_probability: 1.0 where the frame stopped before its budget, 0.0 where it used it, by the flags.
    """

    points: tuple[FixationPoint, ...]
    stop_probability: float = 0.0

    @classmethod
    def new(cls, points: Iterable[FixationPoint], stop_probability: float, k: int) -> FixationSet:
        """Keeps the first ``max(k, 1)`` points in the given order and pads to that length."""
        count = max(k, 1)
        return cls.with_min_len(tuple(points)[:count], stop_probability, count)

    @classmethod
    def with_min_len(cls, points: Iterable[FixationPoint], stop_probability: float, n: int) -> FixationSet:
        """Keeps every point and pads up to ``n``.

        Raises:
            InvalidInputError: ``stop_probability`` is NaN; other values are clamped to 0..1.
        """
        kept = tuple(points)
        return cls(
            points=kept + (_PAD,) * max(n - len(kept), 0),
            stop_probability=_clamp("stop_probability", stop_probability, 0.0, 1.0),
        )

    def top_point(self) -> FixationPoint:
        """The first point, or the padding point if there is none."""
        return self.points[0] if self.points else _PAD

    def to_array(self) -> NDArray[np.float32]:
        """float32 ``[n, 6]``: x, y, width, height, confidence, grid."""
        rows = [(p.x, p.y, p.cell_width(), p.cell_height(), p.confidence, p.grid) for p in self.points]
        return np.array(rows, np.float32).reshape(len(rows), 6)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "points": [point.to_dict() for point in self.points],
            "stop_probability": self.stop_probability,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FixationSet:
        """Reads the JSON form.

        Raises:
            InvalidInputError: a field is missing or no number.
        """
        try:
            points, stop = fields["points"], float(fields["stop_probability"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"not a fixation set ({error!r}); it needs a list 'points' and a number 'stop_probability'"
            ) from error
        return cls(tuple(FixationPoint.from_dict(point) for point in points), stop)


@dataclass(frozen=True, slots=True)
class FrameFixationTrace:
    """The fixations of one clip, one set a frame."""

    frames: tuple[FixationSet, ...]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def is_empty(self) -> bool:
        """Whether the clip has no frames."""
        return not self.frames

    @classmethod
    def from_array(
        cls,
        fixations: NDArray[Any],
        frames: int,
        stop_probabilities: NDArray[Any] | Sequence[float],
        *,
        min_len: int = 0,
    ) -> FrameFixationTrace:
        """Builds the trace of a clip from the wire's ``FIXATIONS``.

        Args:
            fixations: float32 ``[n, 7]``: frame, x, y, width, height, confidence, grid. Frames may come in
                any order; the order within a frame is kept. Clamped as ``FixationPoint.with_grid_extent``.
            frames: frames of the clip; frames without fixations become empty sets.
            stop_probabilities: one value a frame, clamped to 0..1.
            min_len: pads every frame's set up to this many points.

        Raises:
            InvalidInputError: wrong shapes, a NaN, or a frame or grid that is no index.
        """
        rows = np.asarray(fixations, np.float64)
        if rows.ndim != 2 or rows.shape[1] != 7:
            raise InvalidInputError(
                f"fixations has shape {rows.shape}; it must be [n, 7]: {', '.join(_COLUMNS)}"
            )
        stops = np.asarray(stop_probabilities, np.float64)
        if stops.shape != (frames,):
            raise InvalidInputError(
                f"stop_probabilities has shape {stops.shape}; it must be [{frames}], one a frame"
            )
        if np.isnan(rows).any():
            row, column = np.argwhere(np.isnan(rows))[0]
            raise InvalidInputError(
                f"{_COLUMNS[column]} of fixation {row} is NaN; every column must be a number"
            )
        frame = _indices(rows[:, 0], "frame", frames)
        grid = _indices(rows[:, 6], "grid", 2**31)
        extents = np.clip(rows[:, 3:5], MIN_EXTENT, 1.0)
        unit = np.clip(rows[:, [1, 2, 5]], 0.0, 1.0)
        order = np.argsort(frame, kind="stable")
        columns = [
            unit[:, 0],
            unit[:, 1],
            extents.max(axis=1, initial=MIN_EXTENT),
            unit[:, 2],
            *extents.T,
            grid,
        ]
        points = list(map(FixationPoint, *(column[order].tolist() for column in columns)))
        ends = np.cumsum(np.bincount(frame, minlength=frames)).tolist()
        return cls(
            tuple(
                FixationSet.with_min_len(points[start:end], stop, min_len)
                for start, end, stop in zip([0, *ends[:-1]], ends, stops.tolist(), strict=True)
            )
            if frames
            else ()
        )

    def to_array(self) -> NDArray[np.float32]:
        """float32 ``[n, 7]``: frame, x, y, width, height, confidence, grid; padding points included."""
        if self.is_empty:
            return np.zeros((0, 7), np.float32)
        counts = [len(fixations.points) for fixations in self.frames]
        frame = np.repeat(np.arange(len(counts), dtype=np.float32), counts)
        return np.column_stack([frame, np.concatenate([fixations.to_array() for fixations in self.frames])])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"frames": [fixations.to_dict() for fixations in self.frames]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FrameFixationTrace:
        """Reads the JSON form.

        Raises:
            InvalidInputError: a field is missing or no number.
        """
        if "frames" not in fields:
            raise InvalidInputError(f"not a trace: its keys are {sorted(fields)}; it needs a list 'frames'")
        return cls(tuple(FixationSet.from_dict(frame) for frame in fields["frames"]))


def _indices(values: NDArray[np.float64], name: str, limit: int) -> NDArray[np.int64]:
    wrong = (values < 0) | (values >= limit) | (values != np.floor(values))
    if wrong.any():
        raise InvalidInputError(
            f"{name} of fixation {int(np.argmax(wrong))} is {values[wrong][0]:g}; it must be an "
            f"integer in 0..{limit - 1}"
        )
    return values.astype(np.int64)
