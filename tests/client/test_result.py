from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
from autogaze_client import (
    AutoGazeInferenceMode,
    GazeResult,
    GazeTimings,
    InferenceError,
    InvalidInputError,
    SourceSize,
)
from autogaze_client._wire import STREAM_OUTPUTS, decode_frame
from client_helpers import generated_for, response_for
from hypothesis import given
from hypothesis import strategies as st

RESIZE = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT
TILED = AutoGazeInferenceMode.TILED_FULL_RESOLUTION


def result_of(frames: int, *, rows: int = 1, slots: int = 3, mode=RESIZE, width: int = 64, seed: int = 0):
    generated = generated_for(frames, rows=rows, slots=slots, seed=seed)
    timings = GazeTimings(read_ms=1, request_ms=2, decode_ms=3)
    return GazeResult(generated, generated.fixations(0), mode, SourceSize(frames, 48, width), timings)


def frame_result(seed: int = 0) -> GazeResult:
    """As a stream's frame gives it: the server sent no fixations."""
    generated = generated_for(1, slots=6, seed=seed)
    sent = response_for(generated, 48, 64)
    outputs = {name: sent[name] for name in STREAM_OUTPUTS}
    return decode_frame(outputs, (48, 64), generated.scale_layouts, GazeTimings(request_ms=2))


def test_padding_does_not_count():
    result = result_of(2, slots=6)
    assert result.tokens_per_frame.tolist() == [5, 5]
    assert result.gaze_ratio == pytest.approx(5 / 265)
    assert result.gaze_ratio_per_frame.tolist() == pytest.approx([5 / 265] * 2)


def test_tiles_share_the_ratio():
    result = result_of(2, rows=4, slots=6, mode=TILED)
    assert result.tokens_per_frame.tolist() == [20, 20]
    assert result.gaze_ratio == pytest.approx(5 / 265)


def test_a_frame_stopped_where_any_slot_is_padded():
    assert [frame.stop_probability for frame in result_of(3).trace.frames] == [1.0] * 3
    assert len(result_of(3).traces) == 1


def test_gazing_info_is_upstreams():
    result = result_of(2)
    info = result.gazing_info()
    assert set(info) == {"gazing_pos", "num_gazing_each_frame", "if_padded_gazing"}
    assert info["gazing_pos"] is result.generated.gazing_pos


def test_gazing_info_of_tiles_is_refused():
    with pytest.raises(InvalidInputError, match=r"tiled_full_resolution gives 4 tiles; use mode 'resize'"):
        result_of(1, rows=4, mode=TILED).gazing_info()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_concatenation_counts_frames_on(lengths):
    parts = [result_of(length, seed=index) for index, length in enumerate(lengths)]
    joined = GazeResult.concatenate(parts)
    assert joined.source_size == SourceSize(sum(lengths), 48, 64)
    assert joined.trace.frames == tuple(frame for part in parts for frame in part.trace.frames)
    assert joined.generated.traces()[0] == joined.trace
    assert joined.timings == GazeTimings(*(len(parts) * ms for ms in (1, 2, 3)), None, len(parts))


def test_parts_of_different_videos_are_refused():
    with pytest.raises(
        InvalidInputError, match="a resize result of 32x48 cannot follow a resize result of 64x48"
    ):
        GazeResult.concatenate([result_of(1), result_of(1, width=32)])
    with pytest.raises(InvalidInputError, match="tiled_full_resolution"):
        GazeResult.concatenate([result_of(1), result_of(1, mode=TILED)])
    with pytest.raises(InvalidInputError, match="at least one"):
        GazeResult.concatenate([])


def test_a_frame_count_that_disagrees_is_refused():
    generated = generated_for(2)
    with pytest.raises(InvalidInputError, match="covers 2 frames, but the source has 3"):
        GazeResult(generated, generated.fixations(0), RESIZE, SourceSize(3, 48, 64))


def test_json(tmp_path):
    result = result_of(2)
    read = json.loads(result.write_json(tmp_path / "gaze.json").read_text())
    assert read["source_size"] == {"frames": 2, "height": 48, "width": 64}
    assert read["tokens_per_frame"] == [2, 2]
    assert [scale["grid"] for scale in read["scales"]] == [2, 4, 7, 14]
    assert read["frames"] == [frame.to_dict() for frame in result.trace.frames]


