"""Image grids, rectangles and options of a readout (spec: readout §3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client._points import FixationBounds
from autogaze_client.readout import _checks

__all__ = ["SparseReadoutGrid", "SparseReadoutOptions", "SparseReadoutRect", "SparseReadoutRects"]


@dataclass(frozen=True, slots=True)
class SparseReadoutRect:
    """A rectangle in 0..1, y downwards; the constructor sorts each pair of edges and clamps it.

    Raises:
        InvalidInputError: an edge is NaN.

    Example:
        >>> SparseReadoutRect(0.75, 0.5, 0.5, 2.0)
        SparseReadoutRect(x0=0.5, y0=0.5, x1=0.75, y1=1.0)
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        for low, high in (("x0", "x1"), ("y0", "y1")):
            pair = sorted(_checks.number(name, getattr(self, name)) for name in (low, high))
            for name, value in zip((low, high), pair, strict=True):
                object.__setattr__(self, name, min(max(value, 0.0), 1.0))

    @classmethod
    def from_bounds(cls, bounds: FixationBounds) -> SparseReadoutRect:
        """The rectangle of a cell's corners."""
        return cls(bounds.x_min, bounds.y_min, bounds.x_max, bounds.y_max)

    @property
    def is_empty(self) -> bool:
        """Whether it has no area."""
        return self.x1 <= self.x0 or self.y1 <= self.y0


class SparseReadoutRects(Sequence[SparseReadoutRect]):
    """Rectangles kept as numbers; reads like a list of ``SparseReadoutRect``, and equals one. Immutable.

    Built from rectangles or from float ``[n, 4]``, whose edges are sorted and clamped as theirs are.

    Attributes:
        array: float64 ``[n, 4]``: x0, y0, x1, y1.
    """

    __slots__ = ("array",)

    def __init__(self, rects: Iterable[SparseReadoutRect] | NDArray[np.float64]) -> None:
        if not isinstance(rects, np.ndarray):
            edges = [(rect.x0, rect.y0, rect.x1, rect.y1) for rect in rects]
            rects = np.array(edges, np.float64).reshape(len(edges), 4)
        elif rects.ndim != 2 or rects.shape[1] != 4 or not np.isfinite(rects).all():
            raise InvalidInputError(
                f"rects are {list(rects.shape)} with edges {rects.ravel()[:4]}; they must be finite [n, 4]: "
                "x0, y0, x1, y1"
            )
        low, high = np.minimum(rects[:, :2], rects[:, 2:]), np.maximum(rects[:, :2], rects[:, 2:])
        self.array: NDArray[np.float64] = np.clip(np.concatenate([low, high], axis=1), 0.0, 1.0)
        self.array.flags.writeable = False

    @classmethod
    def of(cls, rects: Iterable[SparseReadoutRect]) -> SparseReadoutRects:
        """The same rectangles, without a copy where they are numbers already."""
        return rects if isinstance(rects, cls) else cls(rects)

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> SparseReadoutRect: ...

    @overload
    def __getitem__(self, index: slice) -> SparseReadoutRects: ...

    def __getitem__(self, index: int | slice) -> SparseReadoutRect | SparseReadoutRects:
        if isinstance(index, slice):
            return SparseReadoutRects(self.array[index])
        return SparseReadoutRect(*self.array[index].tolist())

    def __iter__(self) -> Iterator[SparseReadoutRect]:
        return (SparseReadoutRect(*edges) for edges in self.array.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SparseReadoutRects):
            return np.array_equal(self.array, other.array)
        if isinstance(other, (list, tuple)):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SparseReadoutRects({list(self)!r})"


