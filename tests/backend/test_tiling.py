from __future__ import annotations

import numpy as np
import pytest
from autogaze_backend.preprocessing import PreprocessingConfig, normalise
from autogaze_backend.tiling import TileLayout
from autogaze_client import (
    AutoGazeGenerateOutput,
    AutoGazeInferenceMode,
    InvalidInputError,
    fixation_pixel_rects,
)
from autogaze_client.layouts import layouts_from_grids
from goldens import clips
from hypothesis import given, settings
from hypothesis import strategies as st

GRID, FULL = AutoGazeInferenceMode.TILED_RESIZE_TO_GRID, AutoGazeInferenceMode.TILED_FULL_RESOLUTION
GRIDS = (2, 4, 7, 14)
N = 265
CONFIG = PreprocessingConfig()


def everything(tiles: int, frames: int = 1) -> AutoGazeGenerateOutput:
    """Every cell of every tile chosen."""
    positions = np.tile(np.arange(N * frames), (tiles, 1))
    return AutoGazeGenerateOutput(
        gazing_pos=positions,
        if_padded_gazing=np.zeros(positions.shape, bool),
        num_gazing_each_frame=np.full(frames, N),
        confidences=np.full(positions.shape, 0.5, np.float32),
        task_loss_predictions=np.ones(positions.shape, np.float32),
        scale_layouts=layouts_from_grids(GRIDS),
    )


def test_1080p_in_grid_mode_is_45_tiles_on_a_2016_by_1120_canvas():
    layout = TileLayout(GRID, 1080, 1920, 224)
    assert (layout.rows, layout.columns, layout.count) == (5, 9, 45)
    assert layout.canvas == (1120, 2016)


@pytest.mark.parametrize(("grid", "columns", "rows"), [(2, 18, 10), (4, 36, 20), (7, 63, 35), (14, 126, 70)])
def test_1080p_in_grid_mode_has_the_specified_global_grids(grid, columns, rows):
    """pipeline §3, Stitching: 18×10, 36×20, 63×35, 126×70."""
    found = TileLayout(GRID, 1080, 1920, 224).fixations(everything(45))
    cells = found[found[:, 6] == grid]
    assert len(cells) == columns * rows
    np.testing.assert_allclose(np.unique(cells[:, 1]), (np.arange(columns) + 0.5) / columns, atol=1e-6)
    np.testing.assert_allclose(np.unique(cells[:, 2]), (np.arange(rows) + 0.5) / rows, atol=1e-6)
    np.testing.assert_allclose(cells[:, 3], 1 / columns, rtol=1e-6)
    np.testing.assert_allclose(cells[:, 4], 1 / rows, rtol=1e-6)


def coverage(fixations: np.ndarray, height: int, width: int) -> np.ndarray:
    """How many cells each pixel lies in."""
    count = np.zeros((height, width), int)
    for x0, x1, y0, y1 in fixation_pixel_rects(fixations, width=width, height=height):
        count[y0:y1, x0:x1] += 1
    return count


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700))
def test_in_full_mode_every_pixel_belongs_to_exactly_one_cell_a_scale(height, width):
    layout = TileLayout(FULL, height, width, 224)
    found = layout.fixations(everything(layout.count))
    for grid in GRIDS:
        assert (coverage(found[found[:, 6] == grid], height, width) == 1).all()


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 500), width=st.integers(1, 500))
def test_in_grid_mode_every_pixel_is_covered_at_every_scale(height, width):
    layout = TileLayout(GRID, height, width, 224)
    found = layout.fixations(everything(layout.count))
    for grid in GRIDS:
        assert (coverage(found[found[:, 6] == grid], height, width) >= 1).all()


def test_only_cells_wholly_in_padding_are_dropped():
    """At 1080p the last row of tiles holds 184 of 224 rows: 12 of 14 cells, 6 of 7, all 4 (the last partly)."""
    found = TileLayout(FULL, 1080, 1920, 224).fixations(everything(45))
    rows = {grid: len(np.unique(found[found[:, 6] == grid][:, 2])) for grid in GRIDS}
    assert rows == {2: 4 * 2 + 2, 4: 4 * 4 + 4, 7: 4 * 7 + 6, 14: 4 * 14 + 12}
    last = found[(found[:, 6] == 4) & (found[:, 2] > 0.97)]
    # The fourth row of the 4-grid spans 56 rows from 896 + 168 on, of which 16 are in the frame.
    np.testing.assert_allclose(last[:, 4], 16 / 1080, rtol=1e-5)


