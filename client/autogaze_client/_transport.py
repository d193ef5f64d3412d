"""How tensors reach a server. The clients know only the protocols; gRPC is one implementation of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from autogaze_client._config import TLSConfig
from autogaze_client._errors import (
    AutoGazeError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    NotFoundError,
    ServerUnavailableError,
    StreamExpired,
)
from autogaze_client._wire import Tensors
from autogaze_client.statistics import ModelStatistics

__all__ = [
    "AsyncGrpcTransport",
    "AsyncTransport",
    "GrpcTransport",
    "SequenceStep",
    "ServerAddress",
    "Transport",
]


@dataclass(frozen=True)
class SequenceStep:
    """A request's place in a stream.

    Attributes:
        id: the stream's correlation id, at least 1.
        start: whether it opens the stream.
        end: whether it closes it.
    """

    id: int
    start: bool = False
    end: bool = False

    def request_options(self) -> dict[str, Any]:
        """Keyword arguments of both tritonclient connections."""
        return {"sequence_id": self.id, "sequence_start": self.start, "sequence_end": self.end}


class Transport(Protocol):
    """What ``GazeClient`` needs of a connection. Errors are those of ``autogaze_client``."""

    def infer(
        self,
        model: str,
        inputs: Tensors,
        outputs: Iterable[str],
        timeout: float | None,
        sequence: SequenceStep | None = None,
    ) -> Tensors:
        """Runs one request; called from several threads at once."""

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the server is up and the model loaded; False where no server answers."""

    def statistics(self, timeout: float | None) -> tuple[ModelStatistics, ...]:
        """Counters of every loaded model since the server started."""

    def close(self) -> None:
        """Closes the connection."""


class AsyncTransport(Protocol):
    """The same for ``AsyncGazeClient``."""

    async def infer(
        self,
        model: str,
        inputs: Tensors,
        outputs: Iterable[str],
        timeout: float | None,
        sequence: SequenceStep | None = None,
    ) -> Tensors:
        """Runs one request."""

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the server is up and the model loaded; False where no server answers."""

    async def statistics(self, timeout: float | None) -> tuple[ModelStatistics, ...]:
        """Counters of every loaded model since the server started."""

    async def close(self) -> None:
        """Closes the connection."""


@dataclass(frozen=True)
class ServerAddress:
    """Where a gRPC transport connects: host:port, certificates, and headers of every call."""

    url: str
    tls: TLSConfig | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

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


def request_inputs(inputs: Tensors) -> list[Any]:
    """Request tensors of tritonclient."""
    request = []
    for name, array in inputs.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        request.append(tensor)
    return request


def _response(result: Any, outputs: Iterable[str]) -> Tensors:
    arrays = {name: result.as_numpy(name) for name in outputs}
    return {name: np.asarray(array) for name, array in arrays.items() if array is not None}


_REMEDIES: Mapping[str, tuple[type[AutoGazeError], str]] = {
    "INVALID_ARGUMENT": (InvalidInputError, ""),
    "UNAVAILABLE": (
        ServerUnavailableError,
        "; check the url and that the server runs (autogaze serve), or try again later if it sheds load",
    ),
    "DEADLINE_EXCEEDED": (DeadlineExceededError, "; allow more with timeout= or Timeouts(request=...)"),
    "NOT_FOUND": (NotFoundError, "; check model_name and the server's model repository"),
}


# What our stream pool answers, and what Triton's sequence batcher answers once it has forgotten a stream.
_STREAM_LOST = ("has expired", "must specify the START flag")


def translate_error(error: Exception, url: str) -> AutoGazeError:
    """The exception for one of tritonclient's, by its gRPC status code."""
    code = str(error.status()) if isinstance(error, InferenceServerException) else ""
    kind, remedy = _REMEDIES.get(code.removeprefix("StatusCode."), (InferenceError, "; see the server's log"))
    message = error.message() if isinstance(error, InferenceServerException) else str(error)
    if any(sign in str(message) for sign in _STREAM_LOST):
        kind, remedy = StreamExpired, "; start it again, or open it with restart=True"
    return kind(f"{url}: {message or code or type(error).__name__}{remedy}")