def test_json_is_strict(tmp_path):
    broken = result_of(1)
    timings = GazeTimings(request_ms=math.nan)
    result = GazeResult(broken.generated, broken.fixations, RESIZE, broken.source_size, timings)
    with pytest.raises(InvalidInputError, match=r"gaze\.json cannot hold NaN"):
        result.write_json(tmp_path / "gaze.json")


def test_server_time_is_known_only_where_all_parts_know_it():
    known, unknown = GazeTimings(server_ms=2.0), GazeTimings()
    assert GazeTimings.total([known, known]).server_ms == 4.0
    assert GazeTimings.total([known, unknown]).server_ms is None


def test_fixations_of_another_shape_are_refused():
    with pytest.raises(InvalidInputError, match=r"must be \[n, 7\]"):
        GazeResult(generated_for(1), np.zeros((2, 6), np.float32), RESIZE, SourceSize(1, 4, 4))


def test_gazing_info_as_torch_tensors():
    torch = pytest.importorskip("torch", reason="gives torch tensors; pip install 'autogaze-triton[export]'")
    result = result_of(2)
    numpy_info, info = result.gazing_info(), result.gazing_info(as_torch=True)
    assert info["gazing_pos"].dtype == torch.int64
    assert info["if_padded_gazing"].dtype == torch.bool
    assert {name: tensor.tolist() for name, tensor in info.items()} == {
        name: array.tolist() for name, array in numpy_info.items()
    }


def test_a_streams_frame_computes_its_fixations_when_they_are_read_and_once():
    result = frame_result()
    assert "fixations" not in vars(result)
    np.testing.assert_array_equal(result.fixations, generated_for(1, slots=6).fixations(0))
    assert result.fixations is result.fixations
    assert result.trace == generated_for(1, slots=6).traces()[0]


@pytest.mark.parametrize(
    "again",
    [
        lambda result: pickle.loads(pickle.dumps(result)),
        copy.copy,
        copy.deepcopy,
        lambda result: replace(result, timestamps=None),
        lambda result: GazeResult(*(getattr(result, item.name) for item in fields(result))),
    ],
    ids=["pickle", "copy", "deepcopy", "replace", "constructor"],
)
def test_a_copy_of_a_streams_frame_holds_its_fixations(again):
    result = again(frame_result())
    want = result_of(1, slots=6)
    assert type(result) is GazeResult
    assert vars(result).keys() == vars(want).keys()
    np.testing.assert_array_equal(vars(result)["fixations"], want.fixations)
    assert (result.mode, result.source_size, result.timings) == (
        RESIZE,
        want.source_size,
        GazeTimings(request_ms=2),
    )


def test_a_streams_frame_is_a_result_as_any_other():
    result = frame_result()
    whole = GazeResult(
        result.generated,
        generated_for(1, slots=6).fixations(0),
        RESIZE,
        SourceSize(1, 48, 64),
        result.timings,
    )
    assert repr(result) == repr(whole)
    assert result.to_dict() == whole.to_dict()
    assert result != whole, "results are compared by identity: their arrays have no truth"
    assert hash(result) != hash(whole)
    with pytest.raises(AttributeError):
        result.fixations = whole.fixations


def test_a_constructor_needs_the_fixations():
    result = frame_result()
    with pytest.raises(TypeError, match="fixations"):
        GazeResult(generated=result.generated, mode=RESIZE, source_size=result.source_size)


def test_streamed_frames_are_joined():
    joined = GazeResult.concatenate([frame_result(seed) for seed in range(3)])
    want = GazeResult.concatenate([result_of(1, slots=6, seed=seed) for seed in range(3)])
    np.testing.assert_array_equal(joined.fixations, want.fixations)


def test_a_streams_frame_without_a_row_is_refused_at_once():
    sent = response_for(generated_for(1, slots=6), 48, 64)
    outputs = {name: sent[name][:, :0] for name in STREAM_OUTPUTS}
    with pytest.raises(InferenceError, match="contradicts itself: GAZING_POS has no row"):
        decode_frame(outputs, (48, 64), generated_for(1).scale_layouts, GazeTimings())


def test_a_first_frame_whose_answer_names_no_scale_is_refused():
    outputs = response_for(generated_for(1), 48, 64) | {"SCALE_GRIDS": np.zeros((1, 0), np.int32)}
    with pytest.raises(InferenceError, match="SCALE_GRIDS names no scale"):
        decode_frame(outputs, (48, 64), None, GazeTimings())
