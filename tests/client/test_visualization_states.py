"""CPU and tensor states: the rows of visualization §5 and §6, and the defects of §9 that must stay out."""

from __future__ import annotations

import math

import autogaze_client as ag
import numpy as np
import pytest
from autogaze_client import (
    AutoGazeMaskGeometryMode,
    AutoGazeMaskVisualizationMode,
    AutoGazeRgbaVisualizationBuffers,
    AutoGazeRgbaVisualizationOptions,
    AutoGazeTensorInterframePath,
    AutoGazeTensorVisualizationOptions,
    AutoGazeTensorVisualizationState,
    AutoGazeVisualizationMode,
    AutoGazeVisualizationState,
    InvalidInputError,
)
from visualization_helpers import (
    all_cells,
    as_bytes,
    box,
    cell,
    checkerboard,
    normalised,
    random_cells,
    solid,
)

FULL_BLEND, INTERFRAME = AutoGazeVisualizationMode
STYLES, GEOMETRIES = list(AutoGazeMaskVisualizationMode), list(AutoGazeMaskGeometryMode)
KEYFRAME, SPARSE, DENSE, FULL_FRAME = AutoGazeTensorInterframePath
LEFT = [box(0.25, 0.5, 0.5, 1)]
SHARED = {"cell_scale": 1.0, "blend_alpha": 0.5}


def options(width, height, **fields):
    return AutoGazeRgbaVisualizationOptions(width, height, **{**SHARED, **fields})


def reds(*values):
    frame = np.zeros((1, len(values), 4), np.uint8)
    frame[0, :, 0], frame[..., 3] = values, 255
    return frame


def test_full_blend():
    """§5: 2×1, left cell, a = .5."""
    frame = np.array([[[100, 50, 0, 255], [10, 20, 30, 255]]], np.uint8)
    shown = AutoGazeVisualizationState().visualize_rgba(frame, LEFT, options(2, 1))
    assert shown.output_rgba()[0].tolist() == [[178, 153, 128, 255], [10, 20, 30, 255]]
    assert (shown.mask_ratio(), shown.update_ratio()) == (0.5, 0.5)
    assert (shown.side_by_side_width, shown.side_by_side_rgba.shape) == (6, (1, 6, 4))
    np.testing.assert_array_equal(shown.side_by_side_rgba[:, 2:4], shown.mask_rgba)


@pytest.mark.parametrize(("alpha", "expected"), [(0.25, [139, 101, 64, 200]), (0, [100, 50, 0, 200])])
def test_full_blend_keeps_the_alpha_byte(alpha, expected):
    """§5: 1×1 (100,50,0,200)."""
    state = AutoGazeVisualizationState()
    shown = state.visualize_rgba_panels(
        solid(1, 1, 100, 50, 0, 200), [box(0.5, 0.5, 1, 1)], options(1, 1, blend_alpha=alpha)
    )
    assert shown.output_rgba()[0, 0].tolist() == expected
    assert not state.last_frame_was_keyframe
    assert state.last_interframe_path is None


def test_two_equal_cells_mix_once():
    """§5: 1×1 (100,0,0), a = .5 gives 178,128,128."""
    shown = ag.visualize_fixations_rgba(
        solid(1, 1, 100, 0, 0, 255), 1, 1, [box(0.5, 0.5, 1, 1)] * 2, blend_alpha=0.5
    )
    assert shown.output_rgba()[0, 0].tolist() == [178, 128, 128, 255]


def test_interframe():
    """§5: 2×1, duration 3, four frames."""
    state = AutoGazeVisualizationState(INTERFRAME, 3)
    frames = [((10, 20), LEFT), ((30, 40), LEFT), ((50, 60), []), ((70, 80), [])]
    shown = [state.visualize_rgba_panels(reds(*values), points, options(2, 1)) for values, points in frames]
    assert [panel.output_rgba()[0, :, 0].tolist() for panel in shown] == [
        [10, 20],
        [30, 20],
        [30, 20],
        [70, 80],
    ]
    assert [panel.update_ratio() for panel in shown] == [1, 0.5, 0, 1]
    assert [panel.mask_ratio() for panel in shown] == [0.5, 0.5, 0, 0]
    assert state.last_frame_was_keyframe


