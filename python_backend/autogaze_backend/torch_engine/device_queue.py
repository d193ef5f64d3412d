"""Work on the device in order: pinned buffers for what goes there, tickets for what comes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from autogaze_backend.torch_engine.waiting import Waiting

# Calls that the host may be ahead of the device; enough to hide the host, few enough that a new row joins soon.
_AHEAD = 6


class Ticket:
    """A copy from the device that is under way, and what to make of it."""

    def __init__(self, event: Any, finish: Callable[[], Any], waiting: Waiting) -> None:
        self._event, self._finish, self._waiting = event, finish, waiting

    def ready(self) -> bool:
        """Whether ``wait`` returns at once."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> Any:
        """Waits for the copy, and its result."""
        self._waiting.until(self.ready)
        return self._finish()


class DeviceQueue:
    """A stream of one device; on a CPU everything happens at once.

    Attributes:
        device: whose queue it is.
        waiting: how the host waits for it.
    """

    def __init__(self, device: torch.device, waiting: Waiting | None = None) -> None:
        self.device = device
        self.waiting = waiting or Waiting()
        self.is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.is_cuda else None
        self._calls: deque[Any] = deque()
        self._outer: list[Any] = []
        self._pinned: dict[tuple[int, torch.dtype], deque[tuple[Any, Tensor]]] = {}

    @property
    def stream(self) -> Any:
        """The CUDA stream, None on a CPU."""
        return self._stream

    def __enter__(self) -> None:
        """Makes this thread's work go to the stream."""
        if self._stream is None:
            return
        before = torch.cuda.current_stream(self.device)
        self._outer.append(before)
        if before != self._stream:
            torch.cuda.set_stream(self._stream)

    def follow(self) -> None:
        """Inside: what comes now waits for what this thread enqueued outside, such as the making of its tensors."""
        if self._stream is not None and self._outer[-1] != self._stream:
            self._stream.wait_stream(self._outer[-1])

    def settle(self) -> None:
        """Waits for all calls, and raises what went wrong on the device."""
        if self._stream is not None:
            self._stream.synchronize()

    def __exit__(self, *_: object) -> None:
        """Gives the thread its own stream back."""
        if self._stream is not None:
            before = self._outer.pop()
            if before != self._stream:
                torch.cuda.set_stream(before)

    def throttle(self) -> None:
        """Notes a call, and waits while too many are under way."""
        if self._stream is None:
            return
        event = self._calls.popleft() if len(self._calls) == _AHEAD else torch.cuda.Event()
        self.waiting.until(event.query)
        event.record(self._stream)
        self._calls.append(event)

    def staging(self, size: int, dtype: torch.dtype) -> Tensor:
        """A host buffer of ``size`` elements that no copy uses any more; hand it to ``send``."""
        if not self.is_cuda:
            return torch.empty(size, dtype=dtype)
        return self._buffer(size, dtype)[:size]

    def _buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        # Pinning memory is slow, so buffers come in few sizes and are used again.
        capacity = 1 << max(size - 1, 1).bit_length()
        ring = self._pinned.setdefault((capacity, dtype), deque())
        if ring and (ring[0][0] is None or ring[0][0].query()):
            return ring.popleft()[1]
        return torch.empty(capacity, dtype=dtype, pin_memory=True)

    def send(self, staging: Tensor, target: Tensor) -> None:
        """Copies a staging buffer to the device."""
        target.copy_(staging.view(target.shape), non_blocking=True)
        self._lend(staging)

    def fetch(self, source: Tensor, finish: Callable[[NDArray[Any]], Any]) -> Ticket:
        """Copies a contiguous tensor to the host; ``finish`` makes the ticket's result of an array of its own."""
        if not self.is_cuda:
            array = source.detach().clone().numpy()
            return Ticket(None, lambda: finish(array), self.waiting)
        staging = self.staging(source.numel(), source.dtype)
        staging.copy_(source.reshape(-1), non_blocking=True)
        event = torch.cuda.Event()
        event.record(self._stream)

        def take() -> Any:
            # A copy: the next one to ask for a buffer of this size gets this one.
            result = finish(staging.view(source.shape).numpy().copy())
            self._give(staging, None)
            return result

        return Ticket(event, take, self.waiting)

    def _lend(self, staging: Tensor) -> None:
        if not self.is_cuda:
            return
        event = torch.cuda.Event()
        event.record(self._stream)
        self._give(staging, event)

    def _give(self, staging: Tensor, event: Any) -> None:
        """Puts a buffer back, to be used again once ``event`` has come."""
        buffer = staging._base if staging._base is not None else staging
        self._pinned[buffer.numel(), buffer.dtype].append((event, buffer))
