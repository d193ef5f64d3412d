"""Rows cited as "readout §1" and "readout §2" are the worked examples of the behavioural specification."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from autogaze_client import (
    FixationBounds,
    FixationPoint,
    FixationSet,
    FrameFixationTrace,
    InvalidInputError,
    scale_token_layouts,
)
from client_helpers import decode
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def test_constructor_clamps():
    """readout §1, row ``with_extent(-0.2, 1.5, 2, 0, 7)``."""
    point = FixationPoint.with_extent(-0.2, 1.5, 2, 0, 7)
    assert point == FixationPoint(x=0, y=1, scale=1, confidence=1, width=1, height=1e-6, grid=0)


@pytest.mark.parametrize(
    ("centre", "scale", "corners"),
    [
        ((0.25, 0.25), 1, (0, 0, 0.5, 0.5)),
        ((0.25, 0.25), 1.5, (0, 0, 0.625, 0.625)),
        ((0.25, 0.25), 3, (0, 0, 0.75, 0.75)),
        ((0, 1), 1, (0, 0.75, 0.25, 1)),
    ],
)
def test_scaled_bounds(centre, scale, corners):
    """readout §1, rows "centre (.25,.25)" and "centre (0,1)"."""
    assert FixationPoint.new(*centre, 0.5, 1).scaled_bounds(scale) == FixationBounds(*corners)


@pytest.mark.parametrize("scale", [0, -1, math.nan])
def test_scale_is_floored(scale):
    bounds = FixationPoint.new(0.5, 0.5, 0.5, 1).scaled_bounds(scale)
    assert 0 < bounds.x_max - bounds.x_min < 1e-6


def test_unknown_extent_falls_back_to_scale():
    point = FixationPoint(x=0.5, y=0.5, scale=0.25, confidence=1)
    assert (point.cell_width(), point.cell_height(), point.cell_grid()) == (0.25, 0.25, None)


@pytest.mark.parametrize("field", ["x", "y", "width", "height", "confidence"])
def test_nan_is_refused_by_name(field):
    values = {"x": 0.5, "y": 0.5, "width": 0.5, "height": 0.5, "confidence": 0.5, field: math.nan}
    with pytest.raises(InvalidInputError, match=f"{field} is NaN"):
        FixationPoint.with_grid_extent(**values, grid=2)


def test_negative_grid_is_refused():
    with pytest.raises(InvalidInputError, match="grid is -1"):
        FixationPoint.with_grid_extent(0.5, 0.5, 0.5, 0.5, 1, -1)


def test_set_new_pads_an_empty_frame():
    """readout §1, row ``FixationSet.new([], 0, 1)``."""
    assert FixationSet.new([], 0, 1).points == (FixationPoint.new(0.5, 0.5, 0.25, 0),)


def test_set_new_keeps_the_given_order():
    points = [FixationPoint.new(0.1 * i, 0.5, 0.1, 0.1 * i) for i in range(4)]
    assert FixationSet.new(points, 2, 2) == FixationSet(tuple(points[:2]), 1.0)
    assert len(FixationSet.new(points, 0, 0).points) == 1


def test_with_min_len_never_truncates():
    points = [FixationPoint.new(0.5, 0.5, 0.1, 1)] * 3
    assert len(FixationSet.with_min_len(points, 0, 1).points) == 3
    assert [p.confidence for p in FixationSet.with_min_len(points, 0, 5).points] == [1, 1, 1, 0, 0]


def test_top_point():
    assert FixationSet((), 0).top_point() == FixationPoint.padding()
    first = FixationPoint.new(0.1, 0.1, 0.1, 0.2)
    assert FixationSet((first, FixationPoint.new(0.1, 0.1, 0.1, 0.9)), 0).top_point() is first


def test_json_form():
    """readout §1: ``grid`` is omitted when 0, missing extents read as 0, and reading does not clamp."""
    assert "grid" not in FixationPoint.new(0.5, 0.5, 0.5, 1).to_dict()
    read = FixationPoint.from_dict({"x": 2, "y": -1, "scale": 3, "confidence": 9})
    assert read == FixationPoint(x=2, y=-1, scale=3, confidence=9, width=0, height=0, grid=0)


@pytest.mark.parametrize(
    "fields", [{}, {"x": 1, "y": 1, "scale": 1}, {"x": "a", "y": 1, "scale": 1, "confidence": 1}]
)
def test_json_of_a_broken_point_is_refused(fields):
    with pytest.raises(InvalidInputError, match="needs numbers x, y, scale and confidence"):
        FixationPoint.from_dict(fields)


@pytest.mark.parametrize(
    ("token", "centre", "extent", "grid"),
    [
        (0, (0.25, 0.25), 0.5, 2),
        (4, (0.125, 0.125), 0.25, 4),
        (82, (13.5 / 14, 0.5 / 14), 1 / 14, 14),
    ],
)
def test_token_to_point(token, centre, extent, grid):
    """readout §2, rows "id 0 / 4" and "id 82"."""
    point = decode([token]).traces()[0].frames[0].points[0]
    assert (point.x, point.y) == pytest.approx(centre, abs=1e-6)
    assert (point.width, point.height) == pytest.approx((extent, extent), abs=1e-6)
    assert point.grid == grid


@pytest.mark.parametrize(("token", "corners"), [(44, (3, 3, 4, 4, 7)), (264, (13, 13, 14, 14, 14))])
def test_token_to_rect(token, corners):
    """readout §2, rows "id 44" and "id 264 / 265"."""
    bounds = decode([token]).traces()[0].frames[0].points[0].bounds()
    *cells, grid = corners
    found = (bounds.x_min, bounds.y_min, bounds.x_max, bounds.y_max)
    assert found == pytest.approx([cell / grid for cell in cells], abs=1e-6)


def test_ids_outside_the_vocabulary_are_skipped():
    """readout §2, row "id 264 / 265": 265 gives none, nor does an id of an earlier frame."""
    generated = decode([265, 0, 3], counts=[1, 2])
    assert [len(frame.points) for frame in generated.traces()[0].frames] == [0, 0]
    assert generated.tokens_of_rows.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("scales", "n", "layouts"),
    [
        ("32+64+224", 10, [(0, 1), (0, 1), (10, 3)]),
        ("224", 265, [(265, 16)]),
        ("32+64+112+224", 265, [(4, 2), (16, 4), (49, 7), (196, 14)]),
        ("224+32", 200, [(4, 2), (196, 14)]),
        ("224", 196, [(196, 14)]),
    ],
)
def test_layouts(scales, n, layouts):
    """readout §2, rows ``"32+64+224"``, ``"224"``, ``"224+32"``, the table of ids and the default config.

    ``"224+32"`` stays unsorted in the reference; upstream sorts it (§9.9), and so does this library.
    """
    found = scale_token_layouts({"scales": scales, "num_vision_tokens_each_frame": n})
    assert [(layout.token_count, layout.grid) for layout in found] == layouts


def test_a_bad_scale_is_refused():
    """readout §2, row ``"a+64"``: the reference drops ``a`` silently (§9.7)."""
    with pytest.raises(InvalidInputError, match="scales is 'a\\+64'"):
        scale_token_layouts({"scales": "a+64", "num_vision_tokens_each_frame": 16})


def test_a_scale_that_does_not_fill_its_square_is_clamped_to_the_edge():
    """readout §9.9: count 10, grid 3, local id 9."""
    point = decode([9], layouts=scale_token_layouts({"scales": "224", "num_vision_tokens_each_frame": 10}))
    assert (point.fixations(0)[0, 1:3]).tolist() == pytest.approx([1 / 6, 1.0])


def test_two_frames_of_seven():
    """readout §2, row "two frames of 7"."""
    ids = [1, 3, 7, 17, 16, 18, 67, 266, 318, 285, 314, 331, 296, 317]
    masks = decode(ids, counts=[7, 7]).scale_token_masks()[0]
    chosen = [[set(np.nonzero(frame)[0].tolist()) for frame in mask.frames] for mask in masks]
    assert chosen == [
        [{1, 3}, {1}],
        [{3, 12, 13, 14}, set()],
        [{47}, {0, 11, 29, 32, 33, 46}],
        [set(), set()],
    ]
    assert [(mask.grid, mask.token_count) for mask in masks] == [(2, 4), (4, 16), (7, 49), (14, 196)]


def test_padding_may_be_interleaved():
    """readout §2, row "frames of 3 and 2": the flag alone tells padding."""
    generated = decode([0, 530, 7, 266, 265], [False, True, False, False, False], [3, 2])
    first, second = generated.traces()[0].frames
    assert (len(first.points), first.stop_probability) == (2, 1.0)
    assert second.stop_probability == 0.0
    assert [(p.x, p.y) for p in second.points] == [(0.75, 0.25), (0.25, 0.25)]


def test_traces_keep_all_real_tokens():
    """readout §1, row ``traces(config, 1)``."""
    generated = decode([0, 1, 2, 3])
    assert len(generated.traces(1)[0].frames[0].points) == 4
    assert len(generated.traces(6)[0].frames[0].points) == 6


def test_a_missing_row_is_refused():
    with pytest.raises(InvalidInputError, match=r"row is 1; this output has rows 0\.\.0"):
        decode([0]).fixations(1)


UNIT = st.floats(0, 1, width=32)
EXTENT = st.floats(2.0**-19, 1, width=32)


@st.composite
def wire_fixations(draw):
    frames = draw(st.integers(1, 5))
    count = draw(st.integers(0, 12))
    row = st.tuples(st.integers(0, frames - 1), UNIT, UNIT, EXTENT, EXTENT, UNIT, st.integers(0, 30))
    rows = draw(st.lists(row, min_size=count, max_size=count))
    return np.array(rows, np.float32).reshape(count, 7), frames


@given(wire_fixations())
def test_trace_keeps_every_fixation_in_frame_order(sample):
    fixations, frames = sample
    trace = FrameFixationTrace.from_array(fixations, frames, np.zeros(frames))
    assert len(trace) == frames
    order = np.argsort(fixations[:, 0], kind="stable")
    np.testing.assert_array_equal(trace.to_array(), fixations[order])


@given(wire_fixations())
def test_json_round_trip(sample):
    fixations, frames = sample
    trace = FrameFixationTrace.from_array(fixations, frames, np.linspace(0, 1, frames))
    assert FrameFixationTrace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace


@given(hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 264), unique=True))
def test_points_agree_with_masks(ids):
    generated = decode(ids.tolist())
    assert len(generated.fixations(0)) == sum(int(mask.sum()) for mask in generated.gazing_mask) == len(ids)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 2, "frame of fixation 0 is 2"),
        (0, 0.5, "frame of fixation 0 is 0.5"),
        (6, -1, "grid of fixation 0"),
        (5, math.nan, "confidence of fixation 0 is NaN"),
    ],
)
def test_broken_fixations_are_refused(column, value, message):
    row = np.array([[0, 0.5, 0.5, 0.5, 0.5, 1, 2]], np.float32)
    row[0, column] = value
    with pytest.raises(InvalidInputError, match=message):
        FrameFixationTrace.from_array(row, 2, [0, 0])


def test_wrong_shapes_are_refused():
    with pytest.raises(InvalidInputError, match=r"must be \[n, 7\]"):
        FrameFixationTrace.from_array(np.zeros((2, 6)), 1, [0])
    with pytest.raises(InvalidInputError, match="one a frame"):
        FrameFixationTrace.from_array(np.zeros((0, 7)), 2, [0])


def test_a_clip_without_frames_is_empty():
    trace = FrameFixationTrace.from_array(np.zeros((0, 7)), 0, [])
    assert trace.is_empty
    assert trace.to_array().shape == (0, 7)


def test_points_and_numbers_are_two_views_of_one_set():
    rows = np.array([[0, 0.25, 0.75, 0.5, 0.5, 1, 2], [1, 0.5, 0.5, 0.25, 0.125, 0.5, 4]], np.float32)
    by_rows = FrameFixationTrace.from_array(rows, 2, [0, 1])
    by_points = FrameFixationTrace(
        FixationSet(frame.points, frame.stop_probability) for frame in by_rows.frames
    )
    assert by_rows == by_points
    assert hash(by_rows) == hash(by_points)
    np.testing.assert_array_equal(by_rows.rows, by_points.rows)
    assert pickle.loads(pickle.dumps(by_rows)) == by_rows
    assert repr(by_rows.frames[0]) == repr(by_points.frames[0])
    with pytest.raises(ValueError, match="read-only"):
        by_rows.rows[0, 0] = 1


@given(wire_fixations(), st.integers(0, 8))
def test_padding_of_arrays_is_padding_of_points(sample, least):
    fixations, frames = sample
    plain = FrameFixationTrace.from_array(fixations, frames, np.zeros(frames))
    padded = FrameFixationTrace.from_array(fixations, frames, np.zeros(frames), min_len=least)
    assert padded.frames == tuple(
        FixationSet.with_min_len(frame.points, frame.stop_probability, least) for frame in plain.frames
    )
    np.testing.assert_array_equal(
        padded.to_array(),
        np.concatenate(
            [
                np.zeros((0, 7)),
                *(
                    np.column_stack([np.full(len(frame), index), frame.to_array()])
                    for index, frame in enumerate(padded.frames)
                ),
            ]
        ),
    )
