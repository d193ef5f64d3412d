"""What every slot carries on the device, and the buffers that a call works in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.flag_ring import FlagRing
from autogaze_backend.torch_engine.pages import PAGE


@dataclass(frozen=True)
class Sizes:
    """How much an engine holds.

    Attributes:
        slots: rows that can be open at once.
        rows: the most rows of one call.
        pages: cache pages of all slots.
        max_pages: cache pages of one slot.
        window: frames whose vision tokens and choices a slot keeps.
    """

    slots: int
    rows: int
    pages: int
    max_pages: int
    window: int


class SlotState:
    """Tensors with one entry a slot; the last entry belongs to rows that only fill up a batch.

    Attributes:
        first: int64, position in the cache of the oldest token.
        length: int64, position in the cache after the newest.
        position: int64, valid tokens since the stream began.
        anchor: int64, position after the frame's last vision token.
        group: int32 ``[K]``, the ids chosen last.
        chosen: int8 ``[V]``, ids that this frame may not choose again.
        budget: int32, tokens that the frame may still take.
        requirement: float32, the loss that stops the frame.
        running: int32, whether the frame goes on.
        plan: int32 ``[window, 3]``: of each frame its budget, the bits of its requirement, and the positions that leave
            the cache before it.
        frame: int32, the place in the window of the frame that was opened last; -1 before the first.
        cursor: int32, entries of the record that are filled.
        frame_counts: int32 ``[window]``, entries of each frame.
        record: int32 ``[3, entries]``: ids; confidences and losses as bits of float32.
        table: int32 ``[max_pages]``.
        vision: ``[window, grid², C]``.
        encoder: ``[depth, kernel_t - 1, grid², C]``, each block's inputs of the frames before.
        cache: ``[layers, 2, parts, pages, heads, PAGE, head_dim]``, of all slots; two float16 parts for the
            kernels where the arithmetic is float32 (``halves.py``).
    """

    def __init__(
        self, spec: ModelSpec, sizes: Sizes, device: torch.device, dtype: torch.dtype, *, halves: bool
    ) -> None:
        slots, groups = sizes.slots + 1, -(-spec.tokens_per_frame // spec.group_size)
        self.entries = sizes.window * groups * spec.group_size

        def integers(*shape: int, kind: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=kind, device=device)

        self.first = integers(slots, kind=torch.int64)
        self.length = integers(slots, kind=torch.int64)
        self.position = integers(slots, kind=torch.int64)
        self.anchor = integers(slots, kind=torch.int64)
        self.group = torch.full(
            (slots, spec.group_size), spec.tokens_per_frame, dtype=torch.int32, device=device
        )
        self.chosen = integers(slots, spec.vocab_size, kind=torch.int8)
        self.budget = integers(slots)
        self.requirement = torch.full((slots,), float("nan"), device=device)
        self.running = integers(slots)
        self.plan = integers(slots, sizes.window, 3)
        self.frame = integers(slots)
        self.cursor = integers(slots)
        self.frame_counts = integers(slots, sizes.window)
        self.record = integers(slots, 3, self.entries)
        self.table = integers(slots, sizes.max_pages)
        width = spec.hidden_size
        self.vision = torch.zeros(
            (slots, sizes.window, spec.vision_tokens, width), dtype=dtype, device=device
        )
        self.encoder = torch.zeros(
            (slots, spec.encoder_depth, spec.temporal_kernel - 1, spec.vision_tokens, width),
            dtype=dtype,
            device=device,
        )
        # Zeros: what lies beyond a row's length is masked, but must be finite.
        parts = 2 if halves and dtype == torch.float32 else 1
        self.cache = torch.zeros(
            (spec.num_layers, 2, parts, sizes.pages, spec.num_heads, PAGE, spec.head_dim),
            dtype=torch.float16 if halves else dtype,
            device=device,
        )


# Integers before the slots in the packed inputs of a call, so that what follows stays aligned.
_HEADER = 16


class Work:
    """Buffers of one call; calls take turns, so all share them.

    Attributes:
        inputs: int32, what the host sends for a call; the next two are views of it.
        active: int32 ``[1]``, real rows of the call.
        slots: int32 ``[rows]``.
        count: int32 ``[rows]``, tokens that each row feeds.
        call: int32 ``[rows, 3K + 1]``: ids, bits of confidences and of losses, slots of the group.
        flags: int32 ``[rows]``, whether the row's frame goes on.
        ring: the same, where the host sees it.
        x: float32 ``[tokens, C]``, the residual.
        mixed: likewise, what attention found.
        last: float32 ``[rows, C]``, that of the read-out tokens in the last layer.
        logits: float32 ``[rows, stride]``: K·V logits, K losses.
    """

    def __init__(
        self, spec: ModelSpec, sizes: Sizes, stride: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        rows, width = sizes.rows, spec.hidden_size
        tokens = rows * (spec.group_size + spec.vision_tokens)

        def zeros(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=kind, device=device)

        self.inputs = zeros(_HEADER + rows, kind=torch.int32)
        self.active = self.inputs[:1]
        self.slots = self.inputs[_HEADER:]
        self.count = zeros(rows, kind=torch.int32)
        self.call = zeros(rows, 3 * spec.group_size + 1, kind=torch.int32)
        self.flags = zeros(rows, kind=torch.int32)
        self.ring = FlagRing(rows, device)
        self.x = zeros(tokens, width)
        self.last = zeros(rows, width)
        self.cos, self.sin = (zeros(tokens, spec.head_dim // 2) for _ in range(2))
        self.query = zeros(tokens, width, kind=dtype)
        self.mixed = zeros(tokens, width)
        self.hidden = zeros(tokens, spec.intermediate_size, kind=dtype)
        self.logits = zeros(rows, stride)


def pack_inputs(into: NDArray[np.int32], slots: NDArray[np.int64]) -> None:
    """Fills the host's copy of ``Work.inputs``."""
    into[0] = len(slots)
    into[_HEADER : _HEADER + len(slots)] = slots
