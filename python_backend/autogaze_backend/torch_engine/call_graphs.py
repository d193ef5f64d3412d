"""The decoder's calls: a captured graph for each phase and bucket of rows, or the operations themselves on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from autogaze_backend.engine import Integers
from autogaze_backend.resident import BURST
from autogaze_backend.torch_engine.device_queue import DeviceQueue
from autogaze_backend.torch_engine.state import Work, pack_inputs

# Rows of a captured graph; a call takes the next larger one, whose idle programs return at once.
_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Up to so many rows, calls that are enqueued together are one graph: a graph's start costs as much as a kernel.
_BURST_ROWS = 8


class DecoderOps(Protocol):
    """The two phases, on the slots of ``Work.slots``."""

    def prefill(self, rows: int) -> None:
        """Opens a frame and chooses its first group."""

    def step(self, rows: int) -> None:
        """Feeds the last group and chooses the next."""


class CallGraphs:
    """Enqueues calls."""

    def __init__(self, ops: DecoderOps, work: Work, rows: int, queue: DeviceQueue) -> None:
        """Captures nothing yet.

        Args:
            ops: what a call does.
            work: its buffers.
            rows: the most of one call.
            queue: of the device.
        """
        self._ops, self._work, self._queue = ops, work, queue
        self._sent: Integers | None = None
        self._buckets = [*(size for size in _BUCKETS if size < rows), rows]
        self._bucket_of = [0] * (rows + 1)
        for size in reversed(self._buckets):
            self._bucket_of[: size + 1] = [size] * (size + 1)
        self._graphs: dict[tuple[str, int, int], Any] = {}

    def call(self, phase: str, slots: Integers, calls: int = 1) -> None:
        """Enqueues ``calls`` calls of a phase, "prefill" or "step"; the current stream is the queue's."""
        rows = len(slots)
        # Calls for the same rows, one after another, find their slots there.
        if self._sent is None or not np.array_equal(self._sent, slots):
            staging = self._queue.staging(self._work.inputs.numel(), torch.int32)
            pack_inputs(staging.numpy(), slots)
            self._queue.send(staging, self._work.inputs)
            self._sent = slots
        if (phase, BURST, self._bucket_of[rows]) in self._graphs:
            for _ in range(calls // BURST):
                self._launch(phase, rows, BURST)
            calls %= BURST
        for _ in range(calls):
            self._launch(phase, rows)

    def run(self) -> None:
        """Makes a call of every bucket, so that it is known which kernels they launch; no row is real."""
        self._work.inputs.zero_()
        for bucket in self._buckets:
            self._ops.prefill(bucket)
            self._ops.step(bucket)

    def capture(self, captured: Callable[[Callable[[], None]], Any]) -> None:
        """Captures the graphs; no row is real then, so that nothing is left behind.

        Args:
            captured: from a function to the graph of its calls.
        """
        self._work.inputs.zero_()
        self._sent = None
        for phase in ("prefill", "step"):
            for bucket in self._buckets:
                for calls in (1, BURST) if bucket <= _BURST_ROWS else (1,):
                    run = partial(_repeat, getattr(self._ops, phase), bucket, calls)
                    self._graphs[phase, calls, bucket] = captured(run)

    def close(self) -> None:
        """Gives the graphs up."""
        self._graphs.clear()

    def _launch(self, phase: str, rows: int, calls: int = 1) -> None:
        self._work.ring.begin(calls)
        if not self._queue.is_cuda:
            getattr(self._ops, phase)(rows)
            return
        self._graphs[phase, calls, self._bucket_of[rows]].replay()
        self._queue.throttle()


def _repeat(call: Callable[[int], None], rows: int, calls: int) -> None:
    for _ in range(calls):
        call(rows)
