"""How an embedded Triton server is to run."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from autogaze_client._errors import InvalidInputError, NotFoundError

from autogaze_backend.serving.security import RestrictedProtocols, ServerTLS, check_restrictions

__all__ = ["ModelControlMode", "TritonServerConfig"]

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWNED_FLAGS = (
    "--backend-directory",
    "--cache-directory",
    "--exit-on-error",
    "--exit-timeout-secs",
    "--grpc-address",
    "--grpc-port",
    "--grpc-restricted-protocol",
    "--grpc-root-cert",
    "--grpc-server-cert",
    "--grpc-server-key",
    "--grpc-use-ssl",
    "--grpc-use-ssl-mutual",
    "--http-address",
    "--http-port",
    "--http-restricted-api",
    "--id",
    "--load-model",
    "--log-file",
    "--log-verbose",
    "--metrics-address",
    "--metrics-port",
    "--model-control-mode",
    "--model-repository",
    "--model-store",
    "--strict-readiness",
)


class ModelControlMode(str, Enum):
    """Which models the server loads, and when."""

    NONE = "none"
    """Every model of the repository at the start; none later."""

    EXPLICIT = "explicit"
    """The models of ``load_models`` at the start, others when a client asks."""


@dataclass(frozen=True)
class TritonServerConfig:
    """Settings of a :class:`~autogaze_backend.serving.TritonServer`.

    The response cache is never on: its key leaves out tensor shapes, so clips of different sizes and equal
    bytes would share an answer.

    Attributes:
        model_repository: Folder with one folder a model.
        http_port: Port for HTTP; 0 picks a free one.
        grpc_port: Port for gRPC; 0 picks a free one.
        metrics_port: Port for Prometheus metrics; 0 picks a free one.
        host: IPv4 address to listen on, for all three. Only ``0.0.0.0`` or an address of this machine reaches
            other machines; without ``tls`` and ``restricted`` the server asks nobody who they are.
        environment: Variables for the server and its models, on top of this process's own.
        log_verbose: 0 for information, warnings and errors; 1 and above for more.
        exit_timeout: Seconds that requests in flight get to finish when the server stops.
        model_control_mode: Which models are loaded, and when.
        load_models: Models to load at the start, for ``EXPLICIT`` only.
        tls: Certificates of the gRPC service; None = plain connections. Triton's HTTP service knows no TLS, so
            with this it listens on this machine's loopback address only, and tells its health alone.
        restricted: Protocols that need a header.
        extra_args: Further flags of ``tritonserver``, passed as they are.

    Raises:
        InvalidInputError: A value is outside its range, or a flag is one that this class sets itself.
        NotFoundError: The model repository does not exist.
    """

    model_repository: Path
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    host: str = "127.0.0.1"
    environment: Mapping[str, str] = field(default_factory=dict)
    log_verbose: int = 0
    exit_timeout: float = 10.0
    model_control_mode: ModelControlMode = ModelControlMode.NONE
    load_models: tuple[str, ...] = ()
    tls: ServerTLS | None = None
    restricted: tuple[RestrictedProtocols, ...] = ()
    extra_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_repository", Path(self.model_repository).absolute())
        object.__setattr__(self, "host", _ipv4(self.host))
        object.__setattr__(self, "model_control_mode", ModelControlMode(self.model_control_mode))
        if not self.model_repository.is_dir():
            raise NotFoundError(
                f"no model repository at {self.model_repository}: name a folder that holds one folder a model"
            )
        self._check_ports()
        if self.log_verbose < 0:
            raise InvalidInputError(f"log_verbose is {self.log_verbose}: it must be 0 or more")
        if not (math.isfinite(self.exit_timeout) and self.exit_timeout > 0):
            raise InvalidInputError(
                f"exit_timeout is {self.exit_timeout}: it must be a positive number of seconds"
            )
        if self.load_models and self.model_control_mode is not ModelControlMode.EXPLICIT:
            raise InvalidInputError(
                f"load_models is {self.load_models}, but {self.model_control_mode.value!r} loads every model"
                ": leave it empty, or choose ModelControlMode.EXPLICIT"
            )
        check_restrictions(self.restricted)
        for name in self.environment:
            if not _VARIABLE_NAME.fullmatch(name):
                raise InvalidInputError(f"environment names {name!r}: use letters, digits and underscores")
        for argument in self.extra_args:
            self._check_extra(argument)

    @property
    def http_host(self) -> str:
        """Where HTTP listens."""
        return self.host if self.tls is None else "127.0.0.1"

    def _check_ports(self) -> None:
        ports = {"http_port": self.http_port, "grpc_port": self.grpc_port, "metrics_port": self.metrics_port}
        for name, port in ports.items():
            if not 0 <= port <= 65535:
                raise InvalidInputError(f"{name} is {port}: it must be 1 to 65535, or 0 for a free one")
        fixed = [port for port in ports.values() if port]
        if len(set(fixed)) != len(fixed):
            raise InvalidInputError(f"the ports {ports} must differ: choose others, or 0 for free ones")

    @staticmethod
    def _check_extra(argument: str) -> None:
        flag = argument.partition("=")[0]
        if flag == "--cache-config":
            raise InvalidInputError(
                f"extra_args has {argument!r}, but the response cache stays off, as its key leaves out "
                "tensor shapes: remove the flag"
            )
        if flag in _OWNED_FLAGS:
            raise InvalidInputError(
                f"extra_args has {argument!r}, which TritonServerConfig or TritonServer sets: remove it"
            )


def _ipv4(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host))
    except ipaddress.AddressValueError as error:
        raise InvalidInputError(
            f"host is {host!r}, but the server listens on an IPv4 address: use 127.0.0.1 for this machine "
            "or 0.0.0.0 for every network"
        ) from error
