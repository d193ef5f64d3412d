"""The seam between Triton's python backend and this package: tensors in, tensors out, errors mapped.

``triton_python_backend_utils`` exists only inside the server's stub, so it is passed in.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_client._errors import (
    AutoGazeError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    NotFoundError,
    RequestCancelledError,
    ServerUnavailableError,
)
from numpy.typing import NDArray

from autogaze_backend.callers import ASK_SECONDS, Caller
from autogaze_backend.clips import CLIP_OUTPUTS
from autogaze_backend.observing import Finish, Observer, RequestEnd
from autogaze_backend.stream_answers import StreamAnswer
from autogaze_backend.stream_service import StreamRequest

Array = NDArray[Any]
Tensors = dict[str, Array]


def error_code(error: BaseException) -> str:
    """The ``TritonError`` constant of an exception."""
    if isinstance(error, InvalidInputError):
        return "INVALID_ARG"
    if isinstance(error, NotFoundError):
        return "NOT_FOUND"
    if isinstance(error, ServerUnavailableError | DeadlineExceededError):
        return "UNAVAILABLE"
    if isinstance(error, RequestCancelledError):
        return "CANCELLED"
    return "INTERNAL"


def error_message(error: BaseException) -> str:
    """What the caller is told: our own errors in full; of others the type, since their text is for the log."""
    if isinstance(error, AutoGazeError):
        return str(error)
    return f"internal error ({type(error).__name__}); the server's log has the trace"


def model_parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The ``parameters`` of config.pbtxt, as strings by name."""
    config = json.loads(args["model_config"])
    return {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}


def sequence_bounds(args: Mapping[str, str]) -> tuple[int, float]:
    """``max_candidate_sequences``, and the seconds after which Triton forgets a sequence, of config.pbtxt."""
    batching = json.loads(args["model_config"])["sequence_batching"]
    idle = int(batching["max_sequence_idle_microseconds"]) / 1e6
    # The other strategy, direct, has as many places as its instances have rows.
    oldest = batching.get("oldest") or {}
    return int(oldest.get("max_candidate_sequences") or sys.maxsize), idle


def max_batch_size(args: Mapping[str, str]) -> int:
    """``max_batch_size`` of config.pbtxt."""
    return int(json.loads(args["model_config"]).get("max_batch_size", 0))


def settle() -> None:
    """To be called when a model is loaded: what is there stays, so the garbage collector need not look at it again.

    The collector stops every thread of the process, for some 10 ms where a model and its libraries are there.
    """
    gc.collect()
    gc.freeze()


def find_bundle(args: Mapping[str, str]) -> Path:
    """Where a model's bundle lies: beside its model.py, else the parameter ``bundle``, else AUTOGAZE_BUNDLE.

    Raises:
        NotFoundError: none of the three names one.
    """
    beside = Path(args["model_repository"]) / args["model_version"] / "bundle"
    if beside.is_dir():
        return beside
    named = model_parameters(args).get("bundle") or os.environ.get("AUTOGAZE_BUNDLE")
    if not named:
        raise NotFoundError(
            f"model {args['model_name']} has no bundle: put one at {beside}, set its parameter 'bundle', or set "
            "AUTOGAZE_BUNDLE; `autogaze build CHECKPOINT DIR` writes one"
        )
    return Path(named)


