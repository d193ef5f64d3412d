"""The adapter between Triton's python backend and this package, with a stand-in for the stub's module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from autogaze_backend import triton
from autogaze_backend.metrics import Meters
from autogaze_backend.observing import Observer
from autogaze_backend.stream_answers import STREAM_OUTPUTS, StreamAnswer
from autogaze_backend.triton import StreamServer, find_bundle, one_by_one
from autogaze_client import (
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    NotFoundError,
    RequestCancelledError,
    ServerUnavailableError,
    StreamExpired,
    VideoDecodeError,
)


@dataclass
class Tensor:
    label: str
    array: np.ndarray

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> np.ndarray:
        return self.array


class TritonError(Exception):
    INVALID_ARG, NOT_FOUND, UNAVAILABLE, INTERNAL, CANCELLED = (
        "INVALID_ARG",
        "NOT_FOUND",
        "UNAVAILABLE",
        "INTERNAL",
        "CANCELLED",
    )

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class Refusal:
    """An error as another model's response holds it."""

    def __init__(self, code: str, message: str = "the reason") -> None:
        self._code, self._message = code, message

    def code(self) -> str:
        return self._code

    def message(self) -> str:
        return self._message


@dataclass
class Response:
    output_tensors: list[Tensor] | None = None
    error: TritonError | None = None


class PbUtils:
    Tensor = Tensor
    TritonError = TritonError
    InferenceResponse = Response
    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


@dataclass
class Request:
    tensors: dict[str, np.ndarray]
    gone: bool = False
    label: str = ""
    correlation: int = 0
    microseconds: int = 0
    flag_bits: int = 0
    names: frozenset[str] = frozenset(STREAM_OUTPUTS)
    asked: int = 0
    sent: list[Response] = field(default_factory=list)

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.tensors.items()]

    def request_id(self) -> str:
        return self.label

    def correlation_id(self) -> int:
        return self.correlation

    def is_cancelled(self) -> bool:
        self.asked += 1
        return self.gone

    def flags(self) -> int:
        return self.flag_bits

    def trace(self) -> str:
        return f"the trace of {self.label}"

    def requested_output_names(self) -> frozenset[str]:
        return self.names

    def timeout(self) -> int:
        return self.microseconds

    def get_response_sender(self) -> Any:
        request = self

        class Sender:
            def send(self, response: Response, flags: int) -> None:
                assert flags == PbUtils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                request.sent.append(response)

        return Sender()


def observer() -> Observer:
    return Observer("model", "1", Meters())


def serve(pb_utils, requests, run):
    return triton.serve(pb_utils, requests, run, observer())


def serve_as_finished(pb_utils, requests, take_in):
    triton.ClipServer(pb_utils, take_in, observer()).serve(requests)


def number(value: int) -> Request:
    return Request({"X": np.array([[value]])})


def double(tensors, caller):
    value = int(tensors["X"][0])
    if value < 0:
        raise InvalidInputError(f"X is {value}; it must be at least 0")
    if value == 0:
        raise ZeroDivisionError("secret path /etc/shadow")
    return {"Y": tensors["X"] * 2}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInputError("a"), "INVALID_ARG"),
        (VideoDecodeError("a"), "INVALID_ARG"),
        (NotFoundError("a"), "NOT_FOUND"),
        (StreamExpired("a"), "NOT_FOUND"),
        (ServerUnavailableError("a"), "UNAVAILABLE"),
        (DeadlineExceededError("a"), "UNAVAILABLE"),
        (RequestCancelledError("a"), "CANCELLED"),
        (InferenceError("a"), "INTERNAL"),
        (KeyError("a"), "INTERNAL"),
    ],
)
def test_every_exception_has_its_code(error, code):
    def run(tensors, caller):
        raise error

    (response,) = serve(PbUtils, [number(1)], one_by_one(run))
    assert response.error.code == code


def test_each_request_gets_its_own_answer():
    good, bad, broken, last = serve(
        PbUtils, [number(1), number(-4), number(0), number(3)], one_by_one(double)
    )
    assert good.output_tensors[0].array.tolist() == [[2]]
    assert bad.error.message == "X is -4; it must be at least 0"
    assert broken.error.code == "INTERNAL"
    assert last.output_tensors[0].array.tolist() == [[6]]


