"""The public names: those that the seed and its specifications name, and how checkers and callers see them."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import autogaze_client as ag
import pytest
from autogaze_client import AsyncGazeClient, GazeClient, GazeResult
from autogaze_client._exports import HOME

# The reference's names, in its own groups. Each is importable under exactly this name.
SEED = {
    "modes and pipeline": """
        AutoGazeInferenceMode AutoGazePipeline AutoGazeTensorPipeline AutoGazeTensorPipelineConfig TensorClipInput
        RgbaClipInput AutoGazePipelinePacket VecOutputNode FnOutputNode AutoGazeOutputNode AutoGazeRgbaFrameQueue
        AutoGazeRgbaClip AutoGazeRgbaClipShape AutoGazeRgbaFrameClip AutoGazeTensorClip AutoGazeGenerateOutput
        AutoGazeTeacher AutoGazeReadoutStats prepare_rgba_clip_for_trace trace_prepared_run readout_prepared_run
        should_use_streaming_cache AutoGazeInferenceSequencer AutoGazeRealtimePolicy""",
    "fixations": """
        FixationPoint FixationBounds FixationSet FrameFixationTrace AutoGazeScaleTokenLayout AutoGazeScaleTokenMask
        scale_token_layouts square_grid AutoGazeTraceStore""",
    "image readout": """
        SparseReadoutGrid SparseReadoutRect SparseReadoutOptions fixation_points_to_readout_rects
        readout_rects_to_tokens fixation_points_to_readout_tokens trace_frame_readout_rects
        trace_frame_readout_tokens trace_to_frame_readout_rects trace_to_frame_readout_tokens
        generated_frame_readout_rects generated_frame_readout_tokens generated_to_frame_readout_rects
        generated_to_frame_readout_tokens""",
    "video readout": """
        SparseVideoReadoutGrid SparseVideoPatchGeometry SparseVideoReadoutOptions SparseVideoReadoutProjection
        frame_readout_tokens_to_video_tokens frame_readout_rects_to_video_tokens trace_to_video_readout_tokens
        generated_to_video_readout_tokens frame_readout_tokens_to_video_coords frame_readout_rects_to_video_coords
        trace_to_video_readout_coords generated_to_video_readout_coords frame_readout_tokens_to_video_coord_tensor
        frame_readout_rects_to_video_coord_tensor trace_to_video_readout_coord_tensor
        generated_to_video_readout_coord_tensor video_readout_tokens_to_coords video_readout_tokens_to_coord_tensor
        video_readout_coords_to_tensor batched_video_readout_tokens_to_coords
        batched_video_readout_tokens_to_coord_tensor""",
    "pyramids": """
        fixation_image_mask_tensor frame_fixation_masks_tensor apply_image_mask image_pyramid_masks
        tokenize_masked_image_pyramid sparsify_image_pyramid_tokens ImagePyramidLevel ImagePyramidMask
        ImagePyramidMaskOptions ImagePyramidTokens SparseImagePyramidTokens""",
    "metrics": """
        task_loss_requirement_from_l1_db task_loss_requirement_to_l1_db ema_metric AutoGazeEmaMetric
        DEFAULT_METRIC_EMA_ALPHA AutoGazeGazeRatioStats AutoGazePsnrStats sanitize_gaze_ratio fps_from_millis
        format_fps format_psnr_db format_gaze_ratio_percent rgba_psnr_db""",
    "patch differences": """
        AutoGazePatchDiffConfig AutoGazeSparseMaskSource patch_diff_scores patch_diff_readout_points
        patch_diff_readout_points_async patch_diff_device_mask_async patch_diff_points_to_traces
        AutoGazeReadoutRunOutput AutoGazePatchDiffDeviceMask""",
    "visualization": """
        AutoGazeVisualization AutoGazeVisualizationPanels AutoGazeVisualizationPanelsView
        AutoGazeRgbaVisualizationBuffers AutoGazeVisualizationMode AutoGazeMaskVisualizationMode
        AutoGazeMaskGeometryMode AutoGazeRgbaVisualizationOptions AutoGazeTensorVisualizationOptions
        AutoGazeVisualizationState AutoGazeTensorVisualizationState AutoGazeTensorVisualizationPanels
        AutoGazeTensorVisualization AutoGazeTensorInterframePath AutoGazeDeviceMask FixationPixelRect
        AutoGazeSparseUpdatePlan AutoGazeMaskPlanStats fixation_cell_rects fixation_deduplicated_cell_rects
        fixation_effective_cell_rects fixation_alpha_mask fixation_effective_alpha_mask
        fixation_rect_union_pixel_count fixation_sparse_update_plan fixation_deduplicated_sparse_update_plan
        fixation_effective_sparse_update_plan copy_sparse_update_rgba copy_sparse_update_tensor
        fixation_scale_mask_rgba fixation_scale_rows_mask_rgba fixation_effective_scale_mask_rgba
        fixation_mask_rgba fixation_image_overlay_mask_rgba fixation_image_mask_only_rgba
        fixation_scale_mask_rgba_into fixation_scale_rows_mask_rgba_into fixation_effective_scale_mask_rgba_into
        fixation_mask_rgba_into fixation_image_overlay_mask_rgba_into fixation_image_mask_only_rgba_into
        visualize_fixations_rgba normalized_rgb_clip_to_unit_rgba_tensor""",
    "defaults": """
        DEFAULT_MODEL_GENERATION_BUDGET DEFAULT_REALTIME_TOP_K DEFAULT_TILED_TOP_K DEFAULT_TILED_MAX_GAZE_TOKENS
        DEFAULT_REALTIME_FRAMES_PER_CLIP DEFAULT_MAX_IN_FLIGHT DEFAULT_TILED_FRAMES_PER_CLIP
        DEFAULT_TILED_TILE_BATCH_SIZE DEFAULT_KEYFRAME_DURATION DEFAULT_BLEND_ALPHA
        DEFAULT_PATCH_DIFF_GRID_SIZE DEFAULT_PATCH_DIFF_THRESHOLD DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RECTS
        DEFAULT_TENSOR_SPARSE_UPDATE_MAX_RATIO DEFAULT_TENSOR_FULL_FRAME_UPDATE_MIN_RATIO""",
}
METHODS = {
    "AutoGazePipeline": """
        load trace_rgba_clip_with_mode readout_points_with_mode readout_points_with_mode_async trace_clip""",
    "AutoGazeTensorPipeline": "run_next run_next_async with_config",
    "AutoGazeInferenceMode": """
        RESIZE_TO_MODEL_INPUT TILED_RESIZE_TO_GRID TILED_FULL_RESOLUTION fixation_budget""",
    "AutoGazePipelinePacket": """
        clip mode top_k traces generated readout_points frame_tensor frame_mask frame_pyramid_tokens
        frame_readout_tokens frame_readout_rects video_readout_tokens video_readout_coords
        video_readout_coord_tensor""",
    "AutoGazeRgbaFrameQueue": "push build_clip build_latest_clip recycle_clip_buffer",
    "AutoGazeTensorPipelineConfig": """
        with_mode with_top_k with_emit_traces with_emit_generated with_emit_readout_points""",
    "AutoGazeVisualizationState": """
        mode keyframe_duration configure reset visualize_rgba visualize_rgba_panels last_interframe_path""",
    "AutoGazeTensorVisualizationState": """
        mode keyframe_duration configure reset last_interframe_path last_mask_plan_stats
        visualize_normalized_rgb_clip visualize_normalized_rgb_clip_panels""",
    "AutoGazeVisualizationPanels": "output_rgba mask_ratio update_ratio output_psnr_db into_side_by_side",
    "AutoGazeInferenceSequencer": "reserve accept invalidate_pending is_stale",
    "AutoGazeTraceStore": "from_file from_safetensors trace clip_len k visibility_shape visibility_map",
    "SparseVideoReadoutProjection": "new from_patch_geometry with_readout_options with_video_options",
    "FixationPoint": "with_extent with_grid_extent cell_grid cell_width cell_height scaled_bounds bounds",
    "GazeResult": "generated traces mode source_size timings gazing_info",
}
KNOBS = """
    mode gazing_ratio task_loss_requirement max_gaze_tokens_each_frame target_scales target_patch_size top_k
    timeout"""


@pytest.mark.parametrize("group", SEED)
def test_every_name_of_the_seed_is_there(group):
    missing = [name for name in SEED[group].split() if name not in ag.__all__ or not hasattr(ag, name)]
    assert missing == []


@pytest.mark.parametrize("owner", METHODS)
def test_every_method_of_the_seed_is_there(owner):
    kind = getattr(ag, owner)
    fields = set(getattr(kind, "__dataclass_fields__", {}))
    documented = set((inspect.getdoc(kind) or "").replace(":", " ").split())
    known = fields | documented
    missing = [name for name in METHODS[owner].split() if not hasattr(kind, name) and name not in known]
    assert missing == []


def test_type_checkers_see_what_runs():
    stub = ast.parse(Path(ag.__file__).with_name("__init__.pyi").read_text(encoding="utf-8"))
    seen = {
        alias.asname: node.module.removeprefix("autogaze_client.")
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == HOME
    assert set(ag.__all__) == set(HOME)


@pytest.mark.parametrize("client", [GazeClient, AsyncGazeClient])
def test_the_clients_take_the_agreed_arguments(client):
    """DESIGN: names that the acceptance checks call."""
    made = inspect.signature(client).parameters
    assert next(iter(made)) == "url"
    assert made["url"].default == "localhost:8001"
    assert {"timeouts", "tls", "headers"} <= set(made)
    gaze = inspect.signature(client.gaze).parameters
    assert list(gaze)[1] == "frames"
    assert set(KNOBS.split()) <= set(gaze)
    assert all(gaze[name].kind is inspect.Parameter.KEYWORD_ONLY for name in KNOBS.split())
    assert callable(client.stream)
    assert {"generated", "mode", "source_size", "timings"} <= set(GazeResult.__dataclass_fields__)