def read_request(request: Any) -> Tensors:
    """Input tensors by name, without the batch dimension of 1."""
    return {tensor.name(): _unbatch(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()}


Run = Callable[[list[Tensors], list[Caller]], Sequence[Tensors | Exception]]


def serve(pb_utils: Any, requests: Sequence[Any], run: Run, observer: Observer) -> list[Any]:
    """Answers a batch of requests, each on its own: one that fails does not touch the others.

    Args:
        pb_utils: the server's ``triton_python_backend_utils``.
        requests: of ``execute``.
        run: from the requests' tensors and callers to each one's outputs or exception, in order.
        observer: told of each request and how it ended.
    """
    finish = [observer.begin(request) for request in requests]
    parsed: list[Tensors | Exception] = [guard(read_request, request) for request in requests]
    good = [item for item in parsed if not isinstance(item, Exception)]
    callers = [
        Caller.of(request)
        for request, item in zip(requests, parsed, strict=True)
        if not isinstance(item, Exception)
    ]
    try:
        answers = iter(run(good, callers) if good else [])
    except Exception as error:
        answers = iter([error] * len(good))
    results = [item if isinstance(item, Exception) else next(answers) for item in parsed]
    for told, result in zip(finish, results, strict=True):
        told(result)
    return [
        _respond(pb_utils, result, REFUSAL in request.requested_output_names())
        for request, result in zip(requests, results, strict=True)
    ]


# Of a request's flags, in Triton's tritonserver.h.
_SEQUENCE_START, _SEQUENCE_END = 1, 2


class StreamServer:
    """Serves the requests of ``autogaze_stream``, a batch at a time.

    What a request says of its stream is read from the request itself and not from control tensors: each tensor of a
    request costs as much as all that is done here for it.

    Args:
        pb_utils: the server's ``triton_python_backend_utils``.
        run: from requests to each one's answer or exception, in order.
        observer: told of each request and how it ended.
        max_batch: requests that Triton hands over at once at most.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        pb_utils: Any,
        run: Callable[[list[StreamRequest]], Sequence[StreamAnswer | Exception]],
        observer: Observer,
        max_batch: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pb_utils, self._run, self._observer = pb_utils, run, observer
        self._max_batch, self._clock = max_batch, clock
        self._last = 0.0

    def serve(self, requests: Sequence[Any]) -> list[Any]:
        """Answers a batch of requests, each on its own: one that fails does not touch the others."""
        began = self._clock()
        # What came while the last batch ran has waited that long. Whether its caller has gone in a shorter time is not
        # worth asking for: the question goes to the server and takes as long as a frame.
        waited = self._last >= ASK_SECONDS or len(requests) >= self._max_batch
        parsed = [_stream_request(request, waited) for request in requests]
        batch = [item for item in parsed if not isinstance(item, Exception)]
        answers: Iterator[StreamAnswer | Exception]
        try:
            answers = iter(self._run(batch) if batch else [])
        except Exception as error:
            answers = iter([error] * len(batch))
        results = [item if isinstance(item, Exception) else next(answers) for item in parsed]
        ends = [
            RequestEnd(result.frames, 1, result.tokens) if isinstance(result, StreamAnswer) else result
            for result in results
        ]
        self._observer.batch_ended(requests, ends, (self._clock() - began) * 1e3)
        responses = [
            _respond(self._pb_utils, result.tensors if isinstance(result, StreamAnswer) else result)
            for result in results
        ]
        self._last = self._clock() - began
        return responses


def _stream_request(request: Any, waited: bool) -> StreamRequest | Exception:
    try:
        flags, caller = request.flags(), None
        if waited or request.timeout():
            caller = Caller.of(request, fresh=not waited)
        return StreamRequest(
            request.correlation_id(),
            bool(flags & _SEQUENCE_START),
            bool(flags & _SEQUENCE_END),
            read_request(request),
            caller,
            request.requested_output_names(),
        )
    except Exception as error:
        return error


def _cannot_decode(video: Array, seconds: float | None) -> Array:
    raise InvalidInputError("there is no server here that decodes videos; pass frames")


@dataclass(frozen=True)
class Arrival:
    """A request that is answered when it is finished.

    Attributes:
        tensors: its inputs.
        answer: told the outputs or the error, once, from any thread.
        caller: who waits for it.
        outputs: what the caller wants.
        decode: from an encoded video, uint8 ``[N]``, and the seconds that there are (None for any number) to its
            frames, which stay until the request is answered.
    """

    tensors: Tensors
    answer: Callable[[Tensors | Exception], None]
    caller: Caller
    outputs: Container[str] = CLIP_OUTPUTS
    decode: Callable[[Array, float | None], Array] = _cannot_decode


class ClipServer:
    """Hands requests on; each is answered when it is finished, which may be after ``execute`` has returned.

    Args:
        pb_utils: the server's ``triton_python_backend_utils``.
        take_in: takes the requests of a batch, and sees to it that each is answered.
        observer: told of each request and how it ended.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        pb_utils: Any,
        take_in: Callable[[list[Arrival]], None],
        observer: Observer,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pb_utils, self._take_in, self._observer = pb_utils, take_in, observer
        self._clock = clock
        self._last = float("inf")

    def serve(self, requests: Sequence[Any]) -> None:
        """Takes in the requests of an ``execute``, which must then return None."""
        began = self._clock()
        # As for streams: where the last batch was taken in at once, nobody has waited for long.
        fresh = self._last < ASK_SECONDS
        arrivals = []
        for request in requests:
            answer = _Answer(self._pb_utils, request, self._observer.begin(request))
            try:
                caller = Caller.of(request, fresh=fresh)
                tensors, names = read_request(request), request.requested_output_names()
                arrivals.append(Arrival(tensors, answer, caller, names, answer.decode))
            except Exception as error:
                answer(error)
        self._take_in(arrivals)
        self._last = self._clock() - began


class _Answer:
    """Answers one request, once."""

    def __init__(self, pb_utils: Any, request: Any, finish: Finish) -> None:
        self._finish = finish
        self._pb_utils, self._sender = pb_utils, request.get_response_sender()
        # Triton keeps a request's tensors while the request lives, and a response's while that does.
        self._request: Any = request
        self._decoded: Any = None

    def decode(self, video: Array, seconds: float | None) -> Array:
        """Has ``autogaze_ingest`` decode a video: in a process of its own, since decoders of foreign bytes may crash.

        Raises:
            AutoGazeError: what that model says.
        """
        utils, request = self._pb_utils, self._request
        ask = utils.InferenceRequest(
            model_name="autogaze_ingest",
            requested_output_names=["DECODED", REFUSAL],
            inputs=[utils.Tensor("VIDEO", np.ascontiguousarray(video[None]))],
            request_id=request.request_id(),
            timeout=0 if seconds is None else max(1, round(seconds * 1e6)),
            trace=request.trace(),
        )
        response = ask.exec()
        if response.has_error():
            raise _failed(response.error(), utils.TritonError.UNAVAILABLE)
        refused = utils.get_output_tensor_by_name(response, REFUSAL)
        if refused is not None:
            raise _refused(refused.as_numpy())
        self._decoded = utils.get_output_tensor_by_name(response, "DECODED")
        frames: Array = self._decoded.as_numpy()[0]
        return frames

    def __call__(self, result: Tensors | Exception) -> None:
        if self._request is None:
            raise RuntimeError("a request was answered twice")
        self._request = self._decoded = None
        response = _respond(self._pb_utils, result)
        # Counted before it is sent, so that who has an answer finds it in the metrics.
        self._finish(result)
        self._sender.send(response, flags=self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


REFUSAL = "REFUSED"
"""The output in which a model tells another one its error: through the python backend 2.51 the code of one is lost."""

_KINDS: dict[str, type[AutoGazeError]] = {
    "INVALID_ARG": InvalidInputError,
    "UNAVAILABLE": ServerUnavailableError,
    "CANCELLED": RequestCancelledError,
}


# What Triton 2.51 says, as INTERNAL, where a model that is asked is away or has too much to do.
_AWAY = (
    "is not healthy",
    "is not ready",
    "stopping to serve requests",
    "Exceeds maximum queue size",
    "Request timeout expired",
    "Failed to increase the shared memory pool",
)


def _failed(error: Any, unavailable: Any) -> AutoGazeError:
    """What Triton itself says of a call to another model: it is away for a while, or something broke."""
    message = str(error.message())
    if error.code() == unavailable or any(sign in message for sign in _AWAY):
        return ServerUnavailableError(
            f"autogaze_ingest cannot decode the video now: {message}; try again later, or send decoded frames"
        )
    return InferenceError(message)


def _refusal(error: Exception) -> Array:
    """An error as uint8 ``[1, N]``: its code and its message, a line between them."""
    text = f"{error_code(error)}\n{error_message(error)}"
    return np.frombuffer(text.encode(), np.uint8)[None]


def _refused(refusal: Array) -> AutoGazeError:
    code, _, message = refusal.tobytes().decode().partition("\n")
    return _KINDS.get(code, InferenceError)(message)


def one_by_one(run: Callable[[Tensors, Caller], Tensors]) -> Run:
    """Makes a batch function from one that serves a single request."""

    def one(item: tuple[Tensors, Caller]) -> Tensors:
        return run(*item)

    return lambda batch, callers: [guard(one, item) for item in zip(batch, callers, strict=True)]


def guard(run: Callable[[Any], Tensors], item: Any) -> Tensors | Exception:
    """The function's result, or the exception it raised."""
    try:
        return run(item)
    except Exception as error:
        return error


def _respond(pb_utils: Any, result: Tensors | Exception, tells_refusal: bool = False) -> Any:
    if isinstance(result, Exception) and tells_refusal:
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(REFUSAL, _refusal(result))])
    if isinstance(result, Exception):
        code = getattr(pb_utils.TritonError, error_code(result))
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(error_message(result), code))
    make = pb_utils.Tensor
    tensors = [make(name, np.ascontiguousarray(array[None])) for name, array in result.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _unbatch(name: str, array: Array) -> Array:
    if array.shape[0] != 1:
        raise InvalidInputError(
            f"{name} has batch dimension {array.shape[0]}; send one clip a request, batch dimension 1"
        )
    tensor: Array = array[0]
    return tensor