def test_an_internal_error_tells_its_type_but_not_its_text():
    (response,) = serve(PbUtils, [number(0)], one_by_one(double))
    assert "ZeroDivisionError" in response.error.message
    assert "secret" not in response.error.message


def test_a_batch_dimension_other_than_one_is_refused_alone():
    two, one = serve(PbUtils, [Request({"X": np.array([[1], [2]])}), number(5)], one_by_one(double))
    assert two.error.code == "INVALID_ARG"
    assert "batch dimension 2" in two.error.message
    assert one.output_tensors[0].array.tolist() == [[10]]


def test_a_failure_of_the_whole_batch_answers_everyone():
    def run(batch, callers):
        raise RuntimeError("lost")

    responses = serve(PbUtils, [number(1), number(2)], run)
    assert [response.error.code for response in responses] == ["INTERNAL", "INTERNAL"]


def test_requests_are_answered_as_they_finish_and_in_any_order():
    requests = [number(1), Request({"X": np.array([[1], [2]])}), number(2), number(3)]
    waiting = []
    serve_as_finished(PbUtils, requests, waiting.extend)
    seen = []
    for position in (2, 0, 1):
        waiting[position].answer({"Y": waiting[position].tensors["X"]})
        seen.append([len(request.sent) for request in requests])
    assert seen == [[0, 1, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]
    assert [request.sent[0].error is None for request in requests] == [True, False, True, True]
    with pytest.raises(RuntimeError, match="answered twice"):
        waiting[0].answer({"Y": np.zeros(1)})


def test_a_request_whose_caller_has_gone_is_not_begun():
    served = []

    def run(tensors, caller):
        caller.check()
        served.append(int(tensors["X"][0]))
        return {"Y": tensors["X"]}

    requests = [number(1), Request({"X": np.array([[2]])}, gone=True), number(3)]
    answers = serve(PbUtils, requests, one_by_one(run))
    assert served == [1, 3]
    assert [answer.error.code if answer.error else None for answer in answers] == [None, "CANCELLED", None]


def test_callers_tell_whether_they_have_gone_and_how_long_they_wait():
    requests = [
        number(1),
        Request({"X": np.array([[2]])}, gone=True),
        Request({"X": np.array([[3]])}, microseconds=1),
        Request({"X": np.array([[4]])}, microseconds=3_600_000_000),
    ]
    arrived = []
    serve_as_finished(PbUtils, requests, arrived.extend)
    assert [type(arrival.caller.lost()) for arrival in arrived] == [
        type(None),
        RequestCancelledError,
        DeadlineExceededError,
        type(None),
    ]
    for arrival in arrived:
        error = arrival.caller.lost("after 1 of 2 frames")
        arrival.answer({"Y": arrival.tensors["X"]} if error is None else error)
    assert [request.sent[0].error.code if request.sent[0].error else None for request in requests] == [
        None,
        "CANCELLED",
        "UNAVAILABLE",
        None,
    ]
    assert (
        "1e-06 s that the caller allowed were over after 1 of 2 frames" in requests[2].sent[0].error.message
    )


FRAME = np.zeros((1, 4, 6, 3), np.uint8)


def frame(stream: int = 1, flags: int = 0, **more: Any) -> Request:
    return Request({"FRAME": FRAME}, correlation=stream, flag_bits=flags, **more)


def test_a_streams_request_says_itself_which_stream_and_whether_it_starts_or_ends():
    seen = []

    def run(batch):
        seen.extend(batch)
        return [StreamAnswer({"GAZING_POS": np.array([[item.stream_id]])}, 1, 1) for item in batch]

    server = StreamServer(PbUtils, run, observer(), 8)
    few = frozenset({"GAZING_POS"})
    answers = server.serve([frame(7, 1), frame("door", 2, names=few), frame(9, 3), frame(11)])
    assert [(item.stream_id, item.start, item.end) for item in seen] == [
        (7, True, False),
        ("door", False, True),
        (9, True, True),
        (11, False, False),
    ]
    assert [item.tensors["FRAME"].shape for item in seen] == [(4, 6, 3)] * 4
    assert (seen[0].outputs, seen[1].outputs) == (frozenset(STREAM_OUTPUTS), few)
    assert [answer.output_tensors[0].array.tolist() for answer in answers] == [
        [[[7]]],
        [[["door"]]],
        [[[9]]],
        [[[11]]],
    ]


def test_each_frame_of_a_batch_gets_its_own_answer_and_is_counted():
    def run(batch):
        return [InvalidInputError("bad"), StreamAnswer({}, 1, 12), StreamAnswer({}, 0, 0)]

    meters = Meters()
    two = Request({"FRAME": np.zeros((2, 4, 6, 3), np.uint8)})
    answers = StreamServer(PbUtils, run, Observer("m", "1", meters), 8).serve(
        [frame(), two, frame(2), frame(3)]
    )
    assert [answer.error.code if answer.error else None for answer in answers] == [
        "INVALID_ARG",
        "INVALID_ARG",
        None,
        None,
    ]
    assert "batch dimension 2" in answers[1].error.message
    found = {
        sample.name + "".join(value for _, value in sample.labels): sample.value
        for sample in meters.samples()
    }
    assert (found["autogaze_requests_totalok"], found["autogaze_requests_totalinvalid"]) == (2, 2)
    assert (found["autogaze_frames_total"], found["autogaze_tokens_total"]) == (1, 12)
    assert (found["autogaze_tokens_per_frame_sum"], found["autogaze_tokens_per_frame_count"]) == (12, 1)


def test_a_failure_of_all_frames_answers_everyone():
    def run(batch):
        raise RuntimeError("lost")

    answers = StreamServer(PbUtils, run, observer(), 8).serve([frame(1), frame(2)])
    assert [answer.error.code for answer in answers] == ["INTERNAL", "INTERNAL"]


@pytest.mark.parametrize(
    ("took", "batch", "microseconds", "callers", "asked"),
    [
        (0.001, 1, 0, 0, 0),
        (0.03, 1, 5_000_000, 1, 0),
        (0.5, 1, 0, 1, 1),
        (0.5, 1, 5_000_000, 1, 1),
        (0.001, 2, 0, 2, 2),
    ],
    ids=["fresh", "with a deadline", "after a long batch", "both", "of a full batch"],
)
def test_callers_of_frames_are_asked_for_where_they_may_have_gone(took, batch, microseconds, callers, asked):
    now = [0.0]
    seen = []

    def run(items):
        now[0] += took
        seen.append(items)
        return [StreamAnswer({}, 1, 1) for _ in items]

    server = StreamServer(PbUtils, run, observer(), 2, clock=lambda: now[0])
    server.serve([frame()])
    requests = [frame(index, microseconds=microseconds) for index in range(batch)]
    server.serve(requests)
    assert [item.caller for item in seen[0]] == [None], "nothing can have waited for the first batch"
    waiting = [item.caller for item in seen[1] if item.caller is not None]
    assert len(waiting) == callers
    assert [caller.lost() for caller in waiting] == [None] * callers
    assert sum(request.asked for request in requests) == asked


@pytest.mark.parametrize(
    ("took", "asked"), [(0.001, 0), (0.5, 1)], ids=["at once", "after waiting for places"]
)
def test_callers_of_clips_are_asked_for_where_they_may_have_gone(took, asked):
    now = [0.0]
    arrived = []

    def take_in(arrivals):
        now[0] += took
        arrived.extend(arrivals)

    server = triton.ClipServer(PbUtils, take_in, observer(), clock=lambda: now[0])
    server.serve([number(1)])
    request = number(2)
    server.serve([request])
    assert arrived[1].caller.lost() is None
    assert request.asked == asked


class Asking(PbUtils):
    """With another model that can be asked."""

    answer: Any = None
    asked: ClassVar[list[dict[str, Any]]] = []

    class InferenceRequest:
        def __init__(self, **what: Any) -> None:
            Asking.asked.append(what)

        def exec(self) -> Any:
            return Asking.answer

    @staticmethod
    def get_output_tensor_by_name(response: Any, name: str) -> Tensor:
        return response.tensors.get(name)


@dataclass
class Reply:
    tensors: dict[str, Tensor] = field(default_factory=dict)
    refusal: Refusal | None = None

    def has_error(self) -> bool:
        return self.refusal is not None

    def error(self) -> Refusal | None:
        return self.refusal


def test_a_video_is_decoded_by_the_model_for_that_in_the_name_of_its_request():
    frames = np.zeros((1, 2, 4, 6, 3), np.uint8)
    Asking.answer = Reply({"DECODED": Tensor("DECODED", frames)})
    arrived = []
    request = Request({"VIDEO": np.arange(9, dtype=np.uint8)[None]}, label="door-1")
    triton.ClipServer(Asking, arrived.extend, observer()).serve([request])
    found = arrived[0].decode(arrived[0].tensors["VIDEO"], 1.5)
    assert found.shape == (2, 4, 6, 3)
    asked = Asking.asked[-1]
    (video,) = asked["inputs"]
    assert (asked["model_name"], asked["request_id"], asked["timeout"]) == (
        "autogaze_ingest",
        "door-1",
        1_500_000,
    )
    assert asked["trace"] == "the trace of door-1"
    np.testing.assert_array_equal(video.array, request.tensors["VIDEO"])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidInputError("the value\nthe rule"), InvalidInputError),
        (VideoDecodeError("the value\nthe rule"), InvalidInputError),
        (DeadlineExceededError("the value\nthe rule"), ServerUnavailableError),
        (RequestCancelledError("the value\nthe rule"), RequestCancelledError),
        (InferenceError("the value\nthe rule"), InferenceError),
    ],
)
def test_what_the_other_model_refuses_is_refused_for_the_same_reason(error, kind):
    """From the answer of the one to the question of the other; who does not ask for it gets a status as ever."""

    def refuse(tensors, caller):
        raise error

    asks, plain = (
        Request({"VIDEO": np.zeros((1, 9), np.uint8)}, names=frozenset(names))
        for names in ({"DECODED", "REFUSED"}, {"DECODED"})
    )
    told, status = serve(PbUtils, [asks, plain], one_by_one(refuse))
    assert told.error is None
    assert status.error.code == triton.error_code(error)
    Asking.answer = Reply({tensor.name(): tensor for tensor in told.output_tensors})
    arrived = []
    triton.ClipServer(Asking, arrived.extend, observer()).serve(
        [Request({"VIDEO": np.zeros((1, 9), np.uint8)})]
    )
    with pytest.raises(kind, match="the value\nthe rule"):
        arrived[0].decode(arrived[0].tensors["VIDEO"], None)


