"""Puts windows of frames into slots, encoded, with the plans of their frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autogaze_backend.engine import Integers
from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.device_queue import DeviceQueue
from autogaze_backend.torch_engine.encoder import EncoderSteps, encode
from autogaze_backend.torch_engine.preprocessing import DevicePreprocessing
from autogaze_backend.torch_engine.state import Sizes, SlotState

# Rows of a captured graph, by frames of its window; the last one is as large as an engine's calls may be.
_BUCKETS = {1: (1, 4, 16, 32, 64, 128, 256), 16: (1, 2, 4, 8, 16)}


def row_buckets(time: int, rows: int) -> list[int]:
    """Rows of the graphs for windows of ``time`` frames, ascending, where a call of the engine has ``rows`` at most."""
    most = min(rows, _BUCKETS[time][-1])
    return [*(size for size in _BUCKETS[time] if size < most), most]


class FrameEncoder:
    """The encoder of an engine's slots; on CUDA a captured graph for a bucket of rows."""

    def __init__(
        self,
        spec: ModelSpec,
        steps: EncoderSteps,
        state: SlotState,
        sizes: Sizes,
        queue: DeviceQueue,
        preprocessing: DevicePreprocessing,
    ) -> None:
        self._spec, self._steps, self._state, self._sizes = spec, steps, state, sizes
        self._queue, self._preprocessing = queue, preprocessing
        self._buckets = {time: row_buckets(time, sizes.rows) for time in _BUCKETS}
        self._graphs: dict[tuple[int, int], _EncoderGraph] = {}
        if queue.is_cuda:
            self._make_buffers()

    def encode(
        self, slots: Integers, frames: Sequence[Any], fresh: NDArray[np.bool_], plans: NDArray[np.int32]
    ) -> None:
        """See ``ResidentEngine.encode_frames``; the current stream is the queue's."""
        padded = 1 if plans.shape[1] == 1 else self._sizes.window
        most = self._buckets[padded][-1]
        for start in range(0, len(slots), most):
            part = slice(start, start + most)
            self._encode_part(slots[part], frames[part], fresh[part], plans[part], padded)

    def run(self) -> None:
        """Makes the calls of every graph, so that it is known which kernels they launch."""
        for graph in self._graphs.values():
            self._run(graph)

    def capture(self, captured: Callable[[Callable[[], None]], Any]) -> None:
        """Captures the graphs.

        Args:
            captured: from a function to the graph of its calls.
        """
        for graph in self._graphs.values():
            graph.graph = captured(partial(self._run, graph))

    def close(self) -> None:
        """Gives the graphs up."""
        self._graphs.clear()

    def _make_buffers(self) -> None:
        side, device = self._spec.input_size, self._queue.device
        for time, buckets in self._buckets.items():
            most = buckets[-1]
            frames = torch.zeros((most, time, 3, side, side), device=device)
            header = torch.zeros(_header_size(most, time), dtype=torch.int64, device=device)
            for bucket in buckets:
                graph = _EncoderGraph(frames[:bucket], header[: _header_size(bucket, time)])
                graph.indices.fill_(self._sizes.slots)
                self._graphs[time, bucket] = graph

    def _encode_part(
        self,
        slots: Integers,
        frames: Sequence[Any],
        fresh: NDArray[np.bool_],
        plans: NDArray[np.int32],
        padded: int,
    ) -> None:
        side, time, device = self._spec.input_size, plans.shape[1], self._queue.device
        if not self._queue.is_cuda:
            batch = torch.empty((len(slots), time, 3, side, side), device=device)
            self._fill(batch, frames)
            self._into_slots(
                torch.as_tensor(slots),
                torch.as_tensor(fresh),
                batch,
                torch.as_tensor(plans, device=device),
            )
            return
        bucket = next(size for size in self._buckets[padded] if size >= len(slots))
        graph = self._graphs[padded, bucket]
        header = self._queue.staging(graph.header.numel(), torch.int64)
        indices, planned = _header_views(header, bucket, padded)
        array = indices.numpy()
        array[:, : len(slots)] = slots, fresh
        # Rows that fill up the bucket write to the slot that nobody reads.
        array[:, len(slots) :] = [[self._sizes.slots], [0]]
        planned.numpy()[: len(slots), :time] = plans
        self._queue.send(header, graph.header)
        self._fill(graph.frames[: len(slots), :time], frames)
        graph.graph.replay()
        self._queue.throttle()

    def _fill(self, target: Tensor, frames: Sequence[Any]) -> None:
        """Writes the rows' model input to ``target`` ``[B, T, 3, side, side]``."""
        byte_rows: dict[tuple[int, ...], list[int]] = {}
        for row, window in enumerate(frames):
            if window.dtype in (np.uint8, torch.uint8):
                byte_rows.setdefault(window.shape[1:], []).append(row)
            elif isinstance(window, Tensor) or not self._queue.is_cuda:
                target[row].copy_(torch.as_tensor(window), non_blocking=True)
            else:
                staging = self._queue.staging(window.size, torch.float32)
                staging.numpy().reshape(window.shape)[:] = window
                self._queue.send(staging, target[row])
        for rows in byte_rows.values():
            # Clips of one size share a copy to the device and what is computed there.
            uploaded = self._preprocessing.upload([frames[row] for row in rows])
            if len(rows) == len(target) and target.is_contiguous():
                self._preprocessing.clip(uploaded, out=target.flatten(0, 1))
            else:
                made = self._preprocessing.clip(uploaded).unflatten(0, (len(rows), -1))
                target[torch.tensor(rows)] = made

    def _run(self, graph: _EncoderGraph) -> None:
        self._into_slots(graph.indices[0], graph.indices[1] != 0, graph.frames, graph.plans)

    def _into_slots(self, slots: Tensor, fresh: Tensor, frames: Tensor, plans: Tensor) -> None:
        """Encodes into the slots' windows, with the plans of their frames; a fresh slot starts a stream."""
        state, time = self._state, plans.shape[1]
        state.plan[:, :time].index_copy_(0, slots, plans)
        state.frame.index_fill_(0, slots, -1)
        with ExactConvolutions():
            after = encode(self._spec, self._steps, frames, state.encoder, slots, fresh, state.vision)
        state.encoder.index_copy_(0, slots, after)
        for counter in (state.first, state.length, state.position):
            kept = counter.index_select(0, slots)
            counter.index_copy_(0, slots, torch.where(fresh, torch.zeros_like(kept), kept))
        group = state.group.index_select(0, slots)
        empty = torch.full_like(group, self._spec.tokens_per_frame)
        state.group.index_copy_(0, slots, torch.where(fresh[:, None], empty, group))


def _header_size(rows: int, time: int) -> int:
    """Words of 8 bytes that tell a graph about its rows."""
    return 2 * rows + -(-rows * time * 3 // 2)


def _header_views(header: Tensor, rows: int, time: int) -> tuple[Tensor, Tensor]:
    """Slots and freshness int64 ``[2, rows]``, plans int32 ``[rows, time, 3]``."""
    plans = header[2 * rows :].view(torch.int32)[: rows * time * 3]
    return header[: 2 * rows].view(2, rows), plans.view(rows, time, 3)


class _EncoderGraph:
    """A graph for a bucket of rows, and the buffers that it reads; smaller buckets read the same memory."""

    def __init__(self, frames: Tensor, header: Tensor) -> None:
        self.frames, self.header = frames, header
        self.indices, self.plans = _header_views(header, *frames.shape[:2])
        self.graph: Any = None


class ExactConvolutions:
    """No TF32 inside: float32 stays float32."""

    def __enter__(self) -> None:
        self._before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._before
