"""A mask that stays where it was made, with its size in numbers (spec: visualization §2)."""

from __future__ import annotations

from dataclasses import dataclass

from autogaze_client._arrays import Array

__all__ = ["AutoGazeDeviceMask", "AutoGazeMaskPlanStats"]


@dataclass(frozen=True, slots=True)
class AutoGazeMaskPlanStats:
    """How much a mask covers.

    Attributes:
        rect_count: rectangles that it is made of.
        row_span_count: runs of covered pixels, over all pixel rows.
        pixel_count: covered pixels.
    """

    rect_count: int
    row_span_count: int
    pixel_count: int

    def update_ratio(self, width: int, height: int) -> float:
        """Covered pixels / pixels of a frame; a side of 0 counts as 1."""
        return self.pixel_count / (max(width, 1) * max(height, 1))


@dataclass(frozen=True, eq=False)
class AutoGazeDeviceMask:
    """A mask on the device that made it.

    Attributes:
        alpha: float32 ``[H, W, 1]``, 0..1.
        stats: what it covers.
    """

    alpha: Array
    stats: AutoGazeMaskPlanStats
