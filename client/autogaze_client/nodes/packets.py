"""What a pipeline writes for each clip (spec: pipeline §6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import Array
from autogaze_client._errors import InvalidInputError
from autogaze_client.fixations import FixationSet, FrameFixationTrace
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.layouts import AutoGazeScaleTokenLayout
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.nodes.clips import AutoGazeClip
from autogaze_client.nodes.pipeline import FramePoints
from autogaze_client.readout import _checks
from autogaze_client.readout.grids import SparseReadoutGrid, SparseReadoutOptions, SparseReadoutRects
from autogaze_client.readout.image_readout import trace_frame_readout_rects, trace_frame_readout_tokens
from autogaze_client.readout.pixel_masks import frame_fixation_masks_tensor
from autogaze_client.readout.pyramid import (
    ImagePyramidLevel,
    ImagePyramidMaskOptions,
    ImagePyramidTokens,
    tokenize_masked_image_pyramid,
)
from autogaze_client.readout.video_coords import (
    trace_to_video_readout_coord_tensor,
    trace_to_video_readout_coords,
)
from autogaze_client.readout.video_grids import SparseVideoReadoutProjection
from autogaze_client.readout.video_readout import trace_to_video_readout_tokens

__all__ = ["AutoGazePipelinePacket"]


@dataclass(frozen=True, eq=False)
class AutoGazePipelinePacket:
    """A clip and what was asked for of it.

    Attributes:
        clip: as the input node gave it.
        mode: how frames became the model's input.
        top_k: fixations wanted at least.
        traces: one a clip, where ``emit_traces`` asked for them.
        generated: the tokens, one row a clip, where ``emit_generated`` asked for them.
        readout_points: ``[clip][frame][point]``, where ``emit_readout_points`` asked for them.
        scale_layouts: the scales of the engine's ids; empty where it did not run.
    """

    clip: AutoGazeClip
    mode: AutoGazeInferenceMode
    top_k: int
    traces: tuple[FrameFixationTrace, ...] | None = None
    generated: AutoGazeGenerateOutput | None = None
    readout_points: FramePoints | None = None
    scale_layouts: tuple[AutoGazeScaleTokenLayout, ...] = ()

    def gaze(self, row: int = 0) -> FrameFixationTrace:
        """A clip's fixations: from the traces, else the readout points, else the tokens.

        Raises:
            InvalidInputError: none was asked for, or there is no such clip.
        """
        _checks.index("row", row, self.clip.batch, "packet")
        if self.traces is not None:
            return self.traces[row]
        if self.readout_points is not None:
            return FrameFixationTrace(FixationSet(points) for points in self.readout_points[row])
        if self.generated is not None:
            return self.generated.traces()[row]
        raise InvalidInputError(
            "the packet holds no gaze; set emit_traces, emit_readout_points or emit_generated in the pipeline's config"
        )

    def frame_tensor(self, frame: int) -> Array:
        """One frame of every clip, ``[B, C, H, W]``: RGB in 0..1 of RGBA clips, a tensor clip's own values.

        Raises:
            InvalidInputError: there is no such frame.
        """
        return self.clip.tensor()[:, _checks.index("frame", frame, self.clip.clip_len, "clip")]

    def frame_mask(self, frame: int, height: int, width: int) -> Array:
        """Which pixels the fixations of a frame cover, float32 ``[B, 1, height, width]``, like the clip's tensor.

        Raises:
            InvalidInputError: no traces were asked for, or there is no such frame.
        """
        if self.traces is None:
            raise InvalidInputError("the packet holds no traces; set emit_traces in the pipeline's config")
        _checks.index("frame", frame, self.clip.clip_len, "clip")
        return frame_fixation_masks_tensor(self.traces, frame, height, width, like=self.clip.tensor())

    def frame_pyramid_tokens(
        self, frame: int, levels: Sequence[ImagePyramidLevel], options: ImagePyramidMaskOptions | None = None
    ) -> ImagePyramidTokens:
        """A frame's weighted pyramid tokens; see ``tokenize_masked_image_pyramid``."""
        image = self.frame_tensor(frame)
        mask = self.frame_mask(frame, int(image.shape[2]), int(image.shape[3]))
        return tokenize_masked_image_pyramid(image, mask, levels, options)

    def frame_readout_tokens(
        self,
        frame: int,
        grid: SparseReadoutGrid,
        options: SparseReadoutOptions | None = None,
        *,
        row: int = 0,
    ) -> NDArray[np.int64]:
        """The tokens of an image grid that a frame's fixations overlap."""
        _checks.index("frame", frame, self.clip.clip_len, "clip")
        return trace_frame_readout_tokens(self.gaze(row), frame, grid, options)

    def frame_readout_rects(
        self, frame: int, options: SparseReadoutOptions | None = None, *, row: int = 0
    ) -> SparseReadoutRects:
        """The rectangles of a frame's fixations."""
        _checks.index("frame", frame, self.clip.clip_len, "clip")
        return trace_frame_readout_rects(self.gaze(row), frame, options)

    def video_readout_tokens(
        self, projection: SparseVideoReadoutProjection, *, row: int = 0
    ) -> NDArray[np.int64]:
        """The tokens of a video model that a clip's fixations overlap."""
        return trace_to_video_readout_tokens(self.gaze(row), *_parts(projection))

    def video_readout_coords(
        self, projection: SparseVideoReadoutProjection, *, row: int = 0
    ) -> NDArray[np.int64]:
        """The same as int64 ``[n, 4]``: clip, time, row, column."""
        return trace_to_video_readout_coords(self.gaze(row), *_parts(projection), batch_index=row)

    def video_readout_coord_tensor(
        self, projection: SparseVideoReadoutProjection, *, row: int = 0, like: Array | None = None
    ) -> Array:
        """The same as a tensor like ``like``."""
        return trace_to_video_readout_coord_tensor(self.gaze(row), projection, row, like=like)


def _parts(projection: SparseVideoReadoutProjection) -> tuple[Any, Any, Any, Any]:
    return (
        projection.image_grid,
        projection.video_grid,
        projection.readout_options,
        projection.video_options,
    )
