"""How tensors reach a server: the protocols that the clients know. gRPC is one implementation of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from autogaze_client._wire import Inputs, Tensors
from autogaze_client.statistics import ModelStatistics

__all__ = ["AsyncTransport", "SequenceStep", "Transport"]


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
        inputs: Inputs,
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
