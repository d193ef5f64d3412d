"""How tensors reach a server: the protocols that the clients know. gRPC is one implementation of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from autogaze_client._errors import InvalidInputError
from autogaze_client._wire import Inputs, Tensors
from autogaze_client.knobs import check_whole_number
from autogaze_client.statistics import ModelStatistics

__all__ = [
    "STREAM_HEADER",
    "AsyncTransport",
    "CallOptions",
    "SequenceStep",
    "Transport",
    "check_request_id",
    "check_version",
]

STREAM_HEADER = "autogaze-stream"
"""The metadata of a stream's requests that a load balancer may hash: the correlation id, in decimal."""

PRIORITY_LEVELS = 3
"""Levels of the shipped ``autogaze_generate``. Triton takes a number beyond them for the default level."""

_LONGEST_REQUEST_ID = 128


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


@dataclass(frozen=True)
class CallOptions:
    """What a request carries beside its tensors.

    Attributes:
        request_id: what the server's log and its trace spans call the request; None = nothing.
        priority: 1 is served before 2, and 2 before 3; None = the server's default, 2.
        version: of the model, as Triton numbers it; None = the server's choice.
        sequence: its place in a stream; None = it is in none.

    Raises:
        InvalidInputError: a value breaks its rule.
    """

    request_id: str | None = None
    priority: int | None = None
    version: int | None = None
    sequence: SequenceStep | None = None

    def __post_init__(self) -> None:
        check_version(self.version)
        if self.priority is not None:
            rule = f"a whole number from 1 (served first) to {PRIORITY_LEVELS}"
            if check_whole_number("priority", self.priority, rule) > PRIORITY_LEVELS:
                raise InvalidInputError(f"priority is {self.priority}; it must be {rule}")

    def part(self, name: object) -> CallOptions:
        """The same for one of several requests: its id is ``<request_id>-<name>``."""
        return self if self.request_id is None else replace(self, request_id=f"{self.request_id}-{name}")

    def request_options(self) -> dict[str, Any]:
        """Keyword arguments of both tritonclient connections; what is not set is left to their defaults."""
        options: dict[str, Any] = {}
        if self.request_id is not None:
            options["request_id"] = self.request_id
        if self.priority is not None:
            options["priority"] = self.priority
        if self.version is not None:
            options["model_version"] = str(self.version)
        step = self.sequence
        if step is not None:
            options |= {"sequence_id": step.id, "sequence_start": step.start, "sequence_end": step.end}
        return options

    def headers(self) -> dict[str, str]:
        """Metadata of the request: what lets a balancer send all frames of a stream to one server."""
        return {} if self.sequence is None else {STREAM_HEADER: str(self.sequence.id)}


def check_request_id(value: str | None) -> str | None:
    """The id, if it can stand on one line of a log and in a header.

    Raises:
        InvalidInputError: it is no str of 1 to 128 printable ASCII characters without spaces.
    """
    good = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value
    if value is not None and not (good and 0 < len(value) <= _LONGEST_REQUEST_ID):
        raise InvalidInputError(
            f"request_id is {value!r}; it must be a str of 1 to {_LONGEST_REQUEST_ID} printable ASCII characters "
            "without spaces, or None"
        )
    return value


def check_version(value: int | None) -> None:
    """Refuses a version that Triton cannot have.

    Raises:
        InvalidInputError: it is no whole number of at least 1.
    """
    if value is not None:
        check_whole_number("version", value, "a whole number of at least 1, or None for the server's choice")


class Transport(Protocol):
    """What ``GazeClient`` needs of a connection. Errors are those of ``autogaze_client``.

    Inputs are numpy arrays, but frames that lie on a CUDA device come as they are: ``np.asarray`` copies them to
    the host.
    """

    def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Iterable[str],
        timeout: float | None,
        call: CallOptions | None = None,
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
        inputs: Inputs,
        outputs: Iterable[str],
        timeout: float | None,
        call: CallOptions | None = None,
    ) -> Tensors:
        """Runs one request."""

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the server is up and the model loaded; False where no server answers."""

    async def statistics(self, timeout: float | None) -> tuple[ModelStatistics, ...]:
        """Counters of every loaded model since the server started."""

    async def close(self) -> None:
        """Closes the connection."""