def test_fixations_come_by_frame_then_by_confidence():
    layout = TileLayout(FULL, 300, 300, 224)
    tiles = everything(4, frames=2)
    random = np.random.default_rng(0).random(tiles.confidences.shape).astype(np.float32)
    found = layout.fixations(
        AutoGazeGenerateOutput(
            tiles.gazing_pos,
            tiles.if_padded_gazing,
            tiles.num_gazing_each_frame,
            random,
            tiles.task_loss_predictions,
            tiles.scale_layouts,
        )
    )
    assert (np.diff(found[:, 0]) >= 0).all()
    for frame in (0, 1):
        assert (np.diff(found[found[:, 0] == frame][:, 5]) <= 0).all()


@pytest.mark.parametrize("size", [(1080, 1920), (300, 500), (100, 90), (448, 448)])
def test_grid_tiles_are_torchs_bilinear_canvas_cut_up(size):
    torch = pytest.importorskip(
        "torch", reason="compares with torch's resize; pip install 'autogaze-triton[export]'"
    )
    frames = clips.synthetic_clip(1, *size, 3)
    layout = TileLayout(GRID, *size, 224)
    canvas = torch.nn.functional.interpolate(
        torch.from_numpy(normalise(frames, CONFIG)), size=layout.canvas, mode="bilinear", align_corners=False
    ).numpy()
    for index in range(layout.count):
        top, left = index // layout.columns * 224, index % layout.columns * 224
        np.testing.assert_allclose(
            layout.tile(frames, index, CONFIG), canvas[:, :, top : top + 224, left : left + 224], atol=1e-5
        )


def test_full_tiles_are_the_pixels_padded_with_zero_in_normalised_space():
    frames = clips.synthetic_clip(2, 230, 250, 4)
    layout = TileLayout(FULL, 230, 250, 224)
    assert layout.count == 4
    corner = layout.tile(frames, 3, CONFIG)
    np.testing.assert_array_equal(corner[:, :, :6, :26], normalise(frames[:, 224:, 224:], CONFIG))
    assert not corner[:, :, 6:].any()
    assert not corner[:, :, :, 26:].any()


@pytest.mark.parametrize("mode", [GRID, FULL])
@pytest.mark.parametrize("together", [1, 3, 64])
def test_a_tile_comes_out_as_if_alone_whatever_the_tile_batch(mode, together, model, monkeypatch):
    loaded = model()
    monkeypatch.setattr(type(loaded.engine), "preferred_rows", property(lambda engine: together))
    frames = clips.synthetic_clip(2, 300, 460, 7)
    knobs = {"gazing_ratio": 0.2, "task_loss_requirement": 0.7}
    result = loaded.gaze(frames, mode=mode, **knobs)
    layout = TileLayout(mode, 300, 460, 224)
    assert len(result.generated.gazing_pos) == layout.count == 6
    for tile in range(6):
        alone = loaded.generate(layout.tile(frames, tile, CONFIG)[None], **knobs)
        np.testing.assert_array_equal(
            result.generated.gazing_pos[tile][~result.generated.if_padded_gazing[tile]],
            alone.gazing_pos[0][~alone.if_padded_gazing[0]],
        )
    np.testing.assert_array_equal(result.fixations, layout.fixations(result.generated))


def test_the_budget_and_top_k_are_a_tiles(model):
    frames = clips.synthetic_clip(1, 300, 460, 7)
    assert model().gaze(frames, mode=FULL, max_gaze_tokens_each_frame=4).tokens_per_frame.tolist() == [24]
    assert model().gaze(
        frames, mode=FULL, max_gaze_tokens_each_frame=4, top_k=9
    ).tokens_per_frame.tolist() == [54]


def test_tiles_and_target_scales_exclude_each_other(model):
    with pytest.raises(InvalidInputError, match="use MODE 0 with them"):
        model().gaze(
            np.zeros((1, 30, 30, 3), np.uint8),
            mode=GRID,
            target_scales=[56, 112, 196, 392],
            target_patch_size=14,
            gazing_ratio=0.1,
        )
    with pytest.raises(InvalidInputError, match="has no tiles"):
        TileLayout(AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT, 1, 1, 224)
