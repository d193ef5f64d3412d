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
from autogaze_backend.resident import FlagsTicket, frame_plans, groups_of
from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.call_graphs import CallGraphs, DecoderOps
from autogaze_backend.torch_engine.device_queue import DeviceQueue, Ticket
from autogaze_backend.torch_engine.encoder import EncoderSteps, TorchSteps, encode
from autogaze_backend.torch_engine.frame_encoder import ExactConvolutions, FrameEncoder
from autogaze_backend.torch_engine.opening import TorchSettings, cache_pages, open_device
from autogaze_backend.torch_engine.pages import PAGE, PageTable
from autogaze_backend.torch_engine.preprocessing import DevicePreprocessing
from autogaze_backend.torch_engine.reference import ReferenceOps
from autogaze_backend.torch_engine.state import Sizes, SlotState, Work
from autogaze_backend.torch_engine.tilings import check_architecture
from autogaze_backend.torch_engine.waiting import Waiting
from autogaze_backend.torch_engine.weights import decoder_weights, encoder_weights, precision_dtype

if TYPE_CHECKING:
    from autogaze_backend.torch_engine.compiling import KernelCompiler

# Frames of a slot that are encoded at once.
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
            InvalidInputError: there is no such device, the bundle has another precision, or its architecture does not
                fit the kernels.
            ServerUnavailableError: the device's memory is too small for the settings.
        """
        self._device = open_device(device)
        settings = settings or TorchSettings.from_environment(self._device)
        self._spec = spec = bundle.spec
        self._dtype = precision_dtype(bundle.precision)
        self._queue = DeviceQueue(self._device, Waiting(settings.awake_ms / 1e3))
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
        if kernels:
            check_architecture(spec)
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
        ops: DecoderOps
        self._encoder: EncoderSteps
        if kernels:
            from autogaze_backend.torch_engine.encoder_launching import TritonSteps
            from autogaze_backend.torch_engine.launching import TritonOps

            ops = TritonOps(spec, decoder, self._state, self._work)
            self._encoder = TritonSteps(spec, encoder)
        else:
            ops = ReferenceOps(spec, decoder, self._state, self._work)
            self._encoder = TorchSteps(spec, encoder)
        self.preprocessing = DevicePreprocessing(bundle.preprocessing, spec.input_size, self._device)
        self._table = PageTable(self._sizes.slots, pages, self._sizes.max_pages)
        self._free = list(range(self._sizes.slots - 1, -1, -1))
        self._calls = CallGraphs(ops, self._work, self._sizes.rows, self._queue)
        self._frames = FrameEncoder(
            spec, self._encoder, self._state, self._sizes, self._queue, self.preprocessing
        )
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
        with self._queue:
            self._queue.follow()
            self._frames.encode(slots, frames, fresh, plans)

    def open_rows(self, slots: Integers, calls: int = 1) -> None:
        """See ``ResidentEngine.open_rows``."""
        with self._queue:
            self._send_tables()
            self._calls.call("prefill", slots, calls)

    def continue_rows(self, slots: Integers, calls: int = 1) -> None:
        """See ``ResidentEngine.continue_rows``."""
        with self._queue:
            self._calls.call("step", slots, calls)

    def flags(self, rows: int) -> FlagsTicket:
        """See ``ResidentEngine.flags``."""
        if self._kernels:
            return self._work.ring.last(rows, self._queue)
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
        with self._queue, ExactConvolutions():
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
            self._calls.call("prefill", slots)
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
            self._calls.call("step", slots)
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
        self._calls.close()
        self._frames.close()
        self._state = self._work = self._calls = self._frames = None  # type: ignore[assignment]

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

    def _capture(self, compiler: KernelCompiler) -> None:
        """Captures every graph, after compiling all kernels side by side."""
        self._queue.follow()
        self._compile(compiler)
        self.preprocessing.warm_up((torch.float32,))
        captured = partial(self._captured, torch.cuda.graph_pool_handle())
        self._calls.capture(captured)
        self._frames.capture(captured)
        torch.cuda.synchronize(self._device)

    def _compile(self, compiler: KernelCompiler) -> None:
        """Compiles what any call can launch. The calls themselves say what that is."""
        try:
            with compiler.plan():
                self._calls.run()
                self.preprocessing.warm_up((torch.float32,))
            # The decoder's kernels are being compiled while torch's libraries start up for the encoder.
            with compiler.plan():
                self._frames.run()
            # A device without a number is the current one, and that is a thread's own.
            compiler.finish(self._queue.stream.device if self._queue.is_cuda else None)
        finally:
            compiler.close()

    def _captured(self, pool: Any, run: Callable[[], None]) -> Any:
        run()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self._queue.stream):
            run()
        return graph