def test_interframe_accumulates():
    """§5: 4×4 grey 10, 20, 30; the third output has 20, 30 and 10; PSNR 24.609 dB."""
    state = AutoGazeVisualizationState(INTERFRAME, 0)
    points = [[cell(2, 0, 0)], [cell(2, 0, 0)], [cell(2, 1, 1), cell(4, 3, 3)]]
    for grey, cells in zip((10, 20, 30), points, strict=True):
        frame = solid(4, 4, grey, grey, grey, 255)
        shown = state.visualize_rgba_panels(frame, cells, options(4, 4))
    assert shown.output_rgba()[..., 0].tolist() == [[20, 20, 10, 10]] * 2 + [[10, 10, 30, 30]] * 2
    assert shown.update_ratio() == 0.25
    assert shown.output_psnr_db(frame) == pytest.approx(24.609, abs=5e-4)
    assert shown.output_psnr_db(shown.output_rgba()) == math.inf


def test_psnr():
    """§5: reference (10,20,30), candidate (20,20,30): 32.902016 dB."""
    shown = AutoGazeVisualizationState().visualize_rgba_panels(
        solid(1, 1, 20, 20, 30, 255), [], options(1, 1)
    )
    assert shown.output_psnr_db(solid(1, 1, 10, 20, 30, 255)) == pytest.approx(32.902016, abs=1e-6)
    with pytest.raises(InvalidInputError):
        shown.output_psnr_db(solid(2, 1, 10, 20, 30, 255))


@pytest.mark.parametrize("kind", ["cpu", "tensor"])
def test_cadence(kind):
    """§5: duration 3, size changed at frames 4 and 6: keyframes at 0, 3, 4, 6."""
    state = (AutoGazeVisualizationState if kind == "cpu" else AutoGazeTensorVisualizationState)(INTERFRAME, 3)
    found = []
    for index, size in enumerate([4, 4, 4, 4, 5, 5, 4, 4]):
        frame = solid(size, size, 9, 9, 9, 255)
        if kind == "cpu":
            state.visualize_rgba_panels(frame, LEFT, options(size, size))
        else:
            state.visualize_normalized_rgb_clip_panels(
                normalised(frame), LEFT, AutoGazeTensorVisualizationOptions()
            )
        if state.last_frame_was_keyframe:
            found.append(index)
    assert found == [0, 3, 4, 6]
    assert state.frame_index == 8


def test_configure_and_failed_calls():
    """§5: another mode starts anew, another duration counts on; a call that fails counts nothing."""
    state = AutoGazeVisualizationState(INTERFRAME, 0)
    state.visualize_rgba_panels(reds(1, 2), LEFT, options(2, 1))
    with pytest.raises(InvalidInputError, match="source is"):
        state.visualize_rgba_panels(reds(1, 2, 3), LEFT, options(2, 1))
    assert state.frame_index == 1
    state.configure(INTERFRAME, 1)
    state.visualize_rgba_panels(reds(3, 4), [], options(2, 1))
    assert state.last_frame_was_keyframe
    state.configure(FULL_BLEND, 1)
    assert state.frame_index == 0
    state.reset()
    with pytest.raises(InvalidInputError, match="keyframe_duration is -1"):
        state.configure(INTERFRAME, -1)


def test_the_mask_panel_is_of_the_frame_as_it_was():
    """The caller may reuse its frame; panels are drawn late and cannot be changed from outside."""
    for mode in (FULL_BLEND, INTERFRAME):
        for style in STYLES:
            chosen = options(8, 8, mask_visualization_mode=style)
            frame = np.random.default_rng(0).integers(0, 256, (8, 8, 4)).astype(np.uint8)
            early = AutoGazeVisualizationState(mode).visualize_rgba_panels(frame, LEFT, chosen)
            expected = AutoGazeVisualizationState(mode).visualize_rgba_panels(frame, LEFT, chosen).mask_rgba
            frame[:] = 0
            np.testing.assert_array_equal(early.mask_rgba, expected)
            with pytest.raises(ValueError, match="read-only"):
                early.output_rgba()[0, 0, 0] = 1


