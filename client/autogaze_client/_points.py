"""One fixated cell as normalised geometry (spec: readout §1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autogaze_client._errors import InvalidInputError

MIN_EXTENT = 1e-6
"""The smallest extent of a cell, as a fraction of the image."""


def clamp(name: str, value: float, low: float, high: float) -> float:
    """The value within ``low..high``.

    Raises:
        InvalidInputError: it is NaN.
    """
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
        width = clamp("width", width, MIN_EXTENT, 1.0)
        height = clamp("height", height, MIN_EXTENT, 1.0)
        return cls(
            x=clamp("x", x, 0.0, 1.0),
            y=clamp("y", y, 0.0, 1.0),
            scale=max(width, height),
            confidence=clamp("confidence", confidence, 0.0, 1.0),
            width=width,
            height=height,
            grid=int(grid),
        )

    @classmethod
    def padding(cls) -> FixationPoint:
        """The filler point: centre (0.5, 0.5), extent 0.25, confidence 0."""
        return PADDING_POINT

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


PADDING_POINT = FixationPoint(x=0.5, y=0.5, scale=0.25, confidence=0.0, width=0.25, height=0.25)
