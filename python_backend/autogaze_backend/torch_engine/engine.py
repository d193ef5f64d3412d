"""The torch engine: rows live on the device in slots; a call is a CUDA graph of Triton kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from autogaze_client._errors import ServerUnavailableError
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from autogaze_backend.bundle import Bundle
from autogaze_backend.engine import Floats, GroupResult, Integers, Limits
from autogaze_backend.generation import FrameLimits, FrameTokens
from autogaze_backend.resident import BURST, FlagsTicket, frame_plans, groups_of
from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.device_queue import DeviceQueue, Ticket
from autogaze_backend.torch_engine.encoder import EncoderSteps, TorchSteps, encode
from autogaze_backend.torch_engine.opening import TorchSettings, cache_pages, open_device
from autogaze_backend.torch_engine.pages import PAGE, PageTable
from autogaze_backend.torch_engine.preprocessing import DevicePreprocessing
from autogaze_backend.torch_engine.reference import ReferenceOps
from autogaze_backend.torch_engine.state import Sizes, SlotState, Work, pack_inputs
from autogaze_backend.torch_engine.weights import decoder_weights, encoder_weights, precision_dtype

if TYPE_CHECKING:
    from autogaze_backend.torch_engine.compiling import KernelCompiler

# Rows of a captured graph; a call takes the next larger one, whose idle programs return at once.
_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Up to so many rows, calls that are enqueued together are one graph: a graph's start costs as much as a kernel.
_BURST_ROWS = 8

# Rows of a captured encoder graph, by frames of its window.
_ENCODER_BUCKETS = {1: (1, 4, 16, 64, 256), 16: (1, 2, 4, 8, 16)}

_WINDOW = 16


class TorchEngine:
    """Runs a bundle's weights with torch: the ``Engine`` and the ``ResidentEngine`` interface.

    On CUDA a call is a captured graph of Triton kernels. On a CPU it is plain torch, a row at a time: slow, and the
    oracle of the kernels.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cuda",
        settings: TorchSettings | None = None,
        kernels: bool | None = None,
    ) -> None:
        """Puts the weights on the device and captures the graphs.

        Args:
            bundle: any bundle with weights; its precision is the engine's.
            device: a torch device.
            settings: how much memory to take; None reads the environment.
            kernels: whether to run the Triton kernels; None runs them on CUDA.

        Raises:
            InvalidInputError: there is no such device, or the bundle has another precision.
            ServerUnavailableError: the device's memory is too small for the settings.
        """
        self._device = open_device(device)
        settings = settings or TorchSettings.from_environment(self._device)
        self._spec = spec = bundle.spec
        self._dtype = precision_dtype(bundle.precision)
        self._queue = DeviceQueue(self._device)
        self._sent: Integers | None = None
        pages = cache_pages(spec, settings, self._device, self._dtype)
        self._sizes = Sizes(
            settings.slots,
            min(settings.rows, settings.slots),
            pages,
            min(pages, -(-settings.max_positions // PAGE)),
            _WINDOW,
        )
        if kernels is None:
            kernels = self._queue.is_cuda
        self._kernels = kernels
        compiler: KernelCompiler | None = None
        if self._queue.is_cuda:
            from autogaze_backend.torch_engine.compiling import KernelCompiler

            # It begins here, so that its process is up when the kernels are known.
            compiler = KernelCompiler()
        weights = load_file(bundle.weights)
        decoder = decoder_weights(spec, weights, self._device, self._dtype, halves=kernels)
        encoder = encoder_weights(spec, weights, self._device, self._dtype, halves=kernels)
        try:
            self._state = SlotState(spec, self._sizes, self._device, self._dtype, halves=kernels)
            self._work = Work(spec, self._sizes, decoder.heads.shape[-1], self._device, self._dtype)
        except torch.OutOfMemoryError as error:
            raise ServerUnavailableError(
                f"the device has no room for {self._sizes.slots} slots and {pages * PAGE} cached positions "
                f"({error}); lower AUTOGAZE_SLOTS or AUTOGAZE_CACHE_GIB"
            ) from error
        self._ops: Any
        self._encoder: EncoderSteps
        if kernels:
            from autogaze_backend.torch_engine.encoder_launching import TritonSteps
            from autogaze_backend.torch_engine.launching import TritonOps

            self._ops = TritonOps(spec, decoder, self._state, self._work)
            self._encoder = TritonSteps(spec, encoder)
        else:
            self._ops = ReferenceOps(spec, decoder, self._state, self._work)
            self._encoder = TorchSteps(spec, encoder)
        self.preprocessing = DevicePreprocessing(bundle.preprocessing, spec.input_size, self._device)
        self._table = PageTable(self._sizes.slots, pages, self._sizes.max_pages)
        self._free = list(range(self._sizes.slots - 1, -1, -1))
        self._graphs: dict[tuple[str, int, int], Any] = {}
        self._encoder_graphs: dict[tuple[int, int], Any] = {}
        self._bucket_of = [0] * (self._sizes.rows + 1)
        for size in reversed(self._row_buckets()):
            self._bucket_of[: size + 1] = [size] * (size + 1)
        if compiler is not None:
            with self._queue:
                self._capture(compiler)

    @property
    def spec(self) -> ModelSpec:
        """The architecture it runs."""
        return self._spec

    @property
    def preferred_rows(self) -> int:
        """Rows a call at which it is fastest."""
        return self._sizes.rows

    @property
    def max_rows(self) -> int:
        """Rows of one call."""
        return self._sizes.rows

    @property
    def max_slots(self) -> int | None:
        """Slots that can be open at once."""
        return self._sizes.slots

    @property
    def window(self) -> int:
        """Frames that a slot holds at once."""
        return self._sizes.window

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._device

    @property
    def encoder_state_shape(self) -> tuple[int, ...]:
        """See ``Engine.encoder_state_shape``."""
        return tuple(self._state.encoder.shape[1:])

    def open_slot(self) -> int:
        """See ``Engine.open_slot``."""
        if not self._free:
            raise ServerUnavailableError(
                f"all {self._sizes.slots} slots are in use; send the request again later, or raise AUTOGAZE_SLOTS"
            )
        return self._free.pop()

    def close_slot(self, slot: int) -> None:
        """See ``Engine.close_slot``."""
        self._table.release(slot)
        self._free.append(slot)

    def can_hold(self, positions: int) -> bool:
        """See ``ResidentEngine.can_hold``."""
        return bool(self._free) and self._table.can_hold(positions)

    def reserve(self, slot: int, end: int) -> None:
        """See ``ResidentEngine.reserve``."""
        self._table.reserve(slot, end)

    def forget(self, slot: int, first: int) -> None:
        """See ``ResidentEngine.forget``; calls take effect in order, so who gets the pages writes to them later."""
        self._table.advance(slot, first)

    def encode_frames(
        self, slots: Integers, frames: Sequence[Any], fresh: NDArray[np.bool_], plans: NDArray[np.int32]
    ) -> None:
        """See ``ResidentEngine.encode_frames``; frames are arrays, or tensors, on the device or not.

        They may also be bytes, uint8 ``[T, H, W, 3 or 4]`` of any size, which become model input on the device.
        """
        time = len(frames[0])
        padded = 1 if time == 1 else self._sizes.window
        most = _ENCODER_BUCKETS[padded][-1]
        with self._queue:
            self._queue.follow()
            for start in range(0, len(slots), most):
                part = slice(start, start + most)
                self._encode_part(slots[part], frames[part], fresh[part], plans[part], padded)

    def open_rows(self, slots: Integers, calls: int = 1) -> None:
        """See ``ResidentEngine.open_rows``."""
        with self._queue:
            self._send_tables()
            self._call("prefill", slots, calls)

    def continue_rows(self, slots: Integers, calls: int = 1) -> None:
        """See ``ResidentEngine.continue_rows``."""
        with self._queue:
            self._call("step", slots, calls)

    def flags(self, rows: int) -> FlagsTicket:
        """See ``ResidentEngine.flags``."""
        if self._kernels:
            return self._work.ring.last(rows, self._queue.settle)
        with self._queue:
            return self._queue.fetch(self._work.flags[:rows], lambda flags: flags.astype(np.bool_))

    def collect(self, slots: Integers, entries: int) -> Ticket:
        """See ``ResidentEngine.collect``."""
        window = self._sizes.window

        def unpack(array: NDArray[np.int32]) -> tuple[Integers, Integers, Floats, Floats]:
            record = array[:, window:].reshape(len(array), 3, entries)
            return (
                array[:, :window].astype(np.int64),
                record[:, 0].astype(np.int64),
                np.ascontiguousarray(record[:, 1]).view(np.float32),
                np.ascontiguousarray(record[:, 2]).view(np.float32),
            )

        with self._queue:
            index = self._send_indices(slots)
            counts = self._state.frame_counts.index_select(0, index)
            record = self._state.record[:, :, :entries].index_select(0, index)
            return self._queue.fetch(torch.cat((counts, record.flatten(1)), dim=1), unpack)

    def run_frames(
        self,
        slots: Integers,
        frames: Sequence[Any],
        fresh: NDArray[np.bool_],
        limits: Sequence[FrameLimits],
        dropped: Integers,
    ) -> list[FrameTokens]:
        """One frame ``[1, 3, side, side]`` of each of several streams, from encoding to tokens.

        Args:
            slots: of the streams; their pages are reserved.
            frames: of each.
            fresh: whether a stream starts with it.
            limits: of each.
            dropped: positions that leave each stream's cache first.
        """
        results: list[FrameTokens] = []
        for start in range(0, len(slots), self._sizes.rows):
            part = slice(start, start + self._sizes.rows)
            results += self._run_part(slots[part], frames[part], fresh[part], limits[part], dropped[part])
        return results

    def _run_part(
        self,
        slots: Integers,
        frames: Sequence[Any],
        fresh: NDArray[np.bool_],
        limits: Sequence[FrameLimits],
        dropped: Integers,
    ) -> list[FrameTokens]:
        size = self._spec.group_size
        groups = [groups_of(self._spec, limit.max_tokens) for limit in limits]
        plans = frame_plans(
            [[limit.max_tokens] for limit in limits], [limit.requirement for limit in limits], dropped
        )
        self.encode_frames(slots, frames, fresh, plans)
        self.open_rows(slots)
        stops = any(limit.requirement is not None for limit in limits)
        ticket: FlagsTicket | None = None
        left = max(groups) - 1
        if not stops and left:
            self.continue_rows(slots, left)
            left = 0
        for _ in range(left):
            # The flags of the call before the last: the device is never waited for while it has nothing to do.
            if ticket is not None and not ticket.wait().any():
                break
            ticket = self.flags(len(slots))
            self.continue_rows(slots)
        counts, ids, confidences, losses = self.collect(slots, max(groups) * size).wait()
        ends = counts[:, 0].tolist()
        return [
            FrameTokens([ids[row, :end]], [confidences[row, :end]], [losses[row, :end]])
            for row, end in enumerate(ends)
        ]

    def encode(self, frames: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        """See ``Engine.encode``."""
        rows = torch.arange(len(frames), device=self._device)
        fresh = torch.full((len(frames),), state is None, device=self._device)
        shape = (len(frames), *self.encoder_state_shape)
        with self._queue, _ExactConvolutions():
            self._queue.follow()
            inputs = torch.as_tensor(frames).to(self._device)
            before = torch.zeros(shape, dtype=self._dtype, device=self._device)
            if state is not None:
                before.copy_(torch.as_tensor(state))
            tokens = torch.empty(
                (*inputs.shape[:2], self._spec.vision_tokens, self._spec.hidden_size),
                dtype=self._dtype,
                device=self._device,
            )
            after = encode(self._spec, self._encoder, inputs, before, rows, fresh, tokens)
            return tokens.float().cpu().numpy(), after.float().cpu().numpy()

    def prefill(
        self,
        slots: Integers,
        vision: Floats,
        pending: Integers,
        pending_count: Integers,
        positions: Integers,
        lengths: Integers,
        limits: Limits,
    ) -> GroupResult:
        """See ``Engine.prefill``."""
        group = np.full((len(slots), self._spec.group_size), self._spec.tokens_per_frame, np.int32)
        for row, count in enumerate(pending_count):
            group[row, :count] = pending[row, :count]
        plans = frame_plans(limits.budget[:, None], limits.requirement)
        with self._queue:
            index = self._place(slots, group, lengths, lengths + pending_count + vision.shape[1])
            self._state.position[index] = self._tensor(positions, torch.int64)
            self._state.vision[index, 0] = self._tensor(vision, self._dtype)
            self._state.plan[index, 0] = self._tensor(plans[:, 0], torch.int32)
            self._state.frame[index] = -1
            self._send_tables()
            self._call("prefill", slots)
            return self._group(len(slots))

    def step(
        self, slots: Integers, group: Integers, positions: Integers, lengths: Integers, limits: Limits
    ) -> GroupResult:
        """See ``Engine.step``."""
        size = self._spec.group_size
        with self._queue:
            index = self._place(slots, group.astype(np.int32), lengths, lengths + size)
            self._state.anchor[index] = self._tensor(positions[:, 0] + size, torch.int64)
            self._state.budget[index] = self._tensor(limits.budget, torch.int32)
            self._state.requirement[index] = self._tensor(limits.requirement, torch.float32)
            self._state.running[index] = 1
            # The host keeps the record of a frame that it drives itself.
            self._state.cursor[index] = 0
            self._send_tables()
            self._call("step", slots)
            return self._group(len(slots))

    def move(self, slot: int, source: Integers, destination: Integers) -> None:
        """See ``Engine.move``."""
        row = self._table.table[slot].astype(np.int64)
        cache = self._state.cache

        def places(positions: Integers) -> tuple[Tensor, Tensor]:
            pages = self._tensor(row[positions // PAGE], torch.int64)
            return pages, self._tensor(positions % PAGE, torch.int64)

        with self._queue:
            self._send_tables()
            (from_page, from_place), (to_page, to_place) = places(source), places(destination)
            cache[:, :, :, to_page, :, to_place] = cache[:, :, :, from_page, :, from_place]

    def close(self) -> None:
        """See ``Engine.close``."""
        if self._queue.is_cuda:
            torch.cuda.synchronize(self._device)
        self._graphs.clear()
        self._encoder_graphs.clear()
        self._state = self._work = self._ops = None  # type: ignore[assignment]

    def _place(self, slots: Integers, group: NDArray[np.int32], lengths: Integers, ends: Integers) -> Tensor:
        """Sets what the host of ``Engine`` calls keeps itself."""
        for slot, end in zip(slots.tolist(), ends.tolist(), strict=True):
            self._table.reserve(slot, end)
        index = self._tensor(slots, torch.int64)
        self._state.group[index] = self._tensor(group, torch.int32)
        self._state.first[index] = 0
        self._state.length[index] = self._tensor(lengths, torch.int64)
        return index

    def _tensor(self, array: NDArray[Any], kind: torch.dtype) -> Tensor:
        return torch.tensor(array, dtype=kind, device=self._device)

    def _group(self, rows: int) -> GroupResult:
        spec, size = self._spec, self._spec.group_size
        call = self._work.call[:rows].cpu().numpy()
        logits = self._work.logits[:rows, : size * spec.vocab_size].cpu().numpy()
        return GroupResult(
            ids=call[:, :size].astype(np.int64),
            count=call[:, 3 * size].astype(np.int64),
            finished=self._work.flags[:rows].cpu().numpy() == 0,
            confidences=np.ascontiguousarray(call[:, size : 2 * size]).view(np.float32),
            losses=np.ascontiguousarray(call[:, 2 * size : 3 * size]).view(np.float32),
            logits=logits.reshape(rows, size, spec.vocab_size).copy(),
        )

    def _call(self, phase: str, slots: Integers, calls: int = 1) -> None:
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

    def _send_indices(self, slots: Integers) -> Tensor:
        staging = self._queue.staging(len(slots), torch.int64)
        staging.numpy()[:] = slots
        index = torch.empty(len(slots), dtype=torch.int64, device=self._device)
        self._queue.send(staging, index)
        return index

    def _send_tables(self) -> None:
        changed = self._table.updates()
        if not len(changed):
            return
        rows = self._table.table[changed]
        staging = self._queue.staging(rows.size, torch.int32)
        staging.numpy()[:] = rows.reshape(-1)
        if len(changed) == 1:
            self._queue.send(staging, self._state.table[int(changed[0])])
            return
        target = torch.empty(rows.shape, dtype=torch.int32, device=self._device)
        self._queue.send(staging, target)
        self._state.table.index_copy_(0, self._send_indices(changed), target)

    def _launch(self, phase: str, rows: int, calls: int = 1) -> None:
        self._work.ring.begin(calls)
        if not self._queue.is_cuda:
            getattr(self._ops, phase)(rows)
            return
        self._graphs[phase, calls, self._bucket_of[rows]].replay()
        self._queue.throttle()

    def _row_buckets(self) -> list[int]:
        smaller = [size for size in _BUCKETS if size < self._sizes.rows]
        return [*smaller, self._sizes.rows]

    def _encode_part(
        self,
        slots: Integers,
        frames: Sequence[Any],
        fresh: NDArray[np.bool_],
        plans: NDArray[np.int32],
        padded: int,
    ) -> None:
        side, time = self._spec.input_size, plans.shape[1]
        if not self._queue.is_cuda:
            batch = torch.empty((len(slots), time, 3, side, side), device=self._device)
            self._fill(batch, frames)
            self._encode_slots(
                torch.as_tensor(slots),
                torch.as_tensor(fresh),
                batch,
                torch.as_tensor(plans, device=self._device),
            )
            return
        bucket = next(size for size in _ENCODER_BUCKETS[padded] if size >= len(slots))
        graph = self._encoder_graphs[padded, bucket]
        header = self._queue.staging(graph.header.numel(), torch.int64)
        indices, planned = header_views(header, bucket, padded)
        array = indices.numpy()
        array[:, : len(slots)] = slots, fresh
        # Rows that fill up the bucket write to the slot that nobody reads.
        array[:, len(slots) :] = [[self._sizes.slots], [0]]
        planned.numpy()[: len(slots), :time] = plans
        self._queue.send(header, graph.header)
        self._fill(graph.frames[: len(slots), :time], frames)
        graph.replay()
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
            uploaded = self.preprocessing.upload([frames[row] for row in rows])
            if len(rows) == len(target) and target.is_contiguous():
                self.preprocessing.clip(uploaded, out=target.flatten(0, 1))
            else:
                made = self.preprocessing.clip(uploaded).unflatten(0, (len(rows), -1))
                target[torch.tensor(rows)] = made

    def _encode_slots(self, slots: Tensor, fresh: Tensor, frames: Tensor, plans: Tensor) -> None:
        """Encodes into the slots' windows, with the plans of their frames; a fresh slot starts a stream."""
        state, time = self._state, plans.shape[1]
        state.plan[:, :time].index_copy_(0, slots, plans)
        state.frame.index_fill_(0, slots, -1)
        with _ExactConvolutions():
            after = encode(self._spec, self._encoder, frames, state.encoder, slots, fresh, state.vision)
        state.encoder.index_copy_(0, slots, after)
        for counter in (state.first, state.length, state.position):
            kept = counter.index_select(0, slots)
            counter.index_copy_(0, slots, torch.where(fresh, torch.zeros_like(kept), kept))
        group = state.group.index_select(0, slots)
        empty = torch.full_like(group, self._spec.tokens_per_frame)
        state.group.index_copy_(0, slots, torch.where(fresh[:, None], empty, group))

    def _capture(self, compiler: KernelCompiler) -> None:
        """Captures every graph, after compiling all kernels side by side."""
        pool = torch.cuda.graph_pool_handle()
        # No row is real until the first request: what calls do leaves no trace.
        self._work.inputs.zero_()
        encoders = self._encoder_buckets()
        self._compile(compiler, encoders)
        self.preprocessing.warm_up((torch.float32,))
        for phase in ("prefill", "step"):
            for bucket in self._row_buckets():
                for calls in (1, BURST) if bucket <= _BURST_ROWS else (1,):
                    run = partial(self._repeat, getattr(self._ops, phase), bucket, calls)
                    self._graphs[phase, calls, bucket] = self._captured(run, pool)
        for key, graph in encoders.items():
            graph.capture(self, pool)
            self._encoder_graphs[key] = graph
        torch.cuda.synchronize(self._device)

    def _compile(self, compiler: KernelCompiler, encoders: dict[tuple[int, int], _EncoderGraph]) -> None:
        """Compiles what any call can launch. The calls themselves say what that is."""
        try:
            with compiler.plan():
                for bucket in self._row_buckets():
                    self._ops.prefill(bucket)
                    self._ops.step(bucket)
                self.preprocessing.warm_up((torch.float32,))
            # The decoder's kernels are being compiled while torch's libraries start up for the encoder.
            with compiler.plan():
                for graph in encoders.values():
                    graph.run(self)
            compiler.finish(self._device)
        finally:
            compiler.close()

    def _encoder_buckets(self) -> dict[tuple[int, int], _EncoderGraph]:
        """The encoder's graphs, not captured yet, by frames of a window and rows."""
        side = self._spec.input_size
        graphs: dict[tuple[int, int], _EncoderGraph] = {}
        for time, buckets in _ENCODER_BUCKETS.items():
            most = min(buckets[-1], max(self._row_buckets()))
            frames = torch.zeros((max(most, buckets[0]), time, 3, side, side), device=self._device)
            header = torch.zeros(header_size(len(frames), time), dtype=torch.int64, device=self._device)
            for bucket in buckets:
                if bucket <= len(frames):
                    graph = _EncoderGraph(frames[:bucket], header[: header_size(bucket, time)])
                    graph.indices.fill_(self._sizes.slots)
                    graphs[time, bucket] = graph
        return graphs

    @staticmethod
    def _repeat(call: Callable[[int], None], rows: int, calls: int) -> None:
        for _ in range(calls):
            call(rows)

    def _captured(self, run: Callable[[], None], pool: Any) -> Any:
        run()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self._queue.stream):
            run()
        return graph


def header_size(rows: int, time: int) -> int:
    """Words of 8 bytes that tell an encoder graph about its rows."""
    return 2 * rows + -(-rows * time * 3 // 2)


def header_views(header: Tensor, rows: int, time: int) -> tuple[Tensor, Tensor]:
    """Slots and freshness int64 ``[2, rows]``, plans int32 ``[rows, time, 3]``."""
    plans = header[2 * rows :].view(torch.int32)[: rows * time * 3]
    return header[: 2 * rows].view(2, rows), plans.view(rows, time, 3)


class _EncoderGraph:
    """The encoder for a bucket of rows, with the buffers that it reads."""

    def __init__(self, frames: Tensor, header: Tensor) -> None:
        self.frames, self.header = frames, header
        self.indices, self._plans = header_views(header, *frames.shape[:2])
        self._graph: Any = None

    def run(self, engine: TorchEngine) -> None:
        """Encodes what the buffers hold, call by call."""
        engine._encode_slots(self.indices[0], self.indices[1] != 0, self.frames, self._plans)

    def capture(self, engine: TorchEngine, pool: Any) -> None:
        """Captures the graph."""
        self._graph = engine._captured(partial(self.run, engine), pool)

    def replay(self) -> None:
        """Encodes what the buffers hold."""
        self._graph.replay()


class _ExactConvolutions:
    """No TF32 inside: float32 stays float32."""

    def __enter__(self) -> None:
        self._before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._before
