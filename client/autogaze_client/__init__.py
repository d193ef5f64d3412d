"""AutoGaze client SDK: numpy and tritonclient only; pictures, video and progress bars are extras.

Names are imported on first use, so that a process that wants the vocabulary alone (the server's, for
instance) does not load gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autogaze_client._exports import HOME

if TYPE_CHECKING:
    from autogaze_client._async_client import AsyncGazeClient
    from autogaze_client._client import GazeClient
    from autogaze_client._config import Timeouts, TLSConfig
    from autogaze_client._errors import (
        AutoGazeError,
        CheckpointError,
        DeadlineExceededError,
        InferenceError,
        InvalidInputError,
        MissingExtraError,
        NotFoundError,
        ServerUnavailableError,
        VideoDecodeError,
    )
    from autogaze_client.device_mask import AutoGazeDeviceMask, AutoGazeMaskPlanStats
    from autogaze_client.fixations import FixationBounds, FixationPoint, FixationSet, FrameFixationTrace
    from autogaze_client.generated import AutoGazeGenerateOutput, AutoGazeScaleTokenMask
    from autogaze_client.geometry import cell_pixel_rects, fixation_pixel_rects
    from autogaze_client.layouts import (
        AutoGazeScaleTokenLayout,
        layouts_from_grids,
        parse_scales,
        scale_token_layouts,
        square_grid,
    )
    from autogaze_client.modes import AutoGazeInferenceMode
    from autogaze_client.nodes.clips import (
        AutoGazeRgbaClip,
        AutoGazeRgbaClipShape,
        AutoGazeRgbaFrameClip,
        AutoGazeTensorClip,
    )
    from autogaze_client.nodes.engines import (
        GazeEngine,
        PatchDiffEngine,
    )
    from autogaze_client.nodes.frame_queue import (
        AutoGazeRgbaFrameQueue,
    )
    from autogaze_client.nodes.graph import (
        AutoGazeInputNode,
        AutoGazeOutputNode,
        AutoGazeTensorPipeline,
        AutoGazeTensorPipelineConfig,
        FnOutputNode,
        RgbaClipInput,
        TensorClipInput,
        VecOutputNode,
    )
    from autogaze_client.nodes.packets import (
        AutoGazePipelinePacket,
    )
    from autogaze_client.nodes.pipeline import (
        AutoGazePipeline,
    )
    from autogaze_client.nodes.realtime import (
        DEFAULT_MAX_IN_FLIGHT,
        DEFAULT_MODEL_GENERATION_BUDGET,
        DEFAULT_PATCH_DIFF_GRID_SIZE,
        DEFAULT_PATCH_DIFF_THRESHOLD,
        DEFAULT_REALTIME_FRAMES_PER_CLIP,
        DEFAULT_REALTIME_TOP_K,
        DEFAULT_TILED_FRAMES_PER_CLIP,
        DEFAULT_TILED_MAX_GAZE_TOKENS,
        DEFAULT_TILED_TILE_BATCH_SIZE,
        DEFAULT_TILED_TOP_K,
        AutoGazeInferenceSequencer,
        AutoGazeRealtimePolicy,
        should_use_streaming_cache,
    )
    from autogaze_client.readout.grids import (
        SparseReadoutGrid,
        SparseReadoutOptions,
        SparseReadoutRect,
        SparseReadoutRects,
    )
    from autogaze_client.readout.image_readout import (
        fixation_points_to_readout_rects,
        fixation_points_to_readout_tokens,
        generated_frame_readout_rects,
        generated_frame_readout_tokens,
        generated_to_frame_readout_rects,
        generated_to_frame_readout_tokens,
        readout_rects_to_tokens,
        trace_frame_readout_rects,
        trace_frame_readout_tokens,
        trace_to_frame_readout_rects,
        trace_to_frame_readout_tokens,
    )
    from autogaze_client.readout.metrics import (
        DEFAULT_METRIC_EMA_ALPHA,
        AutoGazeEmaMetric,
        AutoGazeGazeRatioStats,
        AutoGazePsnrStats,
        ema_metric,
        format_fps,
        format_gaze_ratio_percent,
        format_psnr_db,
        fps_from_millis,
        rgba_psnr_db,
        sanitize_gaze_ratio,
        task_loss_requirement_from_l1_db,
        task_loss_requirement_to_l1_db,
    )
    from autogaze_client.readout.patch_diff import (
        AutoGazePatchDiffConfig,
        AutoGazePatchDiffDeviceMask,
        AutoGazeReadoutRunOutput,
        AutoGazeReadoutStats,
        AutoGazeSparseMaskSource,
        patch_diff_device_mask,
        patch_diff_device_mask_async,
        patch_diff_points_to_traces,
        patch_diff_readout_points,
        patch_diff_readout_points_async,
        patch_diff_scores,
    )
    from autogaze_client.readout.pixel_masks import (
        apply_image_mask,
        fixation_image_mask_tensor,
        frame_fixation_masks_tensor,
    )
    from autogaze_client.readout.pyramid import (
        ImagePyramidLevel,
        ImagePyramidMask,
        ImagePyramidMaskOptions,
        ImagePyramidTokens,
        SparseImagePyramidTokens,
        image_pyramid_masks,
        sparsify_image_pyramid_tokens,
        tokenize_masked_image_pyramid,
    )
    from autogaze_client.readout.trace_store import AutoGazeTraceStore
    from autogaze_client.readout.video_coords import (
        batched_video_readout_tokens_to_coord_tensor,
        batched_video_readout_tokens_to_coords,
        frame_readout_rects_to_video_coord_tensor,
        frame_readout_rects_to_video_coords,
        frame_readout_tokens_to_video_coord_tensor,
        frame_readout_tokens_to_video_coords,
        generated_to_video_readout_coord_tensor,
        generated_to_video_readout_coords,
        trace_to_video_readout_coord_tensor,
        trace_to_video_readout_coords,
        video_readout_coords_to_tensor,
        video_readout_tokens_to_coord_tensor,
        video_readout_tokens_to_coords,
    )
    from autogaze_client.readout.video_grids import (
        SparseVideoPatchGeometry,
        SparseVideoReadoutGrid,
        SparseVideoReadoutOptions,
        SparseVideoReadoutProjection,
    )
    from autogaze_client.readout.video_readout import (
        frame_readout_rects_to_video_tokens,
        frame_readout_tokens_to_video_tokens,
        generated_to_video_readout_tokens,
        trace_to_video_readout_tokens,
    )
    from autogaze_client.report import ReportPaths, write_report
    from autogaze_client.result import GazeResult, GazeTimings, SourceSize
    from autogaze_client.statistics import ModelStatistics, ServerStatistics
    from autogaze_client.video import VideoReader, VideoWriter
    from autogaze_client.visualization.masks import (
        fixation_effective_scale_mask_rgba,
        fixation_effective_scale_mask_rgba_into,
        fixation_image_mask_only_rgba,
        fixation_image_mask_only_rgba_into,
        fixation_image_overlay_mask_rgba,
        fixation_image_overlay_mask_rgba_into,
        fixation_mask_rgba,
        fixation_mask_rgba_into,
        fixation_scale_mask_rgba,
        fixation_scale_mask_rgba_into,
        fixation_scale_rows_mask_rgba,
        fixation_scale_rows_mask_rgba_into,
    )
    from autogaze_client.visualization.modes import (
        AutoGazeMaskGeometryMode,
        AutoGazeMaskVisualizationMode,
        AutoGazeTensorInterframePath,
        AutoGazeVisualizationMode,
    )
    from autogaze_client.visualization.options import (
        DEFAULT_BLEND_ALPHA,
        DEFAULT_KEYFRAME_DURATION,
        DEFAULT_TENSOR_FULL_FRAME_UPDATE_MIN_RATIO,
        DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RATIO,
        DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RECTS,
        AutoGazeRgbaVisualizationOptions,
        AutoGazeTensorVisualizationOptions,
    )
    from autogaze_client.visualization.plans import (
        AutoGazeSparseUpdatePlan,
        FixationPixelRect,
        copy_sparse_update_rgba,
        copy_sparse_update_tensor,
        fixation_alpha_mask,
        fixation_cell_rects,
        fixation_deduplicated_cell_rects,
        fixation_deduplicated_sparse_update_plan,
        fixation_effective_alpha_mask,
        fixation_effective_cell_rects,
        fixation_effective_sparse_update_plan,
        fixation_rect_union_pixel_count,
        fixation_sparse_update_plan,
    )
    from autogaze_client.visualization.results import (
        AutoGazeRgbaVisualizationBuffers,
        AutoGazeVisualization,
        AutoGazeVisualizationPanels,
        AutoGazeVisualizationPanelsView,
    )
    from autogaze_client.visualization.state import (
        AutoGazeVisualizationState,
        visualize_fixations_rgba,
    )
    from autogaze_client.visualization.tensor_results import (
        AutoGazeTensorVisualization,
        AutoGazeTensorVisualizationPanels,
    )
    from autogaze_client.visualization.tensor_state import (
        AutoGazeTensorVisualizationState,
        normalized_rgb_clip_to_unit_rgba_tensor,
    )
    from autogaze_client.visualize import (
        contact_sheet,
        legend_strip,
        scale_color,
        scale_mask_image,
        side_by_side,
    )

__all__ = [
    "AsyncGazeClient",
    "AutoGazeDeviceMask",
    "AutoGazeEmaMetric",
    "AutoGazeError",
    "AutoGazeGazeRatioStats",
    "AutoGazeGenerateOutput",
    "AutoGazeInferenceMode",
    "AutoGazeInferenceSequencer",
    "AutoGazeInputNode",
    "AutoGazeMaskGeometryMode",
    "AutoGazeMaskPlanStats",
    "AutoGazeMaskVisualizationMode",
    "AutoGazeOutputNode",
    "AutoGazePatchDiffConfig",
    "AutoGazePatchDiffDeviceMask",
    "AutoGazePipeline",
    "AutoGazePipelinePacket",
    "AutoGazePsnrStats",
    "AutoGazeReadoutRunOutput",
    "AutoGazeReadoutStats",
    "AutoGazeRealtimePolicy",
    "AutoGazeRgbaClip",
    "AutoGazeRgbaClipShape",
    "AutoGazeRgbaFrameClip",
    "AutoGazeRgbaFrameQueue",
    "AutoGazeRgbaVisualizationBuffers",
    "AutoGazeRgbaVisualizationOptions",
    "AutoGazeScaleTokenLayout",
    "AutoGazeScaleTokenMask",
    "AutoGazeSparseMaskSource",
    "AutoGazeSparseUpdatePlan",
    "AutoGazeTensorClip",
    "AutoGazeTensorInterframePath",
    "AutoGazeTensorPipeline",
    "AutoGazeTensorPipelineConfig",
    "AutoGazeTensorVisualization",
    "AutoGazeTensorVisualizationOptions",
    "AutoGazeTensorVisualizationPanels",
    "AutoGazeTensorVisualizationState",
    "AutoGazeTraceStore",
    "AutoGazeVisualization",
    "AutoGazeVisualizationMode",
    "AutoGazeVisualizationPanels",
    "AutoGazeVisualizationPanelsView",
    "AutoGazeVisualizationState",
    "CheckpointError",
    "DEFAULT_BLEND_ALPHA",
    "DEFAULT_KEYFRAME_DURATION",
    "DEFAULT_MAX_IN_FLIGHT",
    "DEFAULT_METRIC_EMA_ALPHA",
    "DEFAULT_MODEL_GENERATION_BUDGET",
    "DEFAULT_PATCH_DIFF_GRID_SIZE",
    "DEFAULT_PATCH_DIFF_THRESHOLD",
    "DEFAULT_REALTIME_FRAMES_PER_CLIP",
    "DEFAULT_REALTIME_TOP_K",
    "DEFAULT_TENSOR_FULL_FRAME_UPDATE_MIN_RATIO",
    "DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RATIO",
    "DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RECTS",
    "DEFAULT_TILED_FRAMES_PER_CLIP",
    "DEFAULT_TILED_MAX_GAZE_TOKENS",
    "DEFAULT_TILED_TILE_BATCH_SIZE",
    "DEFAULT_TILED_TOP_K",
    "DeadlineExceededError",
    "FixationBounds",
    "FixationPixelRect",
    "FixationPoint",
    "FixationSet",
    "FnOutputNode",
    "FrameFixationTrace",
    "GazeClient",
    "GazeEngine",
    "GazeResult",
    "GazeTimings",
    "ImagePyramidLevel",
    "ImagePyramidMask",
    "ImagePyramidMaskOptions",
    "ImagePyramidTokens",
    "InferenceError",
    "InvalidInputError",
    "MissingExtraError",
    "ModelStatistics",
    "NotFoundError",
    "PatchDiffEngine",
    "ReportPaths",
    "RgbaClipInput",
    "ServerStatistics",
    "ServerUnavailableError",
    "SourceSize",
    "SparseImagePyramidTokens",
    "SparseReadoutGrid",
    "SparseReadoutOptions",
    "SparseReadoutRect",
    "SparseReadoutRects",
    "SparseVideoPatchGeometry",
    "SparseVideoReadoutGrid",
    "SparseVideoReadoutOptions",
    "SparseVideoReadoutProjection",
    "TLSConfig",
    "TensorClipInput",
    "Timeouts",
    "VecOutputNode",
    "VideoDecodeError",
    "VideoReader",
    "VideoWriter",
    "apply_image_mask",
    "batched_video_readout_tokens_to_coord_tensor",
    "batched_video_readout_tokens_to_coords",
    "cell_pixel_rects",
    "contact_sheet",
    "copy_sparse_update_rgba",
    "copy_sparse_update_tensor",
    "ema_metric",
    "fixation_alpha_mask",
    "fixation_cell_rects",
    "fixation_deduplicated_cell_rects",
    "fixation_deduplicated_sparse_update_plan",
    "fixation_effective_alpha_mask",
    "fixation_effective_cell_rects",
    "fixation_effective_scale_mask_rgba",
    "fixation_effective_scale_mask_rgba_into",
    "fixation_effective_sparse_update_plan",
    "fixation_image_mask_only_rgba",
    "fixation_image_mask_only_rgba_into",
    "fixation_image_mask_tensor",
    "fixation_image_overlay_mask_rgba",
    "fixation_image_overlay_mask_rgba_into",
    "fixation_mask_rgba",
    "fixation_mask_rgba_into",
    "fixation_pixel_rects",
    "fixation_points_to_readout_rects",
    "fixation_points_to_readout_tokens",
    "fixation_rect_union_pixel_count",
    "fixation_scale_mask_rgba",
    "fixation_scale_mask_rgba_into",
    "fixation_scale_rows_mask_rgba",
    "fixation_scale_rows_mask_rgba_into",
    "fixation_sparse_update_plan",
    "format_fps",
    "format_gaze_ratio_percent",
    "format_psnr_db",
    "fps_from_millis",
    "frame_fixation_masks_tensor",
    "frame_readout_rects_to_video_coord_tensor",
    "frame_readout_rects_to_video_coords",
    "frame_readout_rects_to_video_tokens",
    "frame_readout_tokens_to_video_coord_tensor",
    "frame_readout_tokens_to_video_coords",
    "frame_readout_tokens_to_video_tokens",
    "generated_frame_readout_rects",
    "generated_frame_readout_tokens",
    "generated_to_frame_readout_rects",
    "generated_to_frame_readout_tokens",
    "generated_to_video_readout_coord_tensor",
    "generated_to_video_readout_coords",
    "generated_to_video_readout_tokens",
    "image_pyramid_masks",
    "layouts_from_grids",
    "legend_strip",
    "normalized_rgb_clip_to_unit_rgba_tensor",
    "parse_scales",
    "patch_diff_device_mask",
    "patch_diff_device_mask_async",
    "patch_diff_points_to_traces",
    "patch_diff_readout_points",
    "patch_diff_readout_points_async",
    "patch_diff_scores",
    "readout_rects_to_tokens",
    "rgba_psnr_db",
    "sanitize_gaze_ratio",
    "scale_color",
    "scale_mask_image",
    "scale_token_layouts",
    "should_use_streaming_cache",
    "side_by_side",
    "sparsify_image_pyramid_tokens",
    "square_grid",
    "task_loss_requirement_from_l1_db",
    "task_loss_requirement_to_l1_db",
    "tokenize_masked_image_pyramid",
    "trace_frame_readout_rects",
    "trace_frame_readout_tokens",
    "trace_to_frame_readout_rects",
    "trace_to_frame_readout_tokens",
    "trace_to_video_readout_coord_tensor",
    "trace_to_video_readout_coords",
    "trace_to_video_readout_tokens",
    "video_readout_coords_to_tensor",
    "video_readout_tokens_to_coord_tensor",
    "video_readout_tokens_to_coords",
    "visualize_fixations_rgba",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