def test_buffers():
    """§5: `_into` fills mask and blend, leaves side-by-side alone, and reuses memory; views can be owned."""
    buffers = AutoGazeRgbaVisualizationBuffers()
    buffers.reserve_exact_panels(4, 4)
    reserved = buffers.capacity()
    assert reserved == 128
    state, plain = AutoGazeVisualizationState(INTERFRAME, 0), AutoGazeVisualizationState(INTERFRAME, 0)
    owned = []
    for grey in (10, 20):
        frame = solid(4, 4, grey, grey, grey, 255)
        view = state.visualize_rgba_panels_into(frame, [cell(2, 0, 0)], options(4, 4), buffers)
        expected = plain.visualize_rgba_panels(frame, [cell(2, 0, 0)], options(4, 4))
        np.testing.assert_array_equal(view.mask_rgba, expected.mask_rgba)
        np.testing.assert_array_equal(view.output_rgba(), expected.output_rgba())
        assert (view.mask_ratio(), view.update_ratio()) == (expected.mask_ratio(), expected.update_ratio())
        owned.append(view.to_owned())
    assert owned[0].output_rgba()[0, 0, 0] == 10
    assert np.shares_memory(view.blend_rgba, buffers.blend)
    assert buffers.capacity() == reserved
    assert buffers.side_by_side.size == 0
    buffers.clear()
    assert buffers.mask.size == 0
    joined = owned[1].into_side_by_side(frame)
    assert joined.side_by_side_rgba.shape == (4, 12, 4)
    with pytest.raises(InvalidInputError, match="input_rgba"):
        owned[1].into_side_by_side(frame[:2])


def test_the_update_never_depends_on_the_panel():
    """§9.2 and §9.3: scale rows with the policy on, and alpha 0 on black, update every covered pixel."""
    points = [*checkerboard(16), cell(4, 0, 0)]
    for style in STYLES:
        for alpha in (0, 0.5):
            chosen = options(
                64, 64, blend_alpha=alpha, mask_visualization_mode=style
            ).with_full_frame_update_policy(0.4)
            state = AutoGazeVisualizationState(INTERFRAME, 0)
            state.visualize_rgba_panels(solid(64, 64, 9, 9, 9, 255), [], chosen)
            shown = state.visualize_rgba_panels(solid(64, 64, 0, 0, 0, 255), points, chosen)
            assert (shown.output_rgba()[..., 0] == 0).sum() == shown.updated_pixel_count
            assert shown.updated_pixel_count == ag.fixation_sparse_update_plan(points, 64, 64).pixel_count


def test_bad_numbers_are_refused():
    """§9.7: validate instead."""
    with pytest.raises(InvalidInputError, match="blend_alpha is nan"):
        options(2, 1, blend_alpha=math.nan)
    with pytest.raises(InvalidInputError, match="full_frame_update_min_ratio is -1"):
        AutoGazeTensorVisualizationOptions(full_frame_update_min_ratio=-1)
    with pytest.raises(InvalidInputError, match="0x1 pixels"):
        options(0, 1)


def paths(frames, chosen):
    state = AutoGazeTensorVisualizationState(INTERFRAME, 0)
    found = []
    for frame, points in frames:
        panels = state.visualize_normalized_rgb_clip_panels(frame, points, chosen)
        found.append(state.last_interframe_path)
    return found, panels


BLACK = normalised(solid(100, 100, 0, 0, 0, 255))
GREY = normalised(solid(100, 100, 90, 90, 90, 255))


def test_paths():
    """§6: keyframe; one 4×4 cell; five cells with policy 0; five cells with limits 8 / .05."""
    one = [box(0.02, 0.02, 0.04, 0.04)]
    five = [box(0.1 + 0.2 * i, 0.1 + 0.2 * i, 0.04, 0.04) for i in range(5)]
    default = AutoGazeTensorVisualizationOptions()
    off = default.with_full_frame_update_policy(0)
    assert paths([(BLACK, one), (GREY, one)], default)[0] == [KEYFRAME, SPARSE]
    assert paths([(BLACK, one), (GREY, five)], off)[0] == [KEYFRAME, DENSE]
    assert paths([(BLACK, one), (GREY, five)], off.with_sparse_update_policy(8, 0.05))[0] == [
        KEYFRAME,
        SPARSE,
    ]
    assert paths([(BLACK, one), (GREY, [])], default)[0] == [KEYFRAME, DENSE]


@pytest.mark.parametrize(
    ("width", "height", "path"),
    [(20, 10, SPARSE), (67, 3, DENSE), (100, 45, FULL_FRAME), (100, 44, DENSE)],
)
def test_path_limits(width, height, path):
    """§6: 200 / 201 pixels in one rectangle; coverage 4,500 / 4,400 of 10,000."""
    points = [box(width / 200, height / 200, width / 100, height / 100)]
    assert paths([(BLACK, []), (GREY, points)], AutoGazeTensorVisualizationOptions())[0][1] is path