def model_statistics(response: Any) -> tuple[ModelStatistics, ...]:
    """The counters in a ModelStatisticsResponse."""
    return tuple(
        ModelStatistics(
            model=stats.name,
            requests=stats.inference_stats.success.count,
            total_ns=stats.inference_stats.success.ns,
            queue_ns=stats.inference_stats.queue.ns,
        )
        for stats in response.model_stats
    )


class GrpcTransport:
    """Triton over gRPC, blocking. Thread-safe."""

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._headers = dict(address.headers)
        self._triton = triton.InferenceServerClient(**address.channel_options())

    def infer(
        self,
        model: str,
        inputs: Tensors,
        outputs: Iterable[str],
        timeout: float | None,
        sequence: SequenceStep | None = None,
    ) -> Tensors:
        """Runs one request.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        names = list(outputs)
        try:
            result = self._triton.infer(
                model,
                request_inputs(inputs),
                outputs=[triton.InferRequestedOutput(name) for name in names],
                client_timeout=timeout,
                headers=self._headers,
                **(sequence.request_options() if sequence else {}),
            )
        except InferenceServerException as error:
            raise translate_error(error, self._address.url) from error
        return _response(result, names)

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the server is up and the model loaded; False where no server answers.

        Raises:
            AutoGazeError: the server answered with an error.
        """
        try:
            return bool(
                self._triton.is_server_ready(headers=self._headers, client_timeout=timeout)
                and self._triton.is_model_ready(model, headers=self._headers, client_timeout=timeout)
            )
        except InferenceServerException as error:
            return _not_ready(translate_error(error, self._address.url))

    def statistics(self, timeout: float | None) -> tuple[ModelStatistics, ...]:
        """Counters of every loaded model since the server started.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        try:
            response = self._triton.get_inference_statistics(headers=self._headers, client_timeout=timeout)
        except InferenceServerException as error:
            raise translate_error(error, self._address.url) from error
        return model_statistics(response)

    def close(self) -> None:
        """Closes the channel."""
        self._triton.close()


class AsyncGrpcTransport:
    """Triton over gRPC for asyncio. Used from one event loop."""

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._headers = dict(address.headers)
        self._triton = triton_aio.InferenceServerClient(**address.channel_options())

    async def infer(
        self,
        model: str,
        inputs: Tensors,
        outputs: Iterable[str],
        timeout: float | None,
        sequence: SequenceStep | None = None,
    ) -> Tensors:
        """Runs one request.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        names = list(outputs)
        try:
            result = await self._triton.infer(
                model,
                request_inputs(inputs),
                outputs=[triton.InferRequestedOutput(name) for name in names],
                client_timeout=timeout,
                headers=self._headers,
                **(sequence.request_options() if sequence else {}),
            )
        except InferenceServerException as error:
            raise translate_error(error, self._address.url) from error
        return _response(result, names)

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the server is up and the model loaded; False where no server answers.

        Raises:
            AutoGazeError: the server answered with an error.
        """
        try:
            return bool(
                await self._triton.is_server_ready(headers=self._headers, client_timeout=timeout)
                and await self._triton.is_model_ready(model, headers=self._headers, client_timeout=timeout)
            )
        except InferenceServerException as error:
            return _not_ready(translate_error(error, self._address.url))

    async def statistics(self, timeout: float | None) -> tuple[ModelStatistics, ...]:
        """Counters of every loaded model since the server started.

        Raises:
            AutoGazeError: the child that fits the gRPC status.
        """
        try:
            response = await self._triton.get_inference_statistics(
                headers=self._headers, client_timeout=timeout
            )
        except InferenceServerException as error:
            raise translate_error(error, self._address.url) from error
        return model_statistics(response)

    async def close(self) -> None:
        """Closes the channel."""
        await self._triton.close()


def _not_ready(error: AutoGazeError) -> bool:
    if isinstance(error, ServerUnavailableError | DeadlineExceededError | NotFoundError):
        return False
    raise error
