"""How a client connects: deadlines and TLS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autogaze_client._errors import InvalidInputError

__all__ = ["TLSConfig", "Timeouts"]


def check_seconds(name: str, value: float | None) -> None:
    """Refuses a deadline that is not a positive, finite number of seconds; None means no deadline.

    Raises:
        InvalidInputError: ``value`` is zero, negative, infinite or NaN.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InvalidInputError(
            f"{name} is {value}; it must be a positive number of seconds, or None for no deadline"
        )


@dataclass(frozen=True)
class Timeouts:
    """Deadlines in seconds; None waits for ever.

    Attributes:
        request: one gaze request: one clip, or one window of a video.
        control: readiness, metadata and statistics calls.
    """

    request: float | None = 120.0
    control: float | None = 5.0

    def __post_init__(self) -> None:
        check_seconds("Timeouts.request", self.request)
        check_seconds("Timeouts.control", self.control)


@dataclass(frozen=True)
class TLSConfig:
    """Certificates of a TLS connection, as PEM files.

    Attributes:
        root_certificates: authorities to trust; None trusts gRPC's own list.
        private_key: the client's key, for mutual TLS; goes with ``certificate_chain``.
        certificate_chain: the client's certificate, for mutual TLS; goes with ``private_key``.
    """

    root_certificates: Path | str | None = None
    private_key: Path | str | None = None
    certificate_chain: Path | str | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise InvalidInputError(
                "TLSConfig has one of private_key and certificate_chain; mutual TLS needs both, "
                "server-only TLS neither"
            )
        for name in ("root_certificates", "private_key", "certificate_chain"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise InvalidInputError(
                    f"TLSConfig.{name} is {str(path)!r}, which is no file; pass a PEM file"
                )


def check_url(url: str) -> str:
    """Checks that ``url`` is ``host:port`` and returns it.

    Raises:
        InvalidInputError: it has a scheme, or no port from 1 to 65535.
    """
    if "://" in url:
        raise InvalidInputError(
            f"url is {url!r}; gRPC takes host:port without a scheme, as in 'localhost:8001' "
            "(for TLS pass tls=TLSConfig())"
        )
    host, _, port = url.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise InvalidInputError(f"url is {url!r}; it must be host:port, as in 'localhost:8001'")
    if not 1 <= int(port) <= 65535:
        raise InvalidInputError(f"url is {url!r}, but a port is from 1 to 65535, as in 'localhost:8001'")
    return url


def check_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers in the lower case that gRPC metadata needs.

    Raises:
        InvalidInputError: a name or value is not text.
    """
    checked = {}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidInputError(f"header {name!r} is {value!r}; names and values must be str")
        checked[name.lower()] = value
    return checked
