"""Rows cited as "readout §4" are the worked examples of the behavioural specification."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_client import (
    FixationSet,
    FrameFixationTrace,
    InvalidInputError,
    SparseReadoutGrid,
    SparseReadoutOptions,
    SparseReadoutRect,
    SparseVideoPatchGeometry,
    SparseVideoReadoutGrid,
    SparseVideoReadoutOptions,
    SparseVideoReadoutProjection,
    batched_video_readout_tokens_to_coord_tensor,
    batched_video_readout_tokens_to_coords,
    frame_readout_rects_to_video_coord_tensor,
    frame_readout_rects_to_video_coords,
    frame_readout_rects_to_video_tokens,
    frame_readout_tokens_to_video_coord_tensor,
    frame_readout_tokens_to_video_coords,
    frame_readout_tokens_to_video_tokens,
    generated_to_video_readout_coord_tensor,
    generated_to_video_readout_coords,
    generated_to_video_readout_tokens,
    trace_to_video_readout_coord_tensor,
    trace_to_video_readout_coords,
    trace_to_video_readout_tokens,
    video_readout_coords_to_tensor,
    video_readout_tokens_to_coord_tensor,
    video_readout_tokens_to_coords,
)
from autogaze_client.readout.video_readout import evenly_spaced
from client_helpers import decode

TWO = SparseReadoutGrid(2, 2)
FOURTEEN = SparseReadoutGrid(14, 14)
OPTIONS = SparseVideoReadoutOptions()
FRAMES = [[], [1], [2], []]


@pytest.mark.parametrize(
    ("frames", "image", "video", "options", "tokens"),
    [
        (FRAMES, (2, 2), (2, 4, 4), (2, 0, 4, 4), [2, 3, 6, 7]),
        (FRAMES, (2, 2), (2, 4, 6), (2, 0, 4, 4), [3, 4, 5, 9]),
        ([[0]], (2, 2), (1, 4, 4), (1, 0, 6, 6), [0, 1, 4, 5, 3, 8]),
        ([[0]], (1, 1), (3, 2, 2), (2, 0, 5, 5), [0, 1, 2, 3, 4]),
        ([[0, 10], [30, 31], [131], [195]], (14, 14), (2, 4, 4), (2, 0, 8, 8), [0, 2, 3, 1, 25, 31, 4, 8]),
        ([[0, 1, 2, 3], [0]], (2, 2), (2, 2, 2), (1, 0, 0, 4), [0, 1, 2, 3]),
        ([], (2, 2), (1, 2, 4), (1, 0, 3, None), [0, 2, 5]),
        ([[0]], (2, 2), (1, 2, 2), (1, 0, 3, 2), [0, 2]),
    ],
)
def test_frame_tokens_to_video_tokens(frames, image, video, options, tokens):
    """readout §4, rows ";1;2;" to "`0`, image 2×2, video (1,2,2)", by input."""
    found = frame_readout_tokens_to_video_tokens(
        frames, SparseReadoutGrid(*image), SparseVideoReadoutGrid(*video), SparseVideoReadoutOptions(*options)
    )
    assert found.tolist() == tokens


def test_coords_of_a_batch():
    """readout §4, row ";1;2;": coords with batch 3."""
    options = OPTIONS.with_tubelet_size(2).with_exact_tokens(4)
    expected = [[3, 0, 0, 2], [3, 0, 0, 3], [3, 0, 1, 2], [3, 0, 1, 3]]
    grid = SparseVideoReadoutGrid(2, 4, 4)
    assert frame_readout_tokens_to_video_coords(FRAMES, TWO, grid, options, 3).tolist() == expected
    projection = SparseVideoReadoutProjection.new(TWO, grid).with_video_options(options)
    assert frame_readout_tokens_to_video_coord_tensor(FRAMES, projection, 3).tolist() == expected


def test_a_projection_of_a_geometry_knows_its_tubelets():
    """readout §4, row "same, geometry (4 frames, 64×96, tubelet 2, patch 16)", and the defect of §9.3."""
    geometry = SparseVideoPatchGeometry.square_patch(4, 64, 96, 2, 16)
    assert geometry.readout_grid() == SparseVideoReadoutGrid(2, 4, 6)
    projection = SparseVideoReadoutProjection.from_patch_geometry(TWO, geometry)
    assert projection.video_options.tubelet_size == 2
    exact = projection.with_video_options(projection.video_options.with_exact_tokens(4))
    rows = frame_readout_tokens_to_video_coord_tensor(FRAMES, exact)
    assert [exact.video_grid.token_index(*row[1:]) for row in rows.tolist()] == [3, 4, 5, 9]


def test_a_rect_goes_straight_to_the_video_grid():
    """readout §4, row "rect (.5,0,.75,.25) in frame 1 of 4"."""
    frames = [[], [SparseReadoutRect(0.5, 0, 0.75, 0.25)], [], []]
    grid, options = SparseVideoReadoutGrid(2, 4, 4), OPTIONS.with_tubelet_size(2).with_min_tokens(1)
    assert frame_readout_rects_to_video_tokens(frames, grid, options).tolist() == [2]
    assert frame_readout_rects_to_video_coords(frames, grid, options, 1).tolist() == [[1, 0, 0, 2]]
    assert frame_readout_rects_to_video_coord_tensor(frames, grid, options).tolist() == [[0, 0, 0, 2]]


def test_coords_keep_order_and_batches():
    """readout §4, row "tokens 0 7 23 on (2,3,4), two batches"."""
    grid = SparseVideoReadoutGrid(2, 3, 4)
    expected = [[b, *place] for b in (0, 1) for place in ([0, 0, 0], [0, 1, 3], [1, 2, 3])]
    assert batched_video_readout_tokens_to_coords([[0, 7, 23]] * 2, grid).tolist() == expected
    assert batched_video_readout_tokens_to_coord_tensor([[0, 7, 23]] * 2, grid).tolist() == expected
    assert batched_video_readout_tokens_to_coords([[], [7]], grid).tolist() == [[1, 0, 1, 3]]
    assert video_readout_tokens_to_coords([7, 7, 0], grid, 0)[:, 2].tolist() == [1, 1, 0]
    assert video_readout_tokens_to_coord_tensor(np.array([23]), grid, 4).tolist() == [[4, 1, 2, 3]]
    assert video_readout_coords_to_tensor([]).shape == (0, 4)


@pytest.mark.parametrize(
    ("count", "tokens", "spaced"),
    [(16, 6, [0, 3, 5, 8, 10, 13]), (32, 8, [0, 4, 8, 12, 16, 19, 23, 27]), (3, 3, [0, 1, 2])],
)
def test_evenly_spaced(count, tokens, spaced):
    """readout §4, row "evenly spaced (16,6); (32,8)"."""
    assert evenly_spaced(count, tokens).tolist() == spaced


def test_adapter_example():
    """readout §4, row "adapter example": frame 1 is starved by the cap."""
    generated = decode([0, 4, 20, 273, 334, 385], counts=[3, 3])
    image = SparseReadoutOptions(max_fixations_per_frame=8, dilation=1, max_tokens_per_frame=16)
    video = OPTIONS.with_tubelet_size(2).with_exact_tokens(16)
    grid = SparseVideoReadoutGrid(1, 14, 14)
    expected = [*range(8), *range(14, 22)]
    config = {
        "scales": "32+64+112+224",
        "num_vision_tokens_each_frame": 265,
    }
    args = (FOURTEEN, grid, image, video)
    assert generated_to_video_readout_tokens(generated, config, 0, *args).tolist() == expected
    assert trace_to_video_readout_tokens(generated.traces()[0], *args).tolist() == expected
    rows = [[0, 0, *divmod(token, 14)] for token in expected]
    assert generated_to_video_readout_coords(generated, config, 0, *args).tolist() == rows
    projection = SparseVideoReadoutProjection(*args)
    assert generated_to_video_readout_coord_tensor(generated, config, 0, projection).tolist() == rows
    trace = generated.traces()[0]
    rows = [[5, *row[1:]] for row in rows]
    assert trace_to_video_readout_coords(trace, *args, 5).tolist() == rows
    assert trace_to_video_readout_coord_tensor(trace, projection, 5).tolist() == rows


def test_a_generated_row_labels_its_batch():
    generated = decode([0, 1])
    two = type(generated)(
        **{
            name: np.repeat(getattr(generated, name), 2, axis=0)
            for name in ("gazing_pos", "if_padded_gazing", "confidences", "task_loss_predictions")
        },
        num_gazing_each_frame=generated.num_gazing_each_frame,
        scale_layouts=generated.scale_layouts,
    )
    rows = generated_to_video_readout_coords(two, None, 1, TWO, SparseVideoReadoutGrid(1, 2, 2))
    assert rows.tolist() == [[1, 0, 0, 0], [1, 0, 0, 1]]


def test_without_an_image_grid_a_cell_rounds_once():
    """readout §9.6: a 7×7 cell through a 4×4 image grid grows; straight onto 14×14 it does not."""
    trace = decode([20]).traces()[0]
    video = SparseVideoReadoutGrid(1, 14, 14)
    assert trace_to_video_readout_tokens(trace, None, video).tolist() == [0, 1, 14, 15]
    assert len(trace_to_video_readout_tokens(trace, SparseReadoutGrid(4, 4), video)) == 16


def test_grid_places():
    grid = SparseVideoReadoutGrid(2, 3, 4)
    assert (grid.token_count, grid.tokens_per_temporal_bin, grid.is_empty) == (24, 12, False)
    assert (grid.token_coords(23), grid.token_coords(24), grid.token_index(2, 0, 0)) == (
        (1, 2, 3),
        None,
        None,
    )


ONE = SparseVideoReadoutGrid(1, 2, 2)
EMPTY_TRACE = FrameFixationTrace([])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: frame_readout_tokens_to_video_tokens(
                [[0]], SparseReadoutGrid(0, 1), SparseVideoReadoutGrid(0, 1, 1), OPTIONS
            ),
            "image readout grid is 0x1",
        ),
        (
            lambda: frame_readout_tokens_to_video_tokens(
                [], TWO, SparseVideoReadoutGrid(1, 0, 1), OPTIONS.with_tubelet_size(0)
            ),
            "video readout grid is 1x0x1",
        ),
        (
            lambda: frame_readout_tokens_to_video_tokens([], TWO, ONE, OPTIONS.with_tubelet_size(0)),
            "tubelet size is 0",
        ),
        (
            lambda: trace_to_video_readout_tokens(EMPTY_TRACE, SparseReadoutGrid(0, 0), ONE),
            "image readout grid",
        ),
        (
            lambda: frame_readout_tokens_to_video_tokens([[0], [0]], TWO, ONE),
            "there are 2 frames, but 1 bins",
        ),
        (
            lambda: trace_to_video_readout_tokens(FrameFixationTrace([FixationSet(())] * 3), TWO, ONE),
            "there are 3 frames",
        ),
        (lambda: frame_readout_tokens_to_video_tokens([[4]], TWO, ONE), "token 4, outside grid of 4 tokens"),
        (lambda: frame_readout_tokens_to_video_tokens([[0.5]], TWO, ONE), "must be integers"),
        (lambda: video_readout_tokens_to_coords([4], ONE, 0), "token 4, outside grid"),
        (lambda: video_readout_tokens_to_coords([-1], ONE, 0), "token -1, outside grid"),
        (
            lambda: video_readout_tokens_to_coords([], SparseVideoReadoutGrid(0, 2, 2), 0),
            "video readout grid",
        ),
        (lambda: video_readout_tokens_to_coords([0], ONE, 2**32), "batch is 4294967296"),
        (lambda: video_readout_coords_to_tensor([[0, 0, 0]]), r"integers \[n, 4\]"),
        (lambda: video_readout_coords_to_tensor([[0, 0, 0, -1]]), "values in -1..0"),
        (
            lambda: frame_readout_tokens_to_video_coord_tensor(
                [], SparseVideoReadoutProjection.new(None, ONE)
            ),
            "no image readout grid",
        ),
        (
            lambda: trace_to_video_readout_tokens(EMPTY_TRACE, None, ONE, SparseReadoutOptions(dilation=1)),
            "need an image grid",
        ),
        (lambda: SparseVideoReadoutOptions(min_tokens=-1), "min_tokens is -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ((0, 0, 0, 0, 0, 0), "frames is 0"),
        ((4, 0, 96, 0, 0, 0), "height is 0"),
        ((4, 64, 0, 0, 0, 0), "width is 0"),
        ((4, 64, 96, 0, 0, 0), "tubelet_size is 0"),
        ((4, 64, 96, 3, 0, 16), "patch_h is 0"),
        ((4, 65, 97, 3, 16, 16), "frames is 4, which is not divisible by tubelet_size 3"),
        ((4, 65, 97, 2, 16, 16), "height is 65"),
        ((4, 64, 97, 2, 16, 16), "width is 97, which is not divisible by patch_w 16"),
    ],
)
def test_geometry_names_the_first_rule_broken(geometry, message):
    """readout §4, types: errors in this order."""
    with pytest.raises(InvalidInputError, match=message):
        SparseVideoPatchGeometry(*geometry).readout_grid()
