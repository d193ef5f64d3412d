"""Between our tensors and errors and those of tritonclient; what the blocking and the asyncio transport share."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from autogaze_client._config import TLSConfig
from autogaze_client._cuda_memory import CudaMemoryPool
from autogaze_client._errors import (
    AutoGazeError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    NotFoundError,
    ServerUnavailableError,
    StreamExpired,
)
from autogaze_client._shared_memory import ClientMemory, SharedRegion, SystemMemoryPool, is_local
from autogaze_client._wire import Inputs, Tensors
from autogaze_client.statistics import ModelStatistics

__all__ = [
    "REGISTER_SECONDS",
    "ServerAddress",
    "is_late",
    "known_already",
    "lost_regions",
    "model_statistics",
    "not_ready",
    "read_response",
    "request_inputs",
    "requested_outputs",
    "server_timeout",
    "translate_error",
]


@dataclass(frozen=True)
class ServerAddress:
    """Where a gRPC transport connects: host:port, certificates, headers of every call, and shared memory."""

    url: str
    tls: TLSConfig | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    shared_memory: bool | None = None

    def memory(self) -> ClientMemory:
        """Shared memory where it is asked for, else where the server is on this machine: CUDA's before the system's."""
        enabled = is_local(self.url) if self.shared_memory is None else self.shared_memory
        return ClientMemory(CudaMemoryPool(enabled), SystemMemoryPool(enabled))

    def channel_options(self) -> dict[str, Any]:
        """Keyword arguments of both tritonclient connections."""
        tls = self.tls
        return {
            "url": self.url,
            "ssl": tls is not None,
            "root_certificates": _path(tls.root_certificates) if tls else None,
            "private_key": _path(tls.private_key) if tls else None,
            "certificate_chain": _path(tls.certificate_chain) if tls else None,
            "channel_args": [
                ("grpc.max_send_message_length", triton.MAX_GRPC_MESSAGE_SIZE),
                ("grpc.max_receive_message_length", triton.MAX_GRPC_MESSAGE_SIZE),
                # gRPC's own backoff grows to two minutes, far beyond a server's start.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        }


def _path(path: object) -> str | None:
    return None if path is None else str(path)


def is_late(started: float, timeout: float | None) -> bool:
    """Whether a call that began at ``started`` (``time.monotonic()``) has had its time."""
    return timeout is not None and time.monotonic() - started >= timeout


def server_timeout(seconds: float | None) -> int | None:
    """A deadline as Triton's request timeout, in microseconds: the server then stops work that nobody waits for.

    gRPC's own deadline does not do that: this server's ensembles do not tell the step at hand of it.
    """
    return None if seconds is None else max(1, round(seconds * 1e6))


# A stream's requests differ in little but their pixels, and to make tritonclient's objects anew costs more than to send
# them. Those that are kept are found by everything that they hold, so no request can get another's.
_SMALL_BYTES = 64


def request_inputs(inputs: Inputs, shared: Mapping[str, SharedRegion] | None = None) -> list[Any]:
    """Request tensors of tritonclient; those of ``shared`` name a region instead of carrying their bytes."""
    request = []
    for name, array in inputs.items():
        if shared and name in shared:
            request.append(_region_tensor(name, array.shape, array.dtype, shared[name].name))
            continue
        values = np.asarray(array)
        if values.nbytes <= _SMALL_BYTES:
            request.append(_small_tensor(name, values.shape, values.dtype, values.tobytes()))
        else:
            request.append(_tensor(name, values.shape, values.dtype).set_data_from_numpy(values))
    return request


@lru_cache
def requested_outputs(names: tuple[str, ...]) -> tuple[Any, ...]:
    """The outputs of a request, as tritonclient names them."""
    return tuple(triton.InferRequestedOutput(name) for name in names)


@lru_cache(maxsize=1024)
def _small_tensor(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], content: bytes) -> Any:
    return _tensor(name, shape, dtype).set_data_from_numpy(np.frombuffer(content, dtype).reshape(shape))


@lru_cache(maxsize=1024)
def _region_tensor(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], region: str) -> Any:
    nbytes = math.prod(shape) * dtype.itemsize
    return _tensor(name, shape, dtype).set_shared_memory(region, nbytes)


def _tensor(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    return triton.InferInput(name, list(shape), np_to_triton_dtype(dtype))


def lost_regions(error: InferenceServerException) -> bool:
    """Whether the server does not know a region: it was restarted, or shares no memory with this client."""
    return "shared memory region" in str(error.message()).lower()


def known_already(error: InferenceServerException) -> bool:
    """Whether the server knows a region although it was not seen to: a call to register it was cut short."""
    return "already in manager" in str(error.message()).lower()


def read_response(result: Any, outputs: Iterable[str]) -> Tensors:
    arrays = {name: result.as_numpy(name) for name in outputs}
    return {name: np.asarray(array) for name, array in arrays.items() if array is not None}


_REMEDIES: Mapping[str, tuple[type[AutoGazeError], str]] = {
    "INVALID_ARGUMENT": (InvalidInputError, ""),
    "UNAVAILABLE": (
        ServerUnavailableError,
        "; check the url and that the server runs (autogaze serve), or try again later if it sheds load",
    ),
    # Nobody here cancels a call and waits for it: the server did, when it ended.
    "CANCELLED": (ServerUnavailableError, "; the server ended the call: try again when it runs"),
    "DEADLINE_EXCEEDED": (DeadlineExceededError, "; allow more with timeout= or Timeouts(request=...)"),
    "NOT_FOUND": (NotFoundError, "; check model_name and the server's model repository"),
}


# A server on this machine answers at once; one that does not is not worth waiting for.
REGISTER_SECONDS = 5.0

# What Triton's python backend says, as INTERNAL, when the server lacks something that the request cannot help; and what
# gRPC says, as UNKNOWN, of a call whose connection broke under it. A call that the server gives up at its deadline is
# "Stream removed (Deadline Exceeded)", too, but as DEADLINE_EXCEEDED.
_SERVER_LACKS = {
    "is not healthy": "; the model's process has died, and this server cannot serve it until a restart",
    "Stream removed": "; the server ended the call: try again when it runs",
    "Failed to increase the shared memory pool": "; /dev/shm of the server is full: try again later, or give it more",
}

# What our stream pool answers, and what Triton's sequence batcher answers once it has forgotten a stream.
_STREAM_LOST = ("has expired", "must specify the START flag")


def translate_error(error: Exception, url: str, *, late: bool = False) -> AutoGazeError:
    """The exception for one of tritonclient's, by its gRPC status code.

    Args:
        error: of tritonclient.
        url: of the server.
        late: whether the caller's time is over. The server stops its work then, too, and what it says of that may
            come before gRPC's own deadline does, as UNAVAILABLE: Triton's errors know no deadline.
    """
    code = str(error.status()) if isinstance(error, InferenceServerException) else ""
    kind, remedy = _REMEDIES.get(code.removeprefix("StatusCode."), (InferenceError, "; see the server's log"))
    message = error.message() if isinstance(error, InferenceServerException) else str(error)
    for sign, advice in _SERVER_LACKS.items():
        if sign in str(message) and kind is not DeadlineExceededError:
            kind, remedy = ServerUnavailableError, advice
    if any(sign in str(message) for sign in _STREAM_LOST):
        kind, remedy = StreamExpired, "; start it again, or open it with restart=True"
    if late and kind is ServerUnavailableError:
        kind, remedy = _REMEDIES["DEADLINE_EXCEEDED"]
    return kind(f"{url}: {message or code or type(error).__name__}{remedy}")


def model_statistics(response: Any) -> tuple[ModelStatistics, ...]:
    """The counters in a ModelStatisticsResponse."""
    return tuple(
        ModelStatistics(
            model=stats.name,
            requests=stats.inference_stats.success.count,
            total_ns=stats.inference_stats.success.ns,
            queue_ns=stats.inference_stats.queue.ns,
            compute_ns=stats.inference_stats.compute_infer.ns,
        )
        for stats in response.model_stats
    )


def not_ready(error: AutoGazeError) -> bool:
    if isinstance(error, ServerUnavailableError | DeadlineExceededError | NotFoundError):
        return False
    raise error
