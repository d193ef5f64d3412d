"""How this process asks the server that it started: over gRPC, or over HTTP where gRPC wants certificates."""

from __future__ import annotations

import http.client
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

__all__ = ["CallFailedError", "GrpcConnection", "HttpConnection", "Inference", "ServerConnection"]

# Of a server on this machine that lives.
_CONTROL_SECONDS = 2.0
_PROBE_SECONDS = 1.0
# The extension "binary tensor data" of Triton's HTTP: JSON of this many bytes, then the tensors.
_JSON_LENGTH = "Inference-Header-Content-Length"
_DATATYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}


class CallFailedError(Exception):
    """A call was not answered, or was answered with an error.

    Attributes:
        is_late: whether the time was up.
    """

    def __init__(self, message: str, *, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late


@dataclass(frozen=True)
class Inference:
    """A request to a model.

    Attributes:
        model: its name.
        version: as the repository's index has it.
        tensors: uint8, int32 or float32.
        options: Triton's own parameters (``priority``, ``sequence_id``, …), as both protocols name them.
        request_id: for the server's log.
    """

    model: str
    version: str
    tensors: Mapping[str, np.ndarray[Any, Any]]
    options: Mapping[str, int | bool] = field(default_factory=dict)
    request_id: str = ""


class ServerConnection(Protocol):
    """Asks one server of this machine. ``CallFailedError`` is raised where it does not answer."""

    def is_ready(self) -> bool:
        """Whether it answers and its models are loaded; no error where it does not answer."""

    def server_name(self) -> str:
        """The server's id."""

    def loaded_models(self) -> frozenset[tuple[str, str]]:
        """Name and version of all that is to serve requests."""

    def infer(self, inference: Inference, timeout: float) -> None:
        """Returns when a request was answered; the answer is not read.

        Args:
            inference: the request.
            timeout: seconds.
        """

    def close(self) -> None:
        """Closes the connection."""


class GrpcConnection:
    """Asks over plain gRPC; comes back fast after a restart.

    Args:
        url: ``host:port``.
        headers: sent with each call.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._grpc: Any = importlib.import_module("tritonclient.grpc")
        self._tools: Any = importlib.import_module("tritonclient.utils")
        self._headers = dict(headers)
        # A proxy for the outside world must not be asked for this machine.
        arguments = [("grpc.enable_http_proxy", 0), ("grpc.initial_reconnect_backoff_ms", 100)]
        arguments += [("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300)]
        # Clients of one address share a connection otherwise, and with it its state after a restart.
        arguments += [("grpc.use_local_subchannel_pool", 1)]
        self._client = self._grpc.InferenceServerClient(url, channel_args=arguments)

    def is_ready(self) -> bool:
        """Whether it answers and its models are loaded."""
        try:
            return bool(self._call(self._client.is_server_ready, _PROBE_SECONDS))
        except CallFailedError:
            return False

    def server_name(self) -> str:
        """The server's id."""
        return str(self._call(self._client.get_server_metadata, _CONTROL_SECONDS).name)

    def loaded_models(self) -> frozenset[tuple[str, str]]:
        """Name and version of all that is to serve requests."""
        index = self._call(self._client.get_model_repository_index, _CONTROL_SECONDS).models
        return frozenset((entry.name, entry.version) for entry in index if entry.state == "READY")

    def infer(self, inference: Inference, timeout: float) -> None:
        """Returns when a request was answered."""
        inputs = []
        for name, array in inference.tensors.items():
            datatype = self._tools.np_to_triton_dtype(array.dtype)
            tensor = self._grpc.InferInput(name, list(array.shape), datatype)
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        self._call(
            self._client.infer,
            timeout,
            model_name=inference.model,
            inputs=inputs,
            model_version=inference.version,
            request_id=inference.request_id,
            **inference.options,
        )

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _call(self, method: Any, timeout: float, **arguments: Any) -> Any:
        try:
            return method(headers=self._headers, client_timeout=timeout, **arguments)
        except self._tools.InferenceServerException as error:
            is_late = str(error.status()) == "StatusCode.DEADLINE_EXCEEDED"
            raise CallFailedError(str(error.message()), is_late=is_late) from error


class HttpConnection:
    """Asks over plain HTTP, a connection a question.

    Args:
        url: ``host:port``.
        headers: sent with each call.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url, self._headers = url, dict(headers)

    def is_ready(self) -> bool:
        """Whether it answers and its models are loaded."""
        try:
            self._ask("GET", "/v2/health/ready", _PROBE_SECONDS)
        except CallFailedError:
            return False
        return True

    def server_name(self) -> str:
        """The server's id."""
        return str(self._json("GET", "/v2")["name"])

    def loaded_models(self) -> frozenset[tuple[str, str]]:
        """Name and version of all that is to serve requests."""
        index = self._json("POST", "/v2/repository/index", b"{}")
        return frozenset(
            (entry["name"], entry["version"]) for entry in index if entry.get("state") == "READY"
        )

    def infer(self, inference: Inference, timeout: float) -> None:
        """Returns when a request was answered."""
        blocks = {name: array.tobytes() for name, array in inference.tensors.items()}
        # Tensors go as bytes: JSON has no NaN, which is the knobs' "not set".
        head = json.dumps(
            {
                "id": inference.request_id,
                "parameters": dict(inference.options),
                "inputs": [
                    {
                        "name": name,
                        "shape": list(array.shape),
                        "datatype": _DATATYPES[array.dtype.name],
                        "parameters": {"binary_data_size": len(blocks[name])},
                    }
                    for name, array in inference.tensors.items()
                ],
            }
        ).encode()
        self._ask(
            "POST",
            f"/v2/models/{inference.model}/versions/{inference.version}/infer",
            timeout,
            head + b"".join(blocks.values()),
            {_JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"},
        )

    def close(self) -> None:
        """Nothing stays open between two questions."""

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        answer = self._ask(method, path, _CONTROL_SECONDS, body)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise CallFailedError(f"{path} answered with {answer[:80]!r}, which is no JSON") from error

    def _ask(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        connection = http.client.HTTPConnection(self._url, timeout=timeout)
        try:
            connection.request(method, path, body, {**self._headers, **(headers or {})})
            response = connection.getresponse()
            answer = response.read()
        except TimeoutError as error:
            raise CallFailedError(f"no answer within {timeout:g} s", is_late=True) from error
        except (OSError, http.client.HTTPException) as error:
            raise CallFailedError(f"HTTP at {self._url}: {error!r}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise CallFailedError(f"HTTP {response.status}: {_complaint(answer)}")
        return answer


def _complaint(answer: bytes) -> str:
    """What Triton says in an answer that is an error."""
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return answer[:200].decode(errors="replace") or "no reason given"
