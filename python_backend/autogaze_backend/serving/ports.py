"""Finds ports that the server can listen on."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from autogaze_backend.serving.config import TritonServerConfig
from autogaze_backend.serving.errors import ServerStartError

__all__ = ["ServerPorts", "choose_ports", "is_port_free"]


@dataclass(frozen=True)
class ServerPorts:
    """The three ports of a running server."""

    http: int
    grpc: int
    metrics: int


def is_port_free(host: str, port: int) -> bool:
    """Whether a server could listen on ``host:port`` now."""
    try:
        with _bound(host, port):
            return True
    except OSError:
        return False


def choose_ports(config: TritonServerConfig) -> ServerPorts:
    """The configured ports, with a free one for each 0.

    Another process may take a free port before the server does; the caller starts again then.

    Raises:
        ServerStartError: A configured port is taken.
    """
    wanted = (
        ("http", config.http_host, config.http_port),
        ("grpc", config.host, config.grpc_port),
        ("metrics", config.host, config.metrics_port),
    )
    sockets: list[socket.socket] = []
    try:
        for name, host, port in wanted:
            try:
                sockets.append(_bound(host, port))
            except OSError as error:
                raise ServerStartError(
                    f"{name} port {port} on {host} cannot be used ({error.strerror}): stop what "
                    f"listens there, or choose another with --{name}-port ({name}_port), 0 for a free one"
                ) from error
        return ServerPorts(*_numbers(sockets))
    finally:
        for each in sockets:
            each.close()


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # As servers do: connections of the past in TIME_WAIT do not keep a port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def _numbers(sockets: Sequence[socket.socket]) -> list[int]:
    return [int(each.getsockname()[1]) for each in sockets]
