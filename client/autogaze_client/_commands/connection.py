"""The options of every command that asks a running server: where it is, TLS, and headers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogaze_client._errors import InvalidInputError

if TYPE_CHECKING:
    from autogaze_client._config import TLSConfig

__all__ = ["Connection", "add_connection_options", "chosen_connection"]

# What gRPC sends as text.
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]+")


@dataclass(frozen=True)
class Connection:
    """How a command reaches its server.

    Attributes:
        url: ``host:port`` of gRPC.
        tls: None for a plain connection.
        headers: sent with every call.
    """

    url: str
    tls: TLSConfig | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Of ``GazeClient`` and ``AsyncGazeClient``."""
        return {"url": self.url, "tls": self.tls, "headers": self.headers}


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Declares ``--url``, the options of TLS, and ``--header``."""
    parser.add_argument(
        "--url", default="localhost:8001", help="gRPC endpoint of the server (default: %(default)s)"
    )
    group = parser.add_argument_group("connection", "for a server with TLS or restricted protocols")
    group.add_argument(
        "--tls",
        action="store_true",
        help="TLS, with the authorities that gRPC knows; the next three imply it",
    )
    group.add_argument("--tls-ca", metavar="PEM", help="the authority of the server's certificate")
    group.add_argument("--tls-cert", metavar="PEM", help="this client's certificate, for mutual TLS")
    group.add_argument("--tls-key", metavar="PEM", help="its private key")
    group.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="sent with every call; may be given several times. Other users of this machine can read it",
    )


def chosen_connection(args: argparse.Namespace) -> Connection:
    """What the options say.

    Raises:
        InvalidInputError: a file is missing, a certificate has no key, or a header cannot be sent.
    """
    return Connection(args.url, _tls(args), _headers(args.header))


def _tls(args: argparse.Namespace) -> TLSConfig | None:
    files = {"--tls-ca": args.tls_ca, "--tls-cert": args.tls_cert, "--tls-key": args.tls_key}
    if not args.tls and all(path is None for path in files.values()):
        return None
    if (args.tls_cert is None) != (args.tls_key is None):
        given, absent = ("--tls-key", "--tls-cert") if args.tls_cert is None else ("--tls-cert", "--tls-key")
        raise InvalidInputError(
            f"{given} has no {absent}: mutual TLS needs both; for a server that asks for no certificate leave "
            "both out"
        )
    for option, path in files.items():
        if path is not None and not Path(path).is_file():
            raise InvalidInputError(f"{option} is {path!r}, which is no file; name a PEM file")
    from autogaze_client._config import TLSConfig

    return TLSConfig(args.tls_ca, args.tls_key, args.tls_cert)


def _headers(pairs: Sequence[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        # The value may be a secret, so no message shows it.
        if not equals or not _NAME.fullmatch(name):
            raise InvalidInputError(
                f"--header takes NAME=VALUE, where a name has letters, digits, '-', '_' and '.'; the name here is "
                f"{name!r}"
                if equals
                else "--header takes NAME=VALUE; one of them has no '='"
            )
        if not _VALUE.fullmatch(value):
            raise InvalidInputError(
                f"the value of --header {name} is empty or has other than printable ASCII characters"
            )
        if name.lower() in headers:
            raise InvalidInputError(f"--header {name} is given twice; a header has one value")
        headers[name.lower()] = value
    return headers
