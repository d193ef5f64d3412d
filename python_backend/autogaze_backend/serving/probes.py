"""Is a server ready, and is it the one that was started? Over gRPC, or over HTTP where gRPC wants certificates."""

from __future__ import annotations

import http.client
import importlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["GrpcProbe", "HttpProbe", "ReadinessProbe"]


class ReadinessProbe(Protocol):
    """Asks one server."""

    def is_ready(self) -> bool:
        """Whether it answers, its models are loaded, and it bears the name."""

    def close(self) -> None:
        """Closes the connection."""


class GrpcProbe:
    """Asks over a plain gRPC connection.

    Args:
        url: ``host:port``.
        name: the server's id.
        headers: sent with each call.
    """

    def __init__(self, url: str, name: str, headers: Mapping[str, str]) -> None:
        self._grpc: Any = importlib.import_module("tritonclient.grpc")
        self._errors: Any = importlib.import_module("tritonclient.utils")
        self._name, self._call = name, {"headers": dict(headers), "client_timeout": 1.0}
        # A proxy for the outside world must not be asked for this machine.
        arguments = [("grpc.enable_http_proxy", 0), ("grpc.initial_reconnect_backoff_ms", 100)]
        arguments += [("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300)]
        self._client = self._grpc.InferenceServerClient(url, channel_args=arguments)

    def is_ready(self) -> bool:
        """Whether it answers, its models are loaded, and it bears the name."""
        try:
            if not self._client.is_server_ready(**self._call):
                return False
            return bool(self._client.get_server_metadata(**self._call).name == self._name)
        except self._errors.InferenceServerException:
            return False

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


class HttpProbe:
    """Asks over plain HTTP.

    Args:
        url: ``host:port``.
        name: the server's id.
        headers: sent with each call.
    """

    def __init__(self, url: str, name: str, headers: Mapping[str, str]) -> None:
        self._url, self._name, self._headers = url, name, dict(headers)

    def is_ready(self) -> bool:
        """Whether it answers, its models are loaded, and it bears the name."""
        try:
            if self._get("/v2/health/ready") is None:
                return False
            metadata = self._get("/v2")
            return metadata is not None and json.loads(metadata)["name"] == self._name
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False

    def close(self) -> None:
        """Nothing stays open between two questions."""

    def _get(self, path: str) -> bytes | None:
        connection = http.client.HTTPConnection(self._url, timeout=1.0)
        try:
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            body = response.read()
            return body if response.status == 200 else None
        finally:
            connection.close()
