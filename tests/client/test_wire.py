"""The request tensors, as tritonclient puts them on the wire, and the responses."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from autogaze_client import (
    AutoGazeInferenceMode,
    DeadlineExceededError,
    GazeTimings,
    InferenceError,
    InvalidInputError,
    NotFoundError,
    ServerUnavailableError,
    SourceSize,
)
from autogaze_client._grpc_messages import is_late, request_inputs, translate_error
from autogaze_client._wire import OUTPUTS, GazeOptions, clip_tensors, decode_result, video_tensors
from client_helpers import generated_for, response_for
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

FRAMES = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


def on_the_wire(tensors) -> dict[str, tuple[str, list[int]]]:
    return {item.name(): (item.datatype(), item.shape()) for item in request_inputs(tensors)}


def test_unset_knobs_are_not_sent():
    assert on_the_wire(clip_tensors(FRAMES, GazeOptions())) == {
        "FRAMES": ("UINT8", [1, 2, 4, 5, 3]),
        "MODE": ("INT32", [1, 1]),
    }


def test_every_knob_has_its_type_and_shape():
    options = GazeOptions(
        mode="tiled-full-resolution",
        gazing_ratio=[0.5, 1],
        task_loss_requirement=0.7,
        max_gaze_tokens_each_frame=np.array([3, 4]),
        target_scales=[56, 112],
        target_patch_size=14,
        top_k=10,
    )
    tensors = clip_tensors(FRAMES, options)
    assert on_the_wire(tensors) == {
        "FRAMES": ("UINT8", [1, 2, 4, 5, 3]),
        "MODE": ("INT32", [1, 1]),
        "GAZING_RATIO": ("FP32", [1, 2]),
        "TASK_LOSS_REQUIREMENT": ("FP32", [1, 1]),
        "MAX_GAZE_TOKENS": ("INT32", [1, 2]),
        "TOP_K": ("INT32", [1, 1]),
        "TARGET_SCALES": ("INT32", [1, 2]),
        "TARGET_PATCH_SIZE": ("INT32", [1, 1]),
    }
    assert tensors["MODE"].item() == 2
    assert tensors["MAX_GAZE_TOKENS"].tolist() == [[3, 4]]


def test_frames_travel_byte_for_byte_even_when_not_contiguous():
    tensors = clip_tensors(FRAMES[:, ::-1, :, ::-1], GazeOptions())
    (frames,) = [item for item in request_inputs(tensors) if item.name() == "FRAMES"]
    assert frames._get_content() == FRAMES[:, ::-1, :, ::-1].tobytes()


def test_encoded_video_is_one_byte_tensor():
    tensors = video_tensors(b"\x00\x01\xff", GazeOptions(gazing_ratio=[0.5, 0.5]))
    assert on_the_wire(tensors)["VIDEO"] == ("UINT8", [1, 3])
    assert tensors["VIDEO"].tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"gazing_ratio": 0}, r"gazing_ratio is 0; it must be above 0 and at most 1"),
        ({"gazing_ratio": 1.5}, r"gazing_ratio is 1\.5"),
        ({"gazing_ratio": math.nan}, "gazing_ratio is nan"),
        ({"gazing_ratio": [0.5, -1]}, r"gazing_ratio\[1\] is -1; it must"),
        ({"gazing_ratio": 1e-60}, "gazing_ratio is 1e-60; it must be above 0"),
        ({"gazing_ratio": 10**400}, "gazing_ratio is 1000"),
        ({"gazing_ratio": [[0.5]]}, r"gazing_ratio\[0\] is \[0\.5\]"),
        ({"gazing_ratio": np.ones((2, 1))}, r"gazing_ratio has shape \[2, 1\] \(2 values\); pass one value"),
        ({"gazing_ratio": np.array([True, True])}, r"gazing_ratio\[0\] is True"),
        ({"gazing_ratio": []}, "gazing_ratio is an empty list"),
        ({"gazing_ratio": "half"}, "gazing_ratio is 'half'"),
        ({"gazing_ratio": True}, "gazing_ratio is True"),
        (
            {"task_loss_requirement": -0.1},
            r"task_loss_requirement is -0\.1; it must be a number, finite and at least 0",
        ),
        ({"task_loss_requirement": 1e39}, r"task_loss_requirement is 1e\+39"),
        ({"task_loss_requirement": [0.7]}, r"task_loss_requirement is \[0\.7\]"),
        ({"task_loss_requirement": math.inf}, "task_loss_requirement is inf"),
        ({"task_loss_requirement": math.nan}, "task_loss_requirement is nan"),
        (
            {"max_gaze_tokens_each_frame": 0},
            "max_gaze_tokens_each_frame is 0; it must be whole numbers of at least 1",
        ),
        ({"max_gaze_tokens_each_frame": 2.5}, r"max_gaze_tokens_each_frame is 2\.5"),
        ({"max_gaze_tokens_each_frame": [1, 2**31]}, "below 2\\^31"),
        ({"max_gaze_tokens_each_frame": [True, 5]}, r"max_gaze_tokens_each_frame\[0\] is True"),
        ({"top_k": 2.0}, r"top_k is 2\.0"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number of at least 1"),
        ({"target_scales": [56, 112]}, "pass both or neither"),
        ({"target_patch_size": 14}, "pass both or neither"),
        ({"target_scales": [], "target_patch_size": 14}, "must be a list of image sizes"),
        ({"target_scales": [0], "target_patch_size": 14}, r"target_scales\[0\] is 0"),
        ({"target_scales": np.array(56), "target_patch_size": 14}, "must be a list of image sizes"),
        ({"target_scales": "56", "target_patch_size": 14}, "must be a list of image sizes"),
        ({"target_scales": [56], "target_patch_size": 0}, "target_patch_size is 0"),
        ({"mode": "zoom"}, "'zoom' is no inference mode"),
    ],
)
def test_bad_knobs_are_refused(knobs, message):
    with pytest.raises(InvalidInputError, match=message):
        GazeOptions(**knobs)


@pytest.mark.parametrize("knob", ["gazing_ratio", "max_gaze_tokens_each_frame"])
@pytest.mark.parametrize("count", [1, 3])
def test_lists_must_match_the_frames(knob, count):
    with pytest.raises(InvalidInputError, match=f"{knob} has {count} values for 2 frames"):
        clip_tensors(FRAMES, GazeOptions(**{knob: [1] * count}))


@pytest.mark.parametrize("knob", ["gazing_ratio", "max_gaze_tokens_each_frame"])
def test_an_array_of_one_is_one_value_for_every_frame(knob):
    options = GazeOptions(**{knob: np.array([1])})
    assert {tensor.shape for name, tensor in clip_tensors(FRAMES, options).items() if name != "FRAMES"} == {
        (1, 1)
    }


@pytest.mark.parametrize("knob", ["gazing_ratio", "max_gaze_tokens_each_frame"])
def test_a_list_of_one_for_a_video_of_unknown_length_is_refused(knob):
    """On the wire it would hold for every frame; elsewhere it is for a clip of one."""
    with pytest.raises(InvalidInputError, match=rf"{knob} is \[1\], but how many frames.*pass 1 for every"):
        video_tensors(b"v", GazeOptions(**{knob: [1]}))
    assert video_tensors(b"v", GazeOptions(**{knob: 1}))


@pytest.mark.parametrize("requirement", [0, 0.7, 5])
def test_any_finite_requirement_from_zero_is_sent(requirement):
    sent = clip_tensors(FRAMES, GazeOptions(task_loss_requirement=requirement))["TASK_LOSS_REQUIREMENT"]
    assert sent.item() == pytest.approx(requirement)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FRAMES.astype(np.float32), r"frames are float32; pass uint8 values from 0 to 255 \(of floats"),
        (FRAMES[0], r"add a time axis: frames\[None\]"),
        (FRAMES[..., :2], r"\[2, 4, 5, 2\]; pass \[T, H, W, 3\]"),
        (FRAMES[:0], "frames, height and width must be at least 1"),
        (FRAMES[:, :, :0], "frames, height and width must be at least 1"),
    ],
)
def test_bad_frames_are_refused(frames, message):
    with pytest.raises(InvalidInputError, match=message):
        clip_tensors(frames, GazeOptions())


def test_a_clip_over_grpcs_limit_is_refused_before_it_is_copied():
    frames = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (400, 1080, 1920, 3))
    with pytest.raises(InvalidInputError, match=r"400 frames have 2488320000 bytes.*fewer frames"):
        clip_tensors(frames, GazeOptions())


def test_an_empty_video_is_refused():
    with pytest.raises(InvalidInputError, match="0 bytes"):
        video_tensors(b"", GazeOptions())


def decode(outputs):
    return decode_result(outputs, AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT, GazeTimings())


def through_grpc(outputs):
    """The tensors as tritonclient reads them from a response message."""
    response = service_pb2.ModelInferResponse()
    for name, array in outputs.items():
        tensor = response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype))
        tensor.shape.extend(array.shape)
        response.raw_output_contents.append(array.tobytes())
    result = InferResult(response)
    return {name: result.as_numpy(name) for name in OUTPUTS}


@pytest.mark.parametrize("frames", [1, 3])
def test_a_response_becomes_a_result(frames):
    generated = generated_for(frames)
    result = decode(through_grpc(response_for(generated, 48, 64)))
    np.testing.assert_array_equal(result.generated.gazing_pos, generated.gazing_pos)
    assert result.source_size == SourceSize(frames, 48, 64)
    assert result.generated.num_vision_tokens_each_frame == 265
    assert [len(frame.points) for frame in result.trace.frames] == [2] * frames


def test_a_response_without_fixations():
    outputs = response_for(generated_for(2, slots=1), 48, 64)
    result = decode(through_grpc(outputs))
    assert result.fixations.shape == (0, 7)
    assert [frame.points for frame in result.trace.frames] == [(), ()]
    assert result.gaze_ratio == 0


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_a_missing_output_is_named(name):
    outputs = response_for(generated_for(2), 48, 64)
    del outputs[name]
    with pytest.raises(InferenceError, match=f"lacks {name}"):
        decode(outputs)


def test_a_wrong_output_type_is_named():
    outputs = response_for(generated_for(2), 48, 64)
    outputs["GAZING_POS"] = outputs["GAZING_POS"].astype(np.int32)
    with pytest.raises(InferenceError, match="GAZING_POS came as int32"):
        decode(outputs)


def test_a_contradictory_response_is_refused():
    outputs = response_for(generated_for(2), 48, 64)
    outputs["SOURCE_SIZE"] = np.array([[3, 48, 64]], np.int32)
    with pytest.raises(InferenceError, match="covers 2 frames, but the source has 3"):
        decode(outputs)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidInputError),
        ("UNAVAILABLE", ServerUnavailableError),
        ("CANCELLED", ServerUnavailableError),
        ("DEADLINE_EXCEEDED", DeadlineExceededError),
        ("NOT_FOUND", NotFoundError),
        ("INTERNAL", InferenceError),
        ("UNAUTHENTICATED", InferenceError),
    ],
)
def test_grpc_status_codes(status, kind):
    error = translate_error(InferenceServerException("ratio is 7", status=f"StatusCode.{status}"), "host:1")
    assert type(error) is kind
    assert str(error).startswith("host:1: ratio is 7")


def test_a_call_that_the_server_gave_up_at_its_deadline_is_late_and_no_lost_server():
    said = InferenceServerException(
        "Stream removed (Deadline Exceeded)", status="StatusCode.DEADLINE_EXCEEDED"
    )
    error = translate_error(said, "host:1")
    assert type(error) is DeadlineExceededError
    assert "timeout=" in str(error)


def test_a_server_that_stopped_when_the_callers_time_was_over_was_not_away():
    """Both ends watch the same deadline, and either may be first."""
    said = InferenceServerException(
        "the 1.5 s that the caller allowed were over", status="StatusCode.UNAVAILABLE"
    )
    assert type(translate_error(said, "host:1")) is ServerUnavailableError
    assert type(translate_error(said, "host:1", late=True)) is DeadlineExceededError
    wrong = InferenceServerException("ratio is 7", status="StatusCode.INVALID_ARGUMENT")
    assert type(translate_error(wrong, "host:1", late=True)) is InvalidInputError
    assert not is_late(time.monotonic(), 1.0)
    assert not is_late(0.0, None)
    assert is_late(time.monotonic() - 1.0, 1.0)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Stub process 'autogaze_stream_0_0' is not healthy.", "process has died"),
        ("Stream removed", "ended the call"),
        (
            "in ensemble 'autogaze', Failed to increase the shared memory pool size for key 'a' to 9 bytes",
            "/dev/shm",
        ),
    ],
)
def test_what_the_server_lacks_is_no_fault_of_the_request(said, advice):
    error = translate_error(InferenceServerException(said, status="StatusCode.INTERNAL"), "host:1")
    assert type(error) is ServerUnavailableError
    assert said in str(error)
    assert advice in str(error)