@dataclass(frozen=True, slots=True)
class SparseReadoutGrid:
    """The token grid of an image model: ``height`` x ``width`` tokens, row-major, row 0 at the top.

    A side may be 0, which makes the grid empty; functions that place tokens on it then raise.

    Raises:
        InvalidInputError: a side is negative or no integer.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        _checks.count("height", self.height)
        _checks.count("width", self.width)

    @classmethod
    def square_from_token_count(cls, count: int) -> SparseReadoutGrid:
        """The square grid of a ViT with ``count`` tokens.

        Raises:
            InvalidInputError: ``count`` is 0 or no square number.
        """
        side = math.isqrt(_checks.count("count", count))
        if side == 0 or side * side != count:
            raise InvalidInputError(
                f"{count} tokens make no square grid; pass 1, 4, 9, …, or build the grid from its sides"
            )
        return cls(side, side)

    @property
    def token_count(self) -> int:
        """Tokens of the grid."""
        return self.height * self.width

    @property
    def is_empty(self) -> bool:
        """Whether a side is 0."""
        return self.token_count == 0

    def token_index(self, row: int, col: int) -> int | None:
        """``row · width + col``, or None outside the grid."""
        inside = 0 <= row < self.height and 0 <= col < self.width
        return row * self.width + col if inside else None

    def token_rect(self, token: int) -> SparseReadoutRect | None:
        """The rectangle of a token, or None outside the grid."""
        if not 0 <= token < self.token_count:
            return None
        row, col = divmod(token, self.width)
        return SparseReadoutRect(
            col / self.width, row / self.height, (col + 1) / self.width, (row + 1) / self.height
        )

    def require_tokens(self, name: str) -> None:
        """Refuses an empty grid.

        Raises:
            InvalidInputError: a side is 0.
        """
        if self.is_empty:
            raise InvalidInputError(
                f"the {name} is {self.height}x{self.width}; both sides must be at least 1"
            )


@dataclass(frozen=True, slots=True)
class SparseReadoutOptions:
    """How the fixations of a frame become rectangles and tokens.

    Attributes:
        confidence_threshold: keeps cells of a confidence strictly above it; counts as 0 below 0 (so padding
            never shows) and as 1 above 1 (which keeps nothing).
        max_fixations_per_frame: keeps the first so many cells in decoder order, which is not the order of
            confidence; None = all.
        fixation_scale: grows every cell about its centre; values below 1e-6 count as 1e-6.
        dilation: grows every cell's range of tokens by so many tokens on each side, clipped at borders.
        max_tokens_per_frame: keeps the first so many tokens of a frame; None = all.

    Raises:
        InvalidInputError: a NaN, or a count that is negative or no integer.
    """

    confidence_threshold: float = 0.0
    max_fixations_per_frame: int | None = None
    fixation_scale: float = 1.0
    dilation: int = 0
    max_tokens_per_frame: int | None = None

    def __post_init__(self) -> None:
        _checks.number("confidence_threshold", self.confidence_threshold)
        _checks.number("fixation_scale", self.fixation_scale)
        _checks.count("dilation", self.dilation)
        for name in ("max_fixations_per_frame", "max_tokens_per_frame"):
            if getattr(self, name) is not None:
                _checks.count(name, getattr(self, name))

    def with_confidence_threshold(self, confidence_threshold: float) -> SparseReadoutOptions:
        """A copy with another threshold."""
        return replace(self, confidence_threshold=confidence_threshold)

    def with_max_fixations_per_frame(self, max_fixations_per_frame: int | None) -> SparseReadoutOptions:
        """A copy with another cap on cells."""
        return replace(self, max_fixations_per_frame=max_fixations_per_frame)

    def with_fixation_scale(self, fixation_scale: float) -> SparseReadoutOptions:
        """A copy with another growth of cells."""
        return replace(self, fixation_scale=fixation_scale)

    def with_dilation(self, dilation: int) -> SparseReadoutOptions:
        """A copy with another dilation."""
        return replace(self, dilation=dilation)

    def with_max_tokens_per_frame(self, max_tokens_per_frame: int | None) -> SparseReadoutOptions:
        """A copy with another cap on tokens."""
        return replace(self, max_tokens_per_frame=max_tokens_per_frame)


def as_options(options: SparseReadoutOptions | None) -> SparseReadoutOptions:
    """The options, or the defaults for None."""
    return SparseReadoutOptions() if options is None else options


Points = Any
"""Fixations: points, a set, or an array ``[n, 6]`` or ``[n, 7]`` as ``FixationSet`` and the wire hold them."""