def test_a_model_that_cannot_be_asked_is_a_failure_of_the_server():
    Asking.answer = Reply(refusal=Refusal("NOT_FOUND"))
    arrived = []
    triton.ClipServer(Asking, arrived.extend, observer()).serve(
        [Request({"VIDEO": np.zeros((1, 9), np.uint8)})]
    )
    with pytest.raises(InferenceError, match="the reason"):
        arrived[0].decode(arrived[0].tensors["VIDEO"], None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        # As tritonserver 2.51 was seen to say it, and by a code that comes through.
        ("INTERNAL", "Stub process 'autogaze_ingest_0_1' is not healthy."),
        ("INTERNAL", "Failed for execute the inference request. Model 'autogaze_ingest' is not ready."),
        ("INTERNAL", "Error when running inference: [request id: <id_unknown>] Exceeds maximum queue size"),
        ("UNAVAILABLE", "the reason"),
    ],
)
def test_a_model_that_is_away_makes_the_request_unavailable(code, message):
    Asking.answer = Reply(refusal=Refusal(code, message))
    arrived = []
    triton.ClipServer(Asking, arrived.extend, observer()).serve(
        [Request({"VIDEO": np.zeros((1, 9), np.uint8)})]
    )
    with pytest.raises(ServerUnavailableError) as raised:
        arrived[0].decode(arrived[0].tensors["VIDEO"], None)
    assert message in str(raised.value)
    assert "try again later" in str(raised.value)


def arguments(tmp_path, **parameters) -> dict[str, str]:
    import json

    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    return {
        "model_name": "autogaze_generate",
        "model_repository": str(tmp_path),
        "model_version": "3",
        "model_config": json.dumps(config),
    }


def test_a_bundle_is_found_beside_the_model_then_by_parameter_then_by_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("AUTOGAZE_BUNDLE", raising=False)
    with pytest.raises(NotFoundError, match="autogaze build"):
        find_bundle(arguments(tmp_path))
    monkeypatch.setenv("AUTOGAZE_BUNDLE", "/from/environment")
    assert str(find_bundle(arguments(tmp_path))) == "/from/environment"
    assert str(find_bundle(arguments(tmp_path, bundle="/from/parameter"))) == "/from/parameter"
    (tmp_path / "3" / "bundle").mkdir(parents=True)
    assert find_bundle(arguments(tmp_path, bundle="/from/parameter")) == tmp_path / "3" / "bundle"
