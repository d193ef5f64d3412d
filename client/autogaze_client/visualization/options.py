"""How to draw, and when an update counts as a whole frame (spec: visualization §5, §6)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autogaze_client._errors import InvalidInputError
from autogaze_client.visualization.cells import check_cell_scale
from autogaze_client.visualization.coverage import Coverage
from autogaze_client.visualization.modes import (
    AutoGazeMaskGeometryMode,
    AutoGazeMaskVisualizationMode,
    AutoGazeTensorInterframePath,
)

__all__ = [
    "DEFAULT_BLEND_ALPHA",
    "DEFAULT_KEYFRAME_DURATION",
    "DEFAULT_TENSOR_FULL_FRAME_UPDATE_MIN_RATIO",
    "DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RATIO",
    "DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RECTS",
    "AutoGazeRgbaVisualizationOptions",
    "AutoGazeTensorVisualizationOptions",
    "UpdatePolicy",
]

DEFAULT_BLEND_ALPHA = 0.38
"""Share of a colour where it is mixed into the frame."""

DEFAULT_KEYFRAME_DURATION = 30
"""Frames from one keyframe to the next."""

DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RECTS = 4
"""Rectangles that a tensor update copies one by one, at most."""

DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RATIO = 0.02
"""Share of the frame that such rectangles have in all, at most."""

DEFAULT_TENSOR_FULL_FRAME_UPDATE_MIN_RATIO = 0.45
"""Share of the frame from which a tensor update counts as one of the whole frame."""


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """Which way an interframe update takes; every way gives the same pixels.

    Attributes:
        full_frame_min_ratio: coverage from which it is a full-frame update; 0 = never.
        sparse_max_rects: rectangles up to which they are copied one by one; 0 = never.
        sparse_max_ratio: the sum of their areas, as a share of the frame, up to which they are.
    """

    full_frame_min_ratio: float = 0.0
    sparse_max_rects: int = DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RECTS
    sparse_max_ratio: float = DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RATIO

    def path(self, coverage: Coverage, rects: int, area: int) -> AutoGazeTensorInterframePath:
        """The way of an update that is no keyframe.

        Args:
            coverage: what it covers.
            rects: rectangles of its plan.
            area: pixels of these, overlaps counted for each.
        """
        pixels = coverage.width * coverage.height
        least = self.full_frame_min_ratio
        if least > 0 and coverage.pixel_count and coverage.pixel_count >= min(least, 1.0) * pixels:
            return AutoGazeTensorInterframePath.FULL_FRAME
        share = min(self.sparse_max_ratio, 1.0)
        if 0 < rects <= self.sparse_max_rects and share > 0 and area <= share * pixels:
            return AutoGazeTensorInterframePath.SPARSE_RECTS
        return AutoGazeTensorInterframePath.DENSE_MASK


def _check(cell_scale: float, blend_alpha: float, **ratios: float) -> None:
    check_cell_scale(cell_scale)
    if not math.isfinite(blend_alpha):
        raise InvalidInputError(f"blend_alpha is {blend_alpha}; it must be finite (it is clamped to 0..1)")
    for name, ratio in ratios.items():
        if not math.isfinite(ratio) or ratio < 0:
            raise InvalidInputError(f"{name} is {ratio}; it must be finite and at least 0 (0 = off)")


@dataclass(frozen=True, slots=True)
class AutoGazeRgbaVisualizationOptions:
    """How ``AutoGazeVisualizationState`` draws frames of one size.

    Attributes:
        width: of the frames, in pixels.
        height: of the frames, in pixels.
        cell_scale: grows the cells about their centres; raised to at least 1e-6.
        blend_alpha: share of a colour where it is mixed in, clamped to 0..1.
        mask_visualization_mode: the mask panel's style.
        mask_geometry_mode: which pixels cells stand for, in the mask and in the output.
        full_frame_update_min_ratio: coverage from which an update counts as one of the whole frame; 0 = never.

    Raises:
        InvalidInputError: a side is below 1, or a number is not finite.
    """

    width: int
    height: int
    cell_scale: float = 1.0
    blend_alpha: float = DEFAULT_BLEND_ALPHA
    mask_visualization_mode: AutoGazeMaskVisualizationMode = AutoGazeMaskVisualizationMode.IMAGE_MASK_ONLY
    mask_geometry_mode: AutoGazeMaskGeometryMode = AutoGazeMaskGeometryMode.NATIVE
    full_frame_update_min_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InvalidInputError(
                f"the frame is {self.width}x{self.height} pixels; both sides must be at least 1"
            )
        _check(
            self.cell_scale,
            self.blend_alpha,
            full_frame_update_min_ratio=self.full_frame_update_min_ratio,
        )

    @property
    def policy(self) -> UpdatePolicy:
        """Which way updates take."""
        return UpdatePolicy(self.full_frame_update_min_ratio)

    def with_mask_visualization_mode(
        self, mode: AutoGazeMaskVisualizationMode
    ) -> AutoGazeRgbaVisualizationOptions:
        """A copy with another style of the mask panel."""
        return replace(self, mask_visualization_mode=mode)

    def with_mask_geometry_mode(self, mode: AutoGazeMaskGeometryMode) -> AutoGazeRgbaVisualizationOptions:
        """A copy with another geometry."""
        return replace(self, mask_geometry_mode=mode)

    def with_full_frame_update_policy(self, min_ratio: float) -> AutoGazeRgbaVisualizationOptions:
        """A copy with another ratio from which an update counts as one of the whole frame."""
        return replace(self, full_frame_update_min_ratio=min_ratio)


@dataclass(frozen=True, slots=True)
class AutoGazeTensorVisualizationOptions:
    """How ``AutoGazeTensorVisualizationState`` draws; the size is the tensor's.

    Attributes:
        cell_scale: as ``AutoGazeRgbaVisualizationOptions``.
        blend_alpha: likewise.
        mask_visualization_mode: likewise.
        mask_geometry_mode: likewise.
        sparse_update_max_rects: rectangles that an update copies one by one, at most; 0 = never.
        sparse_update_max_ratio: share of the frame that these have in all, at most; 0 = never.
        full_frame_update_min_ratio: coverage from which an update counts as one of the whole frame; 0 = never.

    Raises:
        InvalidInputError: a number is not finite, or a limit is negative.
    """

    cell_scale: float = 1.0
    blend_alpha: float = DEFAULT_BLEND_ALPHA
    mask_visualization_mode: AutoGazeMaskVisualizationMode = AutoGazeMaskVisualizationMode.IMAGE_MASK_ONLY
    mask_geometry_mode: AutoGazeMaskGeometryMode = AutoGazeMaskGeometryMode.NATIVE
    sparse_update_max_rects: int = DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RECTS
    sparse_update_max_ratio: float = DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RATIO
    full_frame_update_min_ratio: float = DEFAULT_TENSOR_FULL_FRAME_UPDATE_MIN_RATIO

    def __post_init__(self) -> None:
        _check(
            self.cell_scale,
            self.blend_alpha,
            sparse_update_max_rects=self.sparse_update_max_rects,
            sparse_update_max_ratio=self.sparse_update_max_ratio,
            full_frame_update_min_ratio=self.full_frame_update_min_ratio,
        )

    @property
    def policy(self) -> UpdatePolicy:
        """Which way updates take."""
        return UpdatePolicy(
            self.full_frame_update_min_ratio, self.sparse_update_max_rects, self.sparse_update_max_ratio
        )

    def with_mask_visualization_mode(
        self, mode: AutoGazeMaskVisualizationMode
    ) -> AutoGazeTensorVisualizationOptions:
        """A copy with another style of the mask panel."""
        return replace(self, mask_visualization_mode=mode)

    def with_mask_geometry_mode(self, mode: AutoGazeMaskGeometryMode) -> AutoGazeTensorVisualizationOptions:
        """A copy with another geometry."""
        return replace(self, mask_geometry_mode=mode)

    def with_full_frame_update_policy(self, min_ratio: float) -> AutoGazeTensorVisualizationOptions:
        """A copy with another ratio from which an update counts as one of the whole frame."""
        return replace(self, full_frame_update_min_ratio=min_ratio)

    def with_sparse_update_policy(
        self, max_rects: int, max_ratio: float
    ) -> AutoGazeTensorVisualizationOptions:
        """A copy with other limits for copying rectangles one by one."""
        return replace(self, sparse_update_max_rects=max_rects, sparse_update_max_ratio=max_ratio)
