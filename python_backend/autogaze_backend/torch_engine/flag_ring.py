"""Which rows of a call go on: the kernels write it to the host's memory, where the host reads it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autogaze_backend.torch_engine.device_queue import DeviceQueue

# Calls whose flags are kept; a power of two, and more than the host is ever ahead.
CALLS = 32

# A flag is told with the number of its call, which wraps.
CALL_MASK = 0x3FFFFFFF

# How long the host looks before it asks the device what is wrong: no call takes so long.
_PATIENCE_SECONDS = 0.25


class FlagRing:
    """The host's side of the flags.

    Attributes:
        told: int32 ``[CALLS, rows]`` in the host's memory, which the device writes: twice the number of the call, plus
            one where the row goes on.
        calls: int32 ``[1]`` on the device, the number of the call at work.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.told: Tensor = torch.zeros((CALLS, rows), dtype=torch.int32, pin_memory=device.type == "cuda")
        self.calls = torch.zeros(1, dtype=torch.int32, device=device)
        self._array = self.told.numpy()
        self._call = 0

    def begin(self, calls: int = 1) -> None:
        """Notes that calls were enqueued."""
        self._call = (self._call + calls) & CALL_MASK

    def last(self, rows: int, queue: DeviceQueue) -> FlagsOfCall:
        """The flags of the call that was enqueued last.

        Args:
            rows: of the call.
            queue: where it was enqueued.
        """
        return FlagsOfCall(self._array[self._call % CALLS, :rows], self._call, queue)


class FlagsOfCall:
    """A ``FlagsTicket``."""

    def __init__(self, line: NDArray[np.int32], call: int, queue: DeviceQueue) -> None:
        self._line, self._call, self._queue = line, call, queue

    def ready(self) -> bool:
        """Whether ``wait`` returns at once."""
        return bool((self._line >> 1 == self._call).all())

    def wait(self) -> NDArray[np.bool_]:
        """Bool ``[B]``: whether each row's frame goes on.

        Raises:
            RuntimeError: the flags were overwritten by those of later calls, or what the device reports.
        """
        if not self._queue.waiting.until(self.ready, _PATIENCE_SECONDS):
            self._queue.settle()
            if not self.ready():
                raise RuntimeError(f"the flags of call {self._call} of the engine are lost")
        return (self._line & 1).astype(np.bool_)
