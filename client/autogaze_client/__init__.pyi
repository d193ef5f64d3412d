"""The public names, for type checkers; ``_exports.py`` says the same at run time."""

from autogaze_client._async_client import AsyncGazeClient as AsyncGazeClient
from autogaze_client._client import GazeClient as GazeClient
from autogaze_client._config import Timeouts as Timeouts
from autogaze_client._config import TLSConfig as TLSConfig
from autogaze_client._errors import AutoGazeError as AutoGazeError
from autogaze_client._errors import CheckpointError as CheckpointError
from autogaze_client._errors import DeadlineExceededError as DeadlineExceededError
from autogaze_client._errors import InferenceError as InferenceError
from autogaze_client._errors import InvalidInputError as InvalidInputError
from autogaze_client._errors import MissingExtraError as MissingExtraError
from autogaze_client._errors import NotFoundError as NotFoundError
from autogaze_client._errors import PlanBuildError as PlanBuildError
from autogaze_client._errors import PlanMismatchError as PlanMismatchError
from autogaze_client._errors import RequestCancelledError as RequestCancelledError
from autogaze_client._errors import ServerUnavailableError as ServerUnavailableError
from autogaze_client._errors import StreamExpired as StreamExpired
from autogaze_client._errors import VideoDecodeError as VideoDecodeError
from autogaze_client.device_mask import AutoGazeDeviceMask as AutoGazeDeviceMask
from autogaze_client.device_mask import AutoGazeMaskPlanStats as AutoGazeMaskPlanStats
from autogaze_client.fixations import FixationBounds as FixationBounds
from autogaze_client.fixations import FixationPoint as FixationPoint
from autogaze_client.fixations import FixationSet as FixationSet
from autogaze_client.fixations import FrameFixationTrace as FrameFixationTrace
from autogaze_client.generated import AutoGazeGenerateOutput as AutoGazeGenerateOutput
from autogaze_client.generated import AutoGazeScaleTokenMask as AutoGazeScaleTokenMask
from autogaze_client.geometry import cell_pixel_rects as cell_pixel_rects
from autogaze_client.geometry import fixation_pixel_rects as fixation_pixel_rects
from autogaze_client.layouts import AutoGazeScaleTokenLayout as AutoGazeScaleTokenLayout
from autogaze_client.layouts import layouts_from_grids as layouts_from_grids
from autogaze_client.layouts import parse_scales as parse_scales
from autogaze_client.layouts import scale_token_layouts as scale_token_layouts
from autogaze_client.layouts import square_grid as square_grid
from autogaze_client.modes import AutoGazeInferenceMode as AutoGazeInferenceMode
from autogaze_client.nodes.clips import AutoGazeRgbaClip as AutoGazeRgbaClip
from autogaze_client.nodes.clips import AutoGazeRgbaClipShape as AutoGazeRgbaClipShape
from autogaze_client.nodes.clips import AutoGazeRgbaFrameClip as AutoGazeRgbaFrameClip
from autogaze_client.nodes.clips import AutoGazeTensorClip as AutoGazeTensorClip
from autogaze_client.nodes.engines import GazeEngine as GazeEngine
from autogaze_client.nodes.engines import PatchDiffEngine as PatchDiffEngine
from autogaze_client.nodes.frame_queue import AutoGazeRgbaFrameQueue as AutoGazeRgbaFrameQueue
from autogaze_client.nodes.graph import AutoGazeInputNode as AutoGazeInputNode
from autogaze_client.nodes.graph import AutoGazeOutputNode as AutoGazeOutputNode
from autogaze_client.nodes.graph import AutoGazeTensorPipeline as AutoGazeTensorPipeline
from autogaze_client.nodes.graph import AutoGazeTensorPipelineConfig as AutoGazeTensorPipelineConfig
from autogaze_client.nodes.graph import FnOutputNode as FnOutputNode
from autogaze_client.nodes.graph import RgbaClipInput as RgbaClipInput
from autogaze_client.nodes.graph import TensorClipInput as TensorClipInput
from autogaze_client.nodes.graph import VecOutputNode as VecOutputNode
from autogaze_client.nodes.packets import AutoGazePipelinePacket as AutoGazePipelinePacket
from autogaze_client.nodes.pipeline import AutoGazePipeline as AutoGazePipeline
from autogaze_client.nodes.pipeline import AutoGazeTeacher as AutoGazeTeacher
from autogaze_client.nodes.prepared import AutoGazePreparedRun as AutoGazePreparedRun
from autogaze_client.nodes.prepared import FrameStream as FrameStream
from autogaze_client.nodes.prepared import prepare_rgba_clip_for_trace as prepare_rgba_clip_for_trace
from autogaze_client.nodes.prepared import readout_prepared_run as readout_prepared_run
from autogaze_client.nodes.prepared import readout_prepared_run_async as readout_prepared_run_async
from autogaze_client.nodes.prepared import trace_prepared_run as trace_prepared_run
from autogaze_client.nodes.prepared import trace_prepared_run_async as trace_prepared_run_async
from autogaze_client.nodes.realtime import DEFAULT_MAX_IN_FLIGHT as DEFAULT_MAX_IN_FLIGHT
from autogaze_client.nodes.realtime import DEFAULT_MODEL_GENERATION_BUDGET as DEFAULT_MODEL_GENERATION_BUDGET
from autogaze_client.nodes.realtime import DEFAULT_PATCH_DIFF_GRID_SIZE as DEFAULT_PATCH_DIFF_GRID_SIZE
from autogaze_client.nodes.realtime import DEFAULT_PATCH_DIFF_THRESHOLD as DEFAULT_PATCH_DIFF_THRESHOLD
from autogaze_client.nodes.realtime import (
    DEFAULT_REALTIME_FRAMES_PER_CLIP as DEFAULT_REALTIME_FRAMES_PER_CLIP,
)
from autogaze_client.nodes.realtime import DEFAULT_REALTIME_TOP_K as DEFAULT_REALTIME_TOP_K
from autogaze_client.nodes.realtime import DEFAULT_TILED_FRAMES_PER_CLIP as DEFAULT_TILED_FRAMES_PER_CLIP
from autogaze_client.nodes.realtime import DEFAULT_TILED_MAX_GAZE_TOKENS as DEFAULT_TILED_MAX_GAZE_TOKENS
from autogaze_client.nodes.realtime import DEFAULT_TILED_TILE_BATCH_SIZE as DEFAULT_TILED_TILE_BATCH_SIZE
from autogaze_client.nodes.realtime import DEFAULT_TILED_TOP_K as DEFAULT_TILED_TOP_K
from autogaze_client.nodes.realtime import AutoGazeInferenceSequencer as AutoGazeInferenceSequencer
from autogaze_client.nodes.realtime import AutoGazeRealtimePolicy as AutoGazeRealtimePolicy
from autogaze_client.nodes.realtime import should_use_streaming_cache as should_use_streaming_cache
from autogaze_client.readout.coverage_stop import AutoGazeCoverageTracker as AutoGazeCoverageTracker
from autogaze_client.readout.coverage_stop import coverage_generation_budget as coverage_generation_budget
from autogaze_client.readout.grids import SparseReadoutGrid as SparseReadoutGrid
from autogaze_client.readout.grids import SparseReadoutOptions as SparseReadoutOptions
from autogaze_client.readout.grids import SparseReadoutRect as SparseReadoutRect
from autogaze_client.readout.grids import SparseReadoutRects as SparseReadoutRects
from autogaze_client.readout.image_readout import (
    fixation_points_to_readout_rects as fixation_points_to_readout_rects,
)
from autogaze_client.readout.image_readout import (
    fixation_points_to_readout_tokens as fixation_points_to_readout_tokens,
)
from autogaze_client.readout.image_readout import (
    generated_frame_readout_rects as generated_frame_readout_rects,
)
from autogaze_client.readout.image_readout import (
    generated_frame_readout_tokens as generated_frame_readout_tokens,
)
from autogaze_client.readout.image_readout import (
    generated_to_frame_readout_rects as generated_to_frame_readout_rects,
)
from autogaze_client.readout.image_readout import (
    generated_to_frame_readout_tokens as generated_to_frame_readout_tokens,
)
from autogaze_client.readout.image_readout import readout_rects_to_tokens as readout_rects_to_tokens
from autogaze_client.readout.image_readout import trace_frame_readout_rects as trace_frame_readout_rects
from autogaze_client.readout.image_readout import trace_frame_readout_tokens as trace_frame_readout_tokens
from autogaze_client.readout.image_readout import trace_to_frame_readout_rects as trace_to_frame_readout_rects
from autogaze_client.readout.image_readout import (
    trace_to_frame_readout_tokens as trace_to_frame_readout_tokens,
)
from autogaze_client.readout.metrics import DEFAULT_METRIC_EMA_ALPHA as DEFAULT_METRIC_EMA_ALPHA
from autogaze_client.readout.metrics import AutoGazeEmaMetric as AutoGazeEmaMetric
from autogaze_client.readout.metrics import AutoGazeGazeRatioStats as AutoGazeGazeRatioStats
from autogaze_client.readout.metrics import AutoGazePsnrStats as AutoGazePsnrStats
from autogaze_client.readout.metrics import ema_metric as ema_metric
from autogaze_client.readout.metrics import format_fps as format_fps
from autogaze_client.readout.metrics import format_gaze_ratio_percent as format_gaze_ratio_percent
from autogaze_client.readout.metrics import format_psnr_db as format_psnr_db
from autogaze_client.readout.metrics import fps_from_millis as fps_from_millis
from autogaze_client.readout.metrics import rgba_psnr_db as rgba_psnr_db
from autogaze_client.readout.metrics import sanitize_gaze_ratio as sanitize_gaze_ratio
from autogaze_client.readout.metrics import (
    task_loss_requirement_from_l1_db as task_loss_requirement_from_l1_db,
)
from autogaze_client.readout.metrics import task_loss_requirement_to_l1_db as task_loss_requirement_to_l1_db
from autogaze_client.readout.patch_diff import AutoGazePatchDiffConfig as AutoGazePatchDiffConfig
from autogaze_client.readout.patch_diff import AutoGazePatchDiffDeviceMask as AutoGazePatchDiffDeviceMask
from autogaze_client.readout.patch_diff import AutoGazeReadoutRunOutput as AutoGazeReadoutRunOutput
from autogaze_client.readout.patch_diff import AutoGazeReadoutStats as AutoGazeReadoutStats
from autogaze_client.readout.patch_diff import AutoGazeSparseMaskSource as AutoGazeSparseMaskSource
from autogaze_client.readout.patch_diff import patch_diff_device_mask as patch_diff_device_mask
from autogaze_client.readout.patch_diff import patch_diff_device_mask_async as patch_diff_device_mask_async
from autogaze_client.readout.patch_diff import patch_diff_points_to_traces as patch_diff_points_to_traces
from autogaze_client.readout.patch_diff import patch_diff_readout_points as patch_diff_readout_points
from autogaze_client.readout.patch_diff import (
    patch_diff_readout_points_async as patch_diff_readout_points_async,
)
from autogaze_client.readout.patch_diff import patch_diff_scores as patch_diff_scores
from autogaze_client.readout.pixel_masks import apply_image_mask as apply_image_mask
from autogaze_client.readout.pixel_masks import fixation_image_mask_tensor as fixation_image_mask_tensor
from autogaze_client.readout.pixel_masks import frame_fixation_masks_tensor as frame_fixation_masks_tensor
from autogaze_client.readout.pyramid import ImagePyramidLevel as ImagePyramidLevel
from autogaze_client.readout.pyramid import ImagePyramidMask as ImagePyramidMask
from autogaze_client.readout.pyramid import ImagePyramidMaskOptions as ImagePyramidMaskOptions
from autogaze_client.readout.pyramid import ImagePyramidTokens as ImagePyramidTokens
from autogaze_client.readout.pyramid import SparseImagePyramidTokens as SparseImagePyramidTokens
from autogaze_client.readout.pyramid import image_pyramid_masks as image_pyramid_masks
from autogaze_client.readout.pyramid import sparsify_image_pyramid_tokens as sparsify_image_pyramid_tokens
from autogaze_client.readout.pyramid import tokenize_masked_image_pyramid as tokenize_masked_image_pyramid
from autogaze_client.readout.trace_store import AutoGazeTraceStore as AutoGazeTraceStore
from autogaze_client.readout.video_coords import (
    batched_video_readout_tokens_to_coord_tensor as batched_video_readout_tokens_to_coord_tensor,
)
from autogaze_client.readout.video_coords import (
    batched_video_readout_tokens_to_coords as batched_video_readout_tokens_to_coords,
)
from autogaze_client.readout.video_coords import (
    frame_readout_rects_to_video_coord_tensor as frame_readout_rects_to_video_coord_tensor,
)
from autogaze_client.readout.video_coords import (
    frame_readout_rects_to_video_coords as frame_readout_rects_to_video_coords,
)
from autogaze_client.readout.video_coords import (
    frame_readout_tokens_to_video_coord_tensor as frame_readout_tokens_to_video_coord_tensor,
)
from autogaze_client.readout.video_coords import (
    frame_readout_tokens_to_video_coords as frame_readout_tokens_to_video_coords,
)
from autogaze_client.readout.video_coords import (
    generated_to_video_readout_coord_tensor as generated_to_video_readout_coord_tensor,
)
from autogaze_client.readout.video_coords import (
    generated_to_video_readout_coords as generated_to_video_readout_coords,
)
from autogaze_client.readout.video_coords import (
    trace_to_video_readout_coord_tensor as trace_to_video_readout_coord_tensor,
)
from autogaze_client.readout.video_coords import (
    trace_to_video_readout_coords as trace_to_video_readout_coords,
)
from autogaze_client.readout.video_coords import (
    video_readout_coords_to_tensor as video_readout_coords_to_tensor,
)
from autogaze_client.readout.video_coords import (
    video_readout_tokens_to_coord_tensor as video_readout_tokens_to_coord_tensor,
)
from autogaze_client.readout.video_coords import (
    video_readout_tokens_to_coords as video_readout_tokens_to_coords,
)
from autogaze_client.readout.video_grids import SparseVideoPatchGeometry as SparseVideoPatchGeometry
from autogaze_client.readout.video_grids import SparseVideoReadoutGrid as SparseVideoReadoutGrid
from autogaze_client.readout.video_grids import SparseVideoReadoutOptions as SparseVideoReadoutOptions
from autogaze_client.readout.video_grids import SparseVideoReadoutProjection as SparseVideoReadoutProjection
from autogaze_client.readout.video_readout import (
    frame_readout_rects_to_video_tokens as frame_readout_rects_to_video_tokens,
)
from autogaze_client.readout.video_readout import (
    frame_readout_tokens_to_video_tokens as frame_readout_tokens_to_video_tokens,
)
from autogaze_client.readout.video_readout import (
    generated_to_video_readout_tokens as generated_to_video_readout_tokens,
)
from autogaze_client.readout.video_readout import (
    trace_to_video_readout_tokens as trace_to_video_readout_tokens,
)
from autogaze_client.report import ReportPaths as ReportPaths
from autogaze_client.report import write_report as write_report
from autogaze_client.result import GazeResult as GazeResult
from autogaze_client.result import GazeTimings as GazeTimings
from autogaze_client.result import SourceSize as SourceSize
from autogaze_client.statistics import ModelStatistics as ModelStatistics
from autogaze_client.statistics import ServerStatistics as ServerStatistics
from autogaze_client.video import VideoReader as VideoReader
from autogaze_client.video_writer import VideoWriter as VideoWriter
from autogaze_client.visualization.masks import (
    fixation_effective_scale_mask_rgba as fixation_effective_scale_mask_rgba,
)
from autogaze_client.visualization.masks import (
    fixation_effective_scale_mask_rgba_into as fixation_effective_scale_mask_rgba_into,
)
from autogaze_client.visualization.masks import fixation_image_mask_only_rgba as fixation_image_mask_only_rgba
from autogaze_client.visualization.masks import (
    fixation_image_mask_only_rgba_into as fixation_image_mask_only_rgba_into,
)
from autogaze_client.visualization.masks import (
    fixation_image_overlay_mask_rgba as fixation_image_overlay_mask_rgba,
)
from autogaze_client.visualization.masks import (
    fixation_image_overlay_mask_rgba_into as fixation_image_overlay_mask_rgba_into,
)
from autogaze_client.visualization.masks import fixation_mask_rgba as fixation_mask_rgba
from autogaze_client.visualization.masks import fixation_mask_rgba_into as fixation_mask_rgba_into
from autogaze_client.visualization.masks import fixation_scale_mask_rgba as fixation_scale_mask_rgba
from autogaze_client.visualization.masks import fixation_scale_mask_rgba_into as fixation_scale_mask_rgba_into
from autogaze_client.visualization.masks import fixation_scale_rows_mask_rgba as fixation_scale_rows_mask_rgba
from autogaze_client.visualization.masks import (
    fixation_scale_rows_mask_rgba_into as fixation_scale_rows_mask_rgba_into,
)
from autogaze_client.visualization.modes import AutoGazeMaskGeometryMode as AutoGazeMaskGeometryMode
from autogaze_client.visualization.modes import AutoGazeMaskVisualizationMode as AutoGazeMaskVisualizationMode
from autogaze_client.visualization.modes import AutoGazeTensorInterframePath as AutoGazeTensorInterframePath
from autogaze_client.visualization.modes import AutoGazeVisualizationMode as AutoGazeVisualizationMode
from autogaze_client.visualization.options import DEFAULT_BLEND_ALPHA as DEFAULT_BLEND_ALPHA
from autogaze_client.visualization.options import DEFAULT_KEYFRAME_DURATION as DEFAULT_KEYFRAME_DURATION
from autogaze_client.visualization.options import (
    DEFAULT_TENSOR_FULL_FRAME_UPDATE_MIN_RATIO as DEFAULT_TENSOR_FULL_FRAME_UPDATE_MIN_RATIO,
)
from autogaze_client.visualization.options import (
    DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RATIO as DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RATIO,
)
from autogaze_client.visualization.options import (
    DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RECTS as DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RECTS,
)
from autogaze_client.visualization.options import (
    AutoGazeRgbaVisualizationOptions as AutoGazeRgbaVisualizationOptions,
)
from autogaze_client.visualization.options import (
    AutoGazeTensorVisualizationOptions as AutoGazeTensorVisualizationOptions,
)
from autogaze_client.visualization.plans import AutoGazeSparseUpdatePlan as AutoGazeSparseUpdatePlan
from autogaze_client.visualization.plans import FixationPixelRect as FixationPixelRect
from autogaze_client.visualization.plans import copy_sparse_update_rgba as copy_sparse_update_rgba
from autogaze_client.visualization.plans import copy_sparse_update_tensor as copy_sparse_update_tensor
from autogaze_client.visualization.plans import fixation_alpha_mask as fixation_alpha_mask
from autogaze_client.visualization.plans import fixation_cell_rects as fixation_cell_rects
from autogaze_client.visualization.plans import (
    fixation_deduplicated_cell_rects as fixation_deduplicated_cell_rects,
)
from autogaze_client.visualization.plans import (
    fixation_deduplicated_sparse_update_plan as fixation_deduplicated_sparse_update_plan,
)
from autogaze_client.visualization.plans import fixation_effective_alpha_mask as fixation_effective_alpha_mask
from autogaze_client.visualization.plans import fixation_effective_cell_rects as fixation_effective_cell_rects
from autogaze_client.visualization.plans import (
    fixation_effective_sparse_update_plan as fixation_effective_sparse_update_plan,
)
from autogaze_client.visualization.plans import (
    fixation_rect_union_pixel_count as fixation_rect_union_pixel_count,
)
from autogaze_client.visualization.plans import fixation_sparse_update_plan as fixation_sparse_update_plan
from autogaze_client.visualization.results import (
    AutoGazeRgbaVisualizationBuffers as AutoGazeRgbaVisualizationBuffers,
)
from autogaze_client.visualization.results import AutoGazeVisualization as AutoGazeVisualization
from autogaze_client.visualization.results import AutoGazeVisualizationPanels as AutoGazeVisualizationPanels
from autogaze_client.visualization.results import (
    AutoGazeVisualizationPanelsView as AutoGazeVisualizationPanelsView,
)
from autogaze_client.visualization.state import AutoGazeVisualizationState as AutoGazeVisualizationState
from autogaze_client.visualization.state import visualize_fixations_rgba as visualize_fixations_rgba
from autogaze_client.visualization.tensor_results import (
    AutoGazeTensorVisualization as AutoGazeTensorVisualization,
)
from autogaze_client.visualization.tensor_results import (
    AutoGazeTensorVisualizationPanels as AutoGazeTensorVisualizationPanels,
)
from autogaze_client.visualization.tensor_state import (
    AutoGazeTensorVisualizationState as AutoGazeTensorVisualizationState,
)
from autogaze_client.visualization.tensor_state import (
    normalized_rgb_clip_to_unit_rgba_tensor as normalized_rgb_clip_to_unit_rgba_tensor,
)
from autogaze_client.visualize import contact_sheet as contact_sheet
from autogaze_client.visualize import legend_strip as legend_strip
from autogaze_client.visualize import scale_color as scale_color
from autogaze_client.visualize import scale_mask_image as scale_mask_image
from autogaze_client.visualize import side_by_side as side_by_side

__all__: list[str]
