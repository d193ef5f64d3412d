"""Fixations of frames and clips, kept as numbers and turned into points on demand (spec: readout §1).

A tiled 1080p clip has 142,560 fixations. They travel and are read out as arrays; a ``FixationPoint`` is made
only for who asks for points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client._points import MIN_EXTENT, PADDING_POINT, FixationBounds, FixationPoint, clamp

__all__ = ["MIN_EXTENT", "FixationBounds", "FixationPoint", "FixationSet", "FrameFixationTrace"]

_COLUMNS = ("frame", "x", "y", "width", "height", "confidence", "grid")
_PADDING_ROW = (0.5, 0.5, 0.25, 0.25, 0.0, 0.0)


class FixationSet:
    """The fixations of one frame, in decoder order. Immutable.

    Attributes:
        points: the cells; those of confidence 0 are padding.
        stop_probability: 1.0 where the frame stopped before its budget, 0.0 where it used it, by the flags.
    """

    __slots__ = ("_points", "_rows", "_stop_probability")

    def __init__(self, points: Iterable[FixationPoint], stop_probability: float = 0.0) -> None:
        self._points: tuple[FixationPoint, ...] | None = tuple(points)
        self._rows: NDArray[Any] | None = None
        self._stop_probability = stop_probability

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
            points=kept + (PADDING_POINT,) * max(n - len(kept), 0),
            stop_probability=clamp("stop_probability", stop_probability, 0.0, 1.0),
        )

    @classmethod
    def _from_rows(cls, rows: NDArray[Any], stop_probability: float) -> FixationSet:
        made = cls.__new__(cls)
        made._points, made._rows, made._stop_probability = None, rows, stop_probability
        return made

    @property
    def points(self) -> tuple[FixationPoint, ...]:
        """The cells as points, made on first use."""
        if self._points is None:
            x, y, width, height, confidence, grid = self.rows.astype(np.float64).T
            scale = np.maximum(width, height)
            columns = (x, y, scale, confidence, width, height, grid.astype(np.int64))
            self._points = tuple(map(FixationPoint, *(column.tolist() for column in columns)))
        return self._points

    @property
    def rows(self) -> NDArray[Any]:
        """The cells as numbers, unrounded: float ``[n, 6]`` x, y, width, height, confidence, grid. Read-only."""
        if self._rows is None:
            cells = [
                (p.x, p.y, p.cell_width(), p.cell_height(), p.confidence, p.grid) for p in self._points or ()
            ]
            self._rows = _read_only(np.array(cells, np.float64).reshape(len(cells), 6))
        return self._rows

    @property
    def stop_probability(self) -> float:
        """1.0 where the frame stopped before its budget, 0.0 where it used it."""
        return self._stop_probability

    def __len__(self) -> int:
        return len(self._points if self._points is not None else self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FixationSet):
            return NotImplemented
        return self.stop_probability == other.stop_probability and self.points == other.points

    def __hash__(self) -> int:
        return hash((self.points, self.stop_probability))

    def __repr__(self) -> str:
        return f"FixationSet(points={self.points!r}, stop_probability={self.stop_probability!r})"

    def top_point(self) -> FixationPoint:
        """The first point, or the padding point if there is none."""
        return self.points[0] if len(self) else PADDING_POINT

    def to_array(self) -> NDArray[np.float32]:
        """float32 ``[n, 6]``: x, y, width, height, confidence, grid."""
        return self.rows.astype(np.float32)

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
        return cls((FixationPoint.from_dict(point) for point in points), stop)


class FrameFixationTrace:
    """The fixations of one clip, one set a frame. Immutable.

    Attributes:
        frames: one set a frame.
    """

    __slots__ = ("_frames", "_rows")

    def __init__(self, frames: Iterable[FixationSet]) -> None:
        self._frames: tuple[FixationSet, ...] = tuple(frames)
        self._rows: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def frames(self) -> tuple[FixationSet, ...]:
        """One set a frame."""
        return self._frames

    @property
    def is_empty(self) -> bool:
        """Whether the clip has no frames."""
        return not self._frames

    @property
    def rows(self) -> NDArray[Any]:
        """The cells of all frames, unrounded, sorted by frame; padding points included. Read-only.

        float ``[n, 7]``: frame, x, y, width, height, confidence, grid.
        """
        if self._rows is None:
            counts = [len(fixations) for fixations in self._frames]
            cells = [np.zeros((0, 6)), *(fixations.rows for fixations in self._frames)]
            frame = np.repeat(np.arange(len(counts), dtype=np.float64), counts)
            self._rows = _read_only(np.column_stack([frame, np.concatenate(cells)]))
        return self._rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrameFixationTrace):
            return NotImplemented
        return self.frames == other.frames

    def __hash__(self) -> int:
        return hash(self.frames)

    def __repr__(self) -> str:
        return f"FrameFixationTrace(frames={self.frames!r})"

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
        rows = np.array(fixations, np.result_type(np.asarray(fixations).dtype, np.float32))
        if rows.ndim != 2 or rows.shape[1] != 7:
            raise InvalidInputError(
                f"fixations has shape {rows.shape}; it must be [n, 7]: {', '.join(_COLUMNS)}"
            )
        stops = np.asarray(stop_probabilities, np.float64)
        if stops.shape != (frames,):
            raise InvalidInputError(
                f"stop_probabilities has shape {stops.shape}; it must be [{frames}], one a frame"
            )
        nan = np.isnan(rows)
        if nan.any():
            row, column = np.argwhere(nan)[0]
            raise InvalidInputError(
                f"{_COLUMNS[column]} of fixation {row} is NaN; every column must be a number"
            )
        frame = _indices(rows[:, 0], "frame", frames)
        _indices(rows[:, 6], "grid", 2**31)
        rows[:, 1:6] = np.clip(rows[:, 1:6], (0.0, 0.0, MIN_EXTENT, MIN_EXTENT, 0.0), 1.0)
        if (np.diff(frame) < 0).any():
            rows = rows[np.argsort(frame, kind="stable")]
        counts = np.bincount(frame, minlength=frames)
        if (counts < min_len).any():
            rows, counts = _padded(rows, counts, min_len)
        return cls._from_rows(rows, np.cumsum(counts), stops)

    @classmethod
    def _from_rows(
        cls, rows: NDArray[Any], ends: NDArray[np.int64], stops: NDArray[np.float64]
    ) -> FrameFixationTrace:
        """A trace over checked rows that are sorted by frame; frame ``i`` ends before row ``ends[i]``."""
        rows = _read_only(rows)
        starts = [0, *ends.tolist()][: len(ends)]
        levels = [clamp("stop_probability", stop, 0.0, 1.0) for stop in stops.tolist()]
        made = cls(
            FixationSet._from_rows(rows[start:end, 1:], stop)
            for start, end, stop in zip(starts, ends.tolist(), levels, strict=True)
        )
        made._rows = rows
        return made

    def to_array(self) -> NDArray[np.float32]:
        """float32 ``[n, 7]``: frame, x, y, width, height, confidence, grid; padding points included."""
        return self.rows.astype(np.float32)

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
        return cls(FixationSet.from_dict(frame) for frame in fields["frames"])


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _indices(values: NDArray[Any], name: str, limit: int) -> NDArray[np.int64]:
    wrong = (values < 0) | (values >= limit) | (values != np.floor(values))
    if wrong.any():
        raise InvalidInputError(
            f"{name} of fixation {int(np.argmax(wrong))} is {values[wrong][0]:g}; it must be an "
            f"integer in 0..{limit - 1}"
        )
    return values.astype(np.int64)


def _padded(
    rows: NDArray[Any], counts: NDArray[np.int64], min_len: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Rows with padding points after those of every frame that has fewer than ``min_len``."""
    missing = np.maximum(min_len - counts, 0)
    ends = np.repeat(np.cumsum(counts), missing)
    padding = np.empty((len(ends), 7), rows.dtype)
    padding[:, 0] = np.repeat(np.arange(len(counts)), missing)
    padding[:, 1:] = _PADDING_ROW
    return np.insert(rows, ends, padding, axis=0), counts + missing
