"""Who may ask an embedded server what: TLS, and protocols that need a header."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from autogaze_client._errors import InvalidInputError, NotFoundError

__all__ = ["PROTOCOLS", "RestrictedProtocols", "ServerTLS"]

PROTOCOLS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)
"""What Triton lets a restriction name."""

_HEADER_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")
# How Triton's gRPC service looks for the header of a restriction.
_GRPC_PREFIX = "triton-grpc-protocol-"


@dataclass(frozen=True)
class ServerTLS:
    """Certificates of the gRPC service, as PEM files.

    Attributes:
        certificate: the server's certificate, with its chain.
        private_key: the server's key.
        client_authority: the authority that signs the certificates of clients: with it only clients that have
            one are served (mutual TLS).

    Raises:
        NotFoundError: a file does not exist.
        InvalidInputError: a file is not PEM, or holds something else than its name says.
    """

    certificate: Path
    private_key: Path
    client_authority: Path | None = None

    def __post_init__(self) -> None:
        kinds = {
            "certificate": "CERTIFICATE",
            "private_key": "PRIVATE KEY",
            "client_authority": "CERTIFICATE",
        }
        for name, kind in kinds.items():
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, _pem(name, Path(path), kind))

    def flags(self) -> list[str]:
        """The arguments of ``tritonserver``."""
        # Triton takes both switches as one or the other, and reads the root only for mutual TLS.
        kind = "--grpc-use-ssl" if self.client_authority is None else "--grpc-use-ssl-mutual"
        flags = [
            f"{kind}=true",
            f"--grpc-server-cert={self.certificate}",
            f"--grpc-server-key={self.private_key}",
        ]
        if self.client_authority is not None:
            flags.append(f"--grpc-root-cert={self.client_authority}")
        return flags


@dataclass(frozen=True)
class RestrictedProtocols:
    """Protocols of the server that answer only calls with a certain header.

    Attributes:
        protocols: of ``PROTOCOLS``.
        header: the header's name, lower case. Clients of gRPC send ``grpc_header`` instead.
        value: what it must hold. Triton takes it as an argument, so users of the server's machine can read it.

    Raises:
        InvalidInputError: a protocol that Triton does not know, or a header that cannot be sent.
    """

    protocols: tuple[str, ...]
    header: str
    value: str

    def __post_init__(self) -> None:
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        if unknown or not self.protocols or len(set(self.protocols)) < len(self.protocols):
            raise InvalidInputError(
                f"the restricted protocols are {list(self.protocols)}; name one or more of {', '.join(PROTOCOLS)}, "
                "each once"
            )
        if not _HEADER_NAME.fullmatch(self.header):
            raise InvalidInputError(
                f"the restriction's header is {self.header!r}; use lower-case letters, digits, '-', '_' and '.'"
            )
        if not _HEADER_VALUE.fullmatch(self.value):
            raise InvalidInputError(
                f"the value of the restriction's header {self.header!r} is empty or has blanks or other than ASCII "
                "characters; use printable ASCII without blanks"
            )

    @classmethod
    def parse(cls, text: str) -> RestrictedProtocols:
        """Reads ``protocol[,protocol…]:header=value``.

        Raises:
            InvalidInputError: it is not of this form, or a part breaks a rule.
        """
        protocols, colon, rest = text.partition(":")
        header, equals, value = rest.partition("=")
        if not (colon and equals):
            raise InvalidInputError(
                "a restriction is protocol[,protocol...]:header=value, as in "
                f"model-repository,shared-memory:admin-key=SECRET; {text.partition('=')[0]!r} is not"
            )
        return cls(tuple(protocols.split(",")), header, value)

    @property
    def grpc_header(self) -> str:
        """The metadata that a gRPC client sends, with ``value``: ``GazeClient(headers={...})``."""
        return _GRPC_PREFIX + self.header

    def grpc_flag(self) -> str:
        """The argument of ``tritonserver`` for gRPC."""
        return f"--grpc-restricted-protocol={','.join(self.protocols)}:{self.header}={self.value}"

    def http_flag(self) -> str:
        """The argument of ``tritonserver`` for HTTP."""
        return f"--http-restricted-api={','.join(self.protocols)}:{self.header}={self.value}"


def check_restrictions(restrictions: tuple[RestrictedProtocols, ...]) -> None:
    """Refuses a protocol that two restrictions name, which Triton does not take.

    Raises:
        InvalidInputError: there is one.
    """
    named = [name for restriction in restrictions for name in restriction.protocols]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise InvalidInputError(
            f"{', '.join(twice)} is in two restrictions; a protocol takes one header: name it in one of them"
        )


def _pem(name: str, path: Path, kind: str) -> Path:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise NotFoundError(f"TLS {name} is {path}, which is no file; name a PEM file")
    try:
        text = path.read_text(encoding="ascii")
    except (UnicodeDecodeError, OSError) as error:
        raise InvalidInputError(
            f"TLS {name} {path} cannot be read as PEM ({error}); name a PEM file"
        ) from error
    if not re.search(rf"-----BEGIN [A-Z ]*{kind}-----", text):
        raise InvalidInputError(f"TLS {name} {path} holds no {kind}; name the PEM file that does")
    return path
