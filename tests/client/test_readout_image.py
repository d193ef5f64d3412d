"""Rows cited as "readout §3" are the worked examples of the behavioural specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
from autogaze_client import (
    FixationPoint,
    FixationSet,
    FrameFixationTrace,
    InvalidInputError,
    SparseReadoutGrid,
    SparseReadoutOptions,
    SparseReadoutRect,
    SparseReadoutRects,
    fixation_points_to_readout_rects,
    fixation_points_to_readout_tokens,
    generated_frame_readout_rects,
    generated_frame_readout_tokens,
    generated_to_frame_readout_rects,
    generated_to_frame_readout_tokens,
    layouts_from_grids,
    readout_rects_to_tokens,
    trace_frame_readout_rects,
    trace_frame_readout_tokens,
    trace_to_frame_readout_rects,
    trace_to_frame_readout_tokens,
)
from client_helpers import decode

FOUR = SparseReadoutGrid(4, 4)
FOURTEEN = SparseReadoutGrid(14, 14)
DEFAULT = SparseReadoutOptions()
COARSE = FixationPoint.with_grid_extent(0.25, 0.25, 0.5, 0.5, 1, 2)
LAST = FixationPoint.with_grid_extent(0.875, 0.875, 0.25, 0.25, 0.8, 4)


def points(*ids: int) -> FixationSet:
    return decode(list(ids)).traces()[0].frames[0]


def test_grid_of_tokens():
    """readout §3, row "token_rect(6) on 2×4; token_rect(8)"."""
    grid = SparseReadoutGrid(2, 4)
    assert grid.token_rect(6) == SparseReadoutRect(0.5, 0.5, 0.75, 1)
    assert grid.token_rect(8) is None
    assert (grid.token_index(1, 2), grid.token_index(2, 0), grid.token_count) == (6, None, 8)
    assert SparseReadoutGrid(0, 4).is_empty
    assert SparseReadoutGrid.square_from_token_count(196) == FOURTEEN


@pytest.mark.parametrize(
    ("ids", "grid", "options", "tokens"),
    [
        ([0], FOUR, DEFAULT, [0, 1, 4, 5]),
        ([19], FOUR, DEFAULT, [15]),
        ([28], FOURTEEN, DEFAULT, [30, 31, 44, 45]),
        ([44], FOUR, DEFAULT, [5, 6, 9, 10]),
        ([4, 0], FOUR, DEFAULT, [0, 1, 4, 5]),
        ([84], FOURTEEN, DEFAULT.with_fixation_scale(2), [0, 1, 2, 14, 15, 16, 28, 29, 30]),
        ([0, 264], FOUR, DEFAULT.with_max_tokens_per_frame(3), [0, 1, 4]),
        ([0], FOUR, DEFAULT.with_confidence_threshold(1), []),
        ([0, 19], FOUR, DEFAULT.with_max_fixations_per_frame(1), [0, 1, 4, 5]),
        ([0, 19], FOUR, DEFAULT.with_max_fixations_per_frame(0), []),
        ([0, 19], FOUR, DEFAULT.with_max_tokens_per_frame(0), []),
    ],
)
def test_tokens_of_points(ids, grid, options, tokens):
    """readout §3, rows "id 0 on 4×4" to "confidence 1, threshold 1", by input."""
    found = fixation_points_to_readout_tokens(points(*ids), grid, options)
    assert found.dtype == np.int64
    assert found.tolist() == tokens


def test_threshold_is_strict_and_hides_padding():
    """readout §3, row "confidences 0 and .8, threshold .1"."""
    hidden = FixationPoint.with_grid_extent(0.25, 0.25, 0.5, 0.5, 0, 2)
    options = DEFAULT.with_confidence_threshold(0.1)
    assert fixation_points_to_readout_tokens([hidden, LAST], FOUR, options).tolist() == [15]
    below_zero = DEFAULT.with_confidence_threshold(-1)
    assert fixation_points_to_readout_tokens([hidden, LAST], FOUR, below_zero).tolist() == [15]


def test_dilation_and_cap_of_a_rect():
    """readout §3, row "rect (.5,.5,.75,.75), 4×4, dilation 1, cap 5"."""
    options = DEFAULT.with_dilation(1).with_max_tokens_per_frame(5)
    rects = [SparseReadoutRect(0.5, 0.5, 0.75, 0.75)]
    assert readout_rects_to_tokens(rects, FOUR, options).tolist() == [5, 6, 7, 9, 10]


def test_generated_frames():
    """readout §3, row "N 20 "32+64", raw 0 4, then 39, 4×4"."""
    config = {"scales": "32+64", "num_vision_tokens_each_frame": 20}
    generated = decode([0, 4, 39], counts=[2, 1], layouts=layouts_from_grids((2, 4)))
    frames = generated_to_frame_readout_tokens(generated, config, 0, FOUR)
    assert [tokens.tolist() for tokens in frames] == [[0, 1, 4, 5], [15]]
    assert generated_frame_readout_tokens(generated, None, 0, 1, FOUR).tolist() == [15]
    assert generated_frame_readout_rects(generated, config, 0, 1) == [SparseReadoutRect(0.75, 0.75, 1, 1)]
    rects = generated_to_frame_readout_rects(generated, generated.scale_layouts, 0)
    assert [len(frame) for frame in rects] == [2, 1]
    assert rects[0][1] == SparseReadoutRect(0, 0, 0.25, 0.25)


def test_trace_frames():
    trace = FrameFixationTrace([FixationSet([COARSE]), FixationSet([]), FixationSet([LAST])])
    tokens = trace_to_frame_readout_tokens(trace, FOUR)
    assert [frame.tolist() for frame in tokens] == [[0, 1, 4, 5], [], [15]]
    assert trace_frame_readout_tokens(trace, 2, FOUR).tolist() == [15]
    rects = trace_to_frame_readout_rects(trace)
    assert rects == [[SparseReadoutRect(0, 0, 0.5, 0.5)], [], [SparseReadoutRect(0.75, 0.75, 1, 1)]]
    assert trace_frame_readout_rects(trace, 0) == rects[0]
    assert trace_to_frame_readout_tokens(FrameFixationTrace([]), FOUR) == []


def test_rects_are_sorted_clamped_and_exact():
    assert SparseReadoutRect(0.75, 0.5, 0.5, 2) == SparseReadoutRect(0.5, 0.5, 0.75, 1)
    assert SparseReadoutRect.from_bounds(COARSE.bounds()) == SparseReadoutRect(0, 0, 0.5, 0.5)
    assert SparseReadoutRect(0.5, 0, 0.5, 1).is_empty
    column = fixation_points_to_readout_rects(points(21))[0]
    assert (column.x0, column.x1) == (1 / 7, 2 / 7)
    rects = fixation_points_to_readout_rects(points(0, 4, 21))
    assert rects[1:] == list(rects)[1:]
    assert SparseReadoutRects(list(rects)) == rects
    assert SparseReadoutRects(np.array([[0.75, 0.5, 0.5, 2]])) == [SparseReadoutRect(0.75, 0.5, 0.5, 2)]
    assert SparseReadoutRects([]) == []
    assert "x0=0.0" in repr(rects)
    with pytest.raises(InvalidInputError, match="must be finite"):
        SparseReadoutRects(np.full((1, 4), math.nan))


@pytest.mark.parametrize(("grid", "cell", "columns"), [(7, 6, 42), (7, 5, 70), (14, 13, 70), (14, 9, 224)])
def test_fine_grids_get_no_spill(grid, cell, columns):
    """readout §9.1: the reference lets float32 error spill into a neighbour; the integer answer does not."""
    point = FixationPoint.with_grid_extent(
        float(np.float32((cell + 0.5) / grid)), 0.5, float(np.float32(1 / grid)), 1, 1, grid
    )
    found = fixation_points_to_readout_tokens([point], SparseReadoutGrid(1, columns))
    assert found.tolist() == list(range(cell * columns // grid, -(-(cell + 1) * columns // grid)))


def test_seven_by_seven_column_six_on_42():
    """readout §9.1, the example: 36–41, not 35–41."""
    tokens = fixation_points_to_readout_tokens(points(26), SparseReadoutGrid(1, 42))
    assert tokens.tolist() == list(range(36, 42))


def test_points_come_in_any_form():
    rows = points(0, 28).rows
    for form in (points(0, 28), points(0, 28).points, rows, np.column_stack([[0, 0], rows])):
        assert fixation_points_to_readout_tokens(form, FOUR).tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixation_points_to_readout_tokens([COARSE], SparseReadoutGrid(0, 4)), "readout grid is 0x4"),
        (lambda: trace_to_frame_readout_tokens(FrameFixationTrace([]), SparseReadoutGrid(4, 0)), "4x0"),
        (lambda: SparseReadoutGrid(-1, 4), "height is -1"),
        (lambda: SparseReadoutGrid.square_from_token_count(8), "8 tokens make no square grid"),
        (lambda: SparseReadoutGrid.square_from_token_count(0), "square grid"),
        (lambda: trace_frame_readout_tokens(FrameFixationTrace([]), 0, FOUR), "frame index is 0"),
        (lambda: trace_frame_readout_rects(FrameFixationTrace([]), -1), "frame index is -1"),
        (lambda: generated_frame_readout_rects(decode([0]), None, 0, 1), "frame index is 1"),
        (lambda: generated_frame_readout_tokens(decode([0]), None, 1, 0, FOUR), "batch index is 1"),
        (
            lambda: generated_to_frame_readout_tokens(decode([265]), None, 0, FOUR),
            "slot 0 is 265; frame 0 has",
        ),
        (
            lambda: generated_to_frame_readout_rects(decode([0]), {"scales": "224"}, 0),
            "the config has the scales",
        ),
        (lambda: SparseReadoutOptions(confidence_threshold=math.nan), "confidence_threshold is NaN"),
        (lambda: SparseReadoutOptions(fixation_scale=math.nan), "fixation_scale is NaN"),
        (lambda: SparseReadoutOptions(dilation=-1), "dilation is -1"),
        (lambda: SparseReadoutOptions(max_tokens_per_frame=1.5), "max_tokens_per_frame is 1.5"),
        (lambda: SparseReadoutRect(math.nan, 0, 1, 1), "x0 is NaN"),
        (lambda: fixation_points_to_readout_rects(np.zeros((2, 5))), r"shape \[2, 5\]"),
        (
            lambda: fixation_points_to_readout_rects([FixationPoint(0.5, 0.5, 0.5, math.nan)]),
            "confidence of fixation 0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
