"""The seam between Triton's python backend and this package: tensors in, tensors out, errors mapped.

``triton_python_backend_utils`` exists only inside the server's stub, so it is passed in.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_client._errors import (
    AutoGazeError,
    DeadlineExceededError,
    InvalidInputError,
    NotFoundError,
    RequestCancelledError,
    ServerUnavailableError,
)
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, Array]

_LOG = logging.getLogger("autogaze")


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


def serve(
    pb_utils: Any, requests: Sequence[Any], run: Callable[[list[Tensors]], Sequence[Tensors | Exception]]
) -> list[Any]:
    """Answers a batch of requests, each on its own: one that fails does not touch the others.

    Args:
        pb_utils: the server's ``triton_python_backend_utils``.
        requests: of ``execute``.
        run: from the requests' tensors to each one's outputs or exception, in order.
    """
    parsed: list[Tensors | Exception] = [guard(read_request, request) for request in requests]
    good = [item for item in parsed if not isinstance(item, Exception)]
    try:
        answers = iter(run(good) if good else [])
    except Exception as error:
        answers = iter([error] * len(good))
    results = [item if isinstance(item, Exception) else next(answers) for item in parsed]
    return [_respond(pb_utils, result) for result in results]


def serve_as_finished(
    pb_utils: Any,
    requests: Sequence[Any],
    run: Callable[[list[Tensors], Callable[[int], bool]], Iterable[tuple[int, Tensors | Exception]]],
) -> None:
    """Answers each request of a batch as soon as it is finished, so that none waits for a longer one.

    Args:
        pb_utils: the server's ``triton_python_backend_utils``.
        requests: of ``execute``, which must then return None.
        run: from the requests' tensors, and a function that tells whether caller i has gone, to index and
            outputs or exception of each, in any order.
    """
    senders = [request.get_response_sender() for request in requests]
    parsed = [guard(read_request, request) for request in requests]
    good = [index for index, item in enumerate(parsed) if not isinstance(item, Exception)]
    open_requests = set(range(len(requests)))

    def send(index: int, result: Tensors | Exception) -> None:
        open_requests.discard(index)
        senders[index].send(_respond(pb_utils, result), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    for index, item in enumerate(parsed):
        if isinstance(item, Exception):
            send(index, item)
    tensors = [item for item in parsed if not isinstance(item, Exception)]
    failure: Exception = RuntimeError("the model answered fewer requests than it was given")
    try:
        for position, result in run(tensors, lambda position: requests[good[position]].is_cancelled()):
            send(good[position], result)
    except Exception as error:
        failure = error
    for index in sorted(open_requests):
        send(index, failure)


def one_by_one(run: Callable[[Tensors], Tensors]) -> Callable[[list[Tensors]], list[Tensors | Exception]]:
    """Makes a batch function from one that serves a single request."""
    return lambda batch: [guard(run, tensors) for tensors in batch]


def guard(run: Callable[[Any], Tensors], item: Any) -> Tensors | Exception:
    """The function's result, or the exception it raised."""
    try:
        return run(item)
    except Exception as error:
        return error


def _respond(pb_utils: Any, result: Tensors | Exception) -> Any:
    if isinstance(result, Exception):
        if isinstance(result, RequestCancelledError):
            _LOG.warning("%s", result)  # nobody reads the answer, so the log is the only trace
        elif not isinstance(result, AutoGazeError):
            _LOG.error("a request failed", exc_info=result)
        code = getattr(pb_utils.TritonError, error_code(result))
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(error_message(result), code))
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array[None])) for name, array in result.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _unbatch(name: str, array: Array) -> Array:
    if array.shape[0] != 1:
        raise InvalidInputError(
            f"{name} has batch dimension {array.shape[0]}; send one clip a request, batch dimension 1"
        )
    tensor: Array = array[0]
    return tensor