@pytest.mark.parametrize(("extent", "updated"), [(0.5, 0.5), (1.0, 1.0)])
def test_full_frame_path(extent, updated):
    """§6: 8×4, half / full coverage under the policy of .45: the other half is the old frame."""
    frames = [
        (normalised(solid(8, 4, 10, 0, 0, 255)), []),
        (normalised(solid(8, 4, 30, 0, 0, 255)), [box(extent / 2, 0.5, extent, 1)]),
    ]
    found, panels = paths(frames, AutoGazeTensorVisualizationOptions())
    assert found[1] is FULL_FRAME
    assert panels.update_ratio() == updated
    assert set(np.unique(as_bytes(panels.output)[..., 0])) == ({10, 30} if updated < 1 else {30})


def test_full_coverage_keeps_its_colours():
    """§6 and §9.4: 4×4 full cell, overlay, pixel 5: 107,76,0,255 on the keyframe and after it."""
    state = AutoGazeTensorVisualizationState(INTERFRAME, 0)
    chosen = AutoGazeTensorVisualizationOptions(mask_visualization_mode=STYLES[0])
    for _ in range(2):
        panels = state.visualize_normalized_rgb_clip_panels(
            normalised(solid(4, 4, 1, 2, 3, 255)), [box(0.5, 0.5, 1, 1, 2)], chosen
        )
        assert as_bytes(panels.mask).reshape(-1, 4)[5].tolist() == [107, 76, 0, 255]


def libraries():
    yield pytest.param(lambda array: array, id="numpy")
    try:
        import torch
    except ImportError:
        return
    yield pytest.param(torch.from_numpy, id="torch")


@pytest.mark.parametrize("to_library", list(libraries()))
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", [FULL_BLEND, INTERFRAME])
def test_cpu_and_tensor_give_the_same_bytes(mode, style, geometry, to_library):
    """§9.12: every panel, count, ratio and path, over several frames, for byte-valued frames."""
    rng = np.random.default_rng(STYLES.index(style) * 3 + GEOMETRIES.index(geometry))
    for alpha, scale in ((0.5, 1.0), (0.38, 1.0), (0.1, 1.7)):
        cpu, tensor = AutoGazeVisualizationState(mode, 3), AutoGazeTensorVisualizationState(mode, 3)
        shared = {
            "cell_scale": scale,
            "blend_alpha": alpha,
            "mask_visualization_mode": style,
            "mask_geometry_mode": geometry,
            "full_frame_update_min_ratio": 0.45,
        }
        for count in (3, 1, 12, 60, 0):
            frame = rng.integers(0, 256, (45, 61, 4)).astype(np.uint8)
            frame[..., 3] = 255
            points = random_cells(rng, count)
            shown = cpu.visualize_rgba(frame, points, AutoGazeRgbaVisualizationOptions(61, 45, **shared))
            panels = tensor.visualize_normalized_rgb_clip_panels(
                to_library(normalised(frame)), points, AutoGazeTensorVisualizationOptions(**shared)
            )
            np.testing.assert_array_equal(as_bytes(panels.input), frame)
            np.testing.assert_array_equal(as_bytes(panels.output), shown.output_rgba())
            np.testing.assert_array_equal(as_bytes(panels.mask), shown.mask_rgba)
            np.testing.assert_array_equal(
                as_bytes(panels.into_side_by_side().side_by_side), shown.side_by_side_rgba
            )
            assert panels.mask_pixel_count == shown.mask_pixel_count
            assert panels.updated_pixel_count == shown.updated_pixel_count
            assert tensor.last_mask_plan_stats == shown.mask_plan_stats
            assert tensor.last_interframe_path is cpu.last_interframe_path


