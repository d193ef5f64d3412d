"""Rows cited as "readout §8" are the worked examples of the behavioural specification."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_client import (
    AutoGazeTraceStore,
    FixationPoint,
    FrameFixationTrace,
    InvalidInputError,
    NotFoundError,
)
from client_helpers import generated_for
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

MAPS = np.array([0, 0.1, 0.1, 0, 0.2, 0.4, 0.6, 0.8], np.float32).reshape(1, 2, 2, 2)


def reference_file(dtype=np.float32, **changes) -> dict[str, np.ndarray]:
    """One clip, two frames, one point a frame, as the reference stores them."""
    tensors = {
        "fixations": np.array([0.25, 0.75, 0.5, 0.25], dtype).reshape(1, 2, 1, 2),
        "scales": np.full((1, 2, 1), 0.5, dtype),
        "confidences": np.ones((1, 2, 1), dtype),
        "stop_probabilities": np.zeros((1, 2), dtype),
    }
    return {name: value for name, value in {**tensors, **changes}.items() if value is not None}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_reads_the_references_files(dtype, tmp_path):
    """readout §8, row "shape [1,2,1,2], values .25 .75 .5 .25"."""
    path = tmp_path / "traces.safetensors"
    path.write_bytes(save(reference_file(dtype)))
    store = AutoGazeTraceStore.from_file(path)
    trace = store.trace(0)
    assert trace.frames[0].points == (FixationPoint.new(0.25, 0.75, 0.5, 1),)
    assert (trace.frames[0].points[0].x, trace.frames[1].points[0].y) == (0.25, 0.25)
    assert (len(store), store.is_empty, store.clip_len, store.k) == (1, False, 2, 1)
    assert store.trace(1) is None
    assert store.visibility_shape is None
    assert store.visibility_map(0, 1) is None


def test_visibility_maps():
    """readout §8, row "maps [1,2,2,2] ending .2 .4 .6 .8"."""
    store = AutoGazeTraceStore.from_safetensors(save(reference_file(visibility_maps=MAPS)))
    assert store.visibility_shape == (2, 2)
    assert store.visibility_map(0, 1).tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert store.visibility_map(0, 2) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": np.ones((1, 1, 1), np.float32)}, r"scales has shape \[1, 1, 1\]"),
        ({"confidences": None}, "no tensor confidences"),
        ({"stop_probabilities": np.zeros((2,), np.float32)}, "stop_probabilities has shape"),
        ({"fixations": np.zeros((1, 2, 2), np.float32)}, "fixations has shape"),
        ({"fixations": np.zeros((1, 2, 1, 2))}, "fixations is float64"),
        ({"visibility_maps": MAPS[:, :1].copy()}, "visibility_maps has shape"),
        ({"confidences": np.full((1, 2, 1), np.nan, np.float32)}, "confidences holds a NaN"),
        ({"point_counts": np.full((1, 2), 2, np.float32)}, "point_counts"),
    ],
)
def test_broken_files_are_refused(changes, message):
    """readout §8, row "``scales`` [1,1,1] against that", and its like."""
    with pytest.raises(InvalidInputError, match=message):
        AutoGazeTraceStore.from_safetensors(save(reference_file(**changes)))


def test_what_is_no_store(tmp_path):
    with pytest.raises(InvalidInputError, match="not a trace store"):
        AutoGazeTraceStore.from_safetensors(b"no safetensors at all")
    with pytest.raises(NotFoundError, match="no trace store"):
        AutoGazeTraceStore.from_file(tmp_path / "missing")


def test_a_store_without_points_gives_none():
    """readout §9.13: the reference invents a padding point."""
    empty = reference_file(
        fixations=np.zeros((1, 2, 0, 2), np.float32),
        scales=np.zeros((1, 2, 0), np.float32),
        confidences=np.zeros((1, 2, 0), np.float32),
    )
    trace = AutoGazeTraceStore.from_safetensors(save(empty)).trace(0)
    assert [len(frame) for frame in trace.frames] == [0, 0]


@given(st.integers(1, 3), st.integers(1, 4), st.data())
def test_round_trip_keeps_width_height_grid_and_lengths(clips, frames, data):
    """readout §9.13: the reference has no writer and loses width, height and grid."""
    traces = []
    for _ in range(clips):
        count = data.draw(st.integers(0, 6))
        unit = st.floats(0, 1, width=32)
        extent = st.floats(2.0**-19, 1, width=32)
        row = st.tuples(st.integers(0, frames - 1), unit, unit, extent, extent, unit, st.integers(0, 30))
        rows = np.array(data.draw(st.lists(row, min_size=count, max_size=count)), np.float32).reshape(
            count, 7
        )
        stops = data.draw(st.lists(unit, min_size=frames, max_size=frames))
        traces.append(FrameFixationTrace.from_array(rows, frames, stops))
    store = AutoGazeTraceStore.from_safetensors(AutoGazeTraceStore.from_traces(traces).to_safetensors())
    assert [store.trace(index) for index in range(len(store))] == traces


def test_what_the_reference_reads_of_our_files(tmp_path):
    """The reference's keys are there, in its shapes; short frames are padded with confidence 0."""
    trace = generated_for(2, slots=5).traces()[0]
    short = FrameFixationTrace(
        [trace.frames[0], *FrameFixationTrace.from_array(np.zeros((0, 7)), 1, [0]).frames]
    )
    path = AutoGazeTraceStore.from_traces([trace, short], visibility_maps=np.ones((2, 2, 3, 3))).save(
        tmp_path / "t.safetensors"
    )
    store = AutoGazeTraceStore.from_file(path)
    assert (len(store), store.clip_len, store.k, store.visibility_shape) == (2, 2, 4, (3, 3))
    assert store.trace(1) == short
    with pytest.raises(InvalidInputError, match=r"lengths \[1, 2\]"):
        AutoGazeTraceStore.from_traces([trace, FrameFixationTrace(trace.frames[:1])])
    with pytest.raises(InvalidInputError, match="lengths"):
        AutoGazeTraceStore.from_traces([])