@pytest.mark.parametrize(("token", "pixels"), [(0, 196), (4, 49), (5, 49), (20, 16), (69, 4)])
def test_device_tokens(token, pixels):
    """§6: 28×28 tokens 0, 4, 5, 20, 69; grid-4 cells are the native 7×7 (§9.4), counts and colours are true."""
    state = AutoGazeTensorVisualizationState(INTERFRAME, 0)
    chosen = AutoGazeTensorVisualizationOptions(mask_visualization_mode=STYLES[0])
    layouts = ag.layouts_from_grids([2, 4, 7, 14])
    frame = normalised(solid(28, 28, 5, 5, 5, 255))
    panels = state.visualize_normalized_rgb_clip_device_tokens_panels(
        frame, np.array([[token, 265, -1]]), layouts, chosen
    )
    assert panels.mask_pixel_count == pixels
    assert panels.update_ratio() == 1
    panels = state.visualize_normalized_rgb_clip_device_tokens_panels(
        normalised(solid(28, 28, 99, 5, 5, 255)), np.array([[token, 265, -1]]), layouts, chosen
    )
    assert panels.updated_pixel_count == (as_bytes(panels.output)[..., 0] == 99).sum() == pixels
    stats = state.last_mask_plan_stats
    assert (stats.rect_count, stats.pixel_count) == (1, pixels)
    colour = {0: (255, 180, 0), 4: (60, 220, 120), 5: (60, 220, 120), 20: (0, 185, 255), 69: (230, 110, 255)}
    assert set(map(tuple, as_bytes(panels.mask)[..., :3].reshape(-1, 3).tolist())) == {
        (0, 0, 0),
        colour[token],
    }


def test_device_tokens_cover_what_native_cells_cover():
    rng = np.random.default_rng(3)
    layouts = ag.layouts_from_grids([2, 4, 7, 14])
    for width, height in ((45, 61), (9, 5), (224, 100)):
        ids = rng.choice(265, 12, replace=False)
        offsets = np.cumsum([0, 4, 16, 49])
        scale = np.searchsorted(offsets, ids, side="right") - 1
        grids = np.array([2, 4, 7, 14])[scale]
        points = [
            cell(int(grid), int(local // grid), int(local % grid))
            for grid, local in zip(grids, ids - offsets[scale], strict=True)
        ]
        panels = AutoGazeTensorVisualizationState().visualize_normalized_rgb_clip_device_tokens_panels(
            normalised(solid(width, height, 5, 5, 5, 255)), ids, layouts, AutoGazeTensorVisualizationOptions()
        )
        plan = ag.fixation_sparse_update_plan(points, width, height)
        assert panels.mask_pixel_count == plan.pixel_count


def test_device_masks():
    """§6: fractional alpha mixes; another shape is refused."""
    alpha = np.zeros((4, 4, 1), np.float32)
    alpha[:2] = 0.5
    mask = ag.AutoGazeDeviceMask(alpha, ag.AutoGazeMaskPlanStats(1, 2, 8))
    state = AutoGazeTensorVisualizationState(INTERFRAME, 0)
    chosen = AutoGazeTensorVisualizationOptions(blend_alpha=0.5)
    for red in (0, 100):
        panels = state.visualize_normalized_rgb_clip_device_mask_panels(
            normalised(solid(4, 4, red, 0, 0, 255)), mask, chosen
        )
    assert as_bytes(panels.output)[:, 0, 0].tolist() == [50, 50, 0, 0]
    assert (panels.mask_ratio(), state.last_interframe_path) == (0.5, FULL_FRAME)
    assert panels.mask[3, 0].tolist() == [0, 0, 0, 0]
    assert float(panels.mask[0, 0, 3]) == 0.5
    with pytest.raises(InvalidInputError, match=r"the mask has shape \[4, 4, 1\]"):
        state.visualize_normalized_rgb_clip_device_mask_panels(
            normalised(solid(5, 4, 0, 0, 0, 255)), mask, chosen
        )


def test_tensor_frames_are_one_frame():
    with pytest.raises(InvalidInputError, match=r"\[1, 2, 3, 4, 4\]; it must be \[1, 1, 3, H, W\]"):
        ag.normalized_rgb_clip_to_unit_rgba_tensor(np.zeros((1, 2, 3, 4, 4), np.float32))


def test_many_cells_of_every_scale_agree_with_painting_one_by_one():
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 4)).astype(np.uint8)
    points = all_cells(2, 4, 7, 14)[::3]
    state = AutoGazeVisualizationState(INTERFRAME, 0)
    state.visualize_rgba_panels(solid(160, 90, 0, 0, 0, 255), [], options(160, 90))
    shown = state.visualize_rgba_panels(frame, points, options(160, 90)).output_rgba()
    expected = solid(160, 90, 0, 0, 0, 255)
    for x0, x1, y0, y1 in ag.fixation_cell_rects(points, 160, 90):
        expected[y0:y1, x0:x1] = frame[y0:y1, x0:x1]
    np.testing.assert_array_equal(shown, expected)
