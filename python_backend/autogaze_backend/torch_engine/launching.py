"""A call of the engine as a chain of Triton kernels on the shared buffers."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from autogaze_backend.rotary import ROUNDED_POSITIONS
from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.attention_kernels import attention_kernel
from autogaze_backend.torch_engine.flag_ring import CALL_MASK, CALLS
from autogaze_backend.torch_engine.linear_kernels import (
    down_kernel,
    gate_up_kernel,
    heads_kernel,
    out_kernel,
    qkv_kernel,
)
from autogaze_backend.torch_engine.open_kernels import open_frame_kernel, open_step_kernel
from autogaze_backend.torch_engine.pages import PAGE
from autogaze_backend.torch_engine.selection_kernels import select_kernel
from autogaze_backend.torch_engine.state import SlotState, Work
from autogaze_backend.torch_engine.tilings import (
    TILINGS,
    AttentionTiling,
    LinearTiling,
    Tiling,
    size_of,
)
from autogaze_backend.torch_engine.weights import HEAD_COLUMNS, DecoderWeights, LayerWeights

# Whether kernels are launched ahead of the end of the one before, where the device can.
CHAINED = True

# Parts that the keys may be split into; few choices, because each is another kernel to compile.
_SPLITS = (1, 4, 8, 16)


class TritonOps:
    """The two phases. ``rows`` of a call is the size of the batch that the launch covers."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: DecoderWeights,
        state: SlotState,
        work: Work,
        tilings: dict[tuple[bool, str], Tiling] | None = None,
    ) -> None:
        self._spec, self._weights, self._state, self._work = spec, weights, state, work
        self._tilings = tilings or TILINGS
        self._exact = work.query.dtype == torch.float32
        self._parts = 2 if self._exact else 1
        self._record_float = state.record.view(torch.float32)
        self._call_float = work.call.view(torch.float32)
        self._plane = state.cache[0, 0, 0].numel()
        device = work.x.device
        # From compute capability 9 on, a kernel may be launched while the one before it ends.
        self._chained = (
            CHAINED and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        )
        capacity, tickets = self._split_capacity(len(work.slots))
        self._partial = torch.zeros((capacity, spec.hidden_size), device=device)
        self._stats = torch.zeros((capacity, spec.num_heads, 2), device=device)
        self._arrived = torch.zeros(tickets, dtype=torch.int32, device=device)
        self._order = 1

    def prefill(self, rows: int) -> None:
        """Opens a frame on the rows of ``Work.slots`` and chooses its first group."""
        spec, state, work = self._spec, self._state, self._work
        per_row = spec.group_size + spec.vision_tokens
        self._order = self._order_of(rows * per_row)
        tile = 16
        self._launch(
            open_frame_kernel,
            (rows, triton.cdiv(per_row, tile)),
            work.slots,
            state.frame,
            state.plan,
            work.active,
            state.group,
            state.position,
            state.first,
            state.vision,
            self._weights.embed,
            self._weights.angles,
            self._weights.frequency,
            work.x,
            work.cos,
            work.sin,
            work.count,
            work.ring.calls,
            spec.tokens_per_frame,
            WINDOW=state.vision.shape[1],
            PER_ROW=per_row,
            VISION=spec.vision_tokens,
            GROUP=spec.group_size,
            GROUP_PAD=_padded(spec.group_size),
            WIDTH=spec.hidden_size,
            WIDTH_PAD=triton.next_power_of_2(spec.hidden_size),
            HALF=spec.head_dim // 2,
            ROUNDED=ROUNDED_POSITIONS,
            TILE=tile,
        )
        self._layers(rows, per_row)
        self._select(rows, first=True)

    def step(self, rows: int) -> None:
        """Feeds the last group of the rows of ``Work.slots`` whose frame goes on, and chooses the next."""
        spec, state, work = self._spec, self._state, self._work
        self._order = self._order_of(rows * spec.group_size)
        self._launch(
            open_step_kernel,
            (rows,),
            work.slots,
            work.active,
            state.group,
            state.anchor,
            state.running,
            self._weights.embed,
            self._weights.angles,
            self._weights.frequency,
            work.x,
            work.cos,
            work.sin,
            work.count,
            work.ring.calls,
            GROUP=spec.group_size,
            GROUP_PAD=_padded(spec.group_size),
            WIDTH=spec.hidden_size,
            WIDTH_PAD=triton.next_power_of_2(spec.hidden_size),
            HALF=spec.head_dim // 2,
            ROUNDED=ROUNDED_POSITIONS,
        )
        self._layers(rows, spec.group_size)
        self._select(rows, first=False)

    def _launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        options["CHAINED"] = self._order if self._chained else 0
        if self._chained:
            options["launch_pdl"] = True
        kernel[grid](*args, **options)

    def _layers(self, rows: int, per_row: int) -> None:
        spec, state, work = self._spec, self._state, self._work
        tiling = self._tiling(rows * per_row)
        tiles = triton.cdiv(rows * per_row, tiling.tokens)
        for index, layer in enumerate(self._weights.layers):
            last = index == spec.num_layers - 1
            self._launch(
                qkv_kernel,
                (tiles, 3 * spec.num_heads // tiling.qkv.columns),
                work.x,
                layer.input_norm,
                layer.qkv,
                work.cos,
                work.sin,
                work.slots,
                work.active,
                work.count,
                state.length,
                state.table,
                work.query,
                state.cache[index],
                self._plane,
                per_row,
                OPENED=index == 0,
                WIDTH=spec.hidden_size,
                HEADS=spec.num_heads,
                HALF=spec.head_dim // 2,
                PAGE=PAGE,
                MAX_PAGES=state.table.shape[1],
                EPSILON=spec.rms_norm_eps,
                TOKENS=tiling.tokens,
                SHARED=tiling.shared,
                HEADS_AT_ONCE=tiling.qkv.columns,
                PARTS=self._parts,
                num_warps=tiling.qkv.warps,
                num_stages=tiling.stages,
            )
            self._attention(index, rows, per_row, last)
            self._after_attention(layer, rows, per_row, last)

    def _attention(self, index: int, rows: int, per_row: int, last: bool) -> None:
        spec, state, work = self._spec, self._state, self._work
        tiling, tiles, splits = self._attention_tiles(rows, per_row, last)
        self._launch(
            attention_kernel,
            (tiles, rows * spec.num_heads, splits),
            work.query,
            state.cache[index],
            self._plane,
            work.slots,
            work.active,
            work.count,
            state.first,
            state.length,
            state.table,
            work.mixed,
            self._partial,
            self._stats,
            self._arrived,
            rows * (1 if last else per_row),
            per_row,
            LAST=last,
            HEADS=spec.num_heads,
            HEAD=spec.head_dim,
            PAGE=PAGE,
            MAX_PAGES=state.table.shape[1],
            SPLITS=splits,
            ONE_LOOP=splits > 1,
            QUERIES=tiling.queries,
            PAGES=tiling.pages,
            SCALE=spec.head_dim**-0.5 * math.log2(math.e),
            PARTS=self._parts,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )

    def _after_attention(self, layer: LayerWeights, rows: int, per_row: int, last: bool) -> None:
        spec, work = self._spec, self._work
        tokens = rows * (1 if last else per_row)
        tiling = self._tiling(tokens)
        tiles = triton.cdiv(tokens, tiling.tokens)
        y = work.last if last else work.x

        def shape(programs: LinearTiling) -> dict[str, int]:
            return {
                "TOKENS": tiling.tokens,
                "SHARED": tiling.shared,
                "COLUMNS": programs.columns,
                "PARTS": self._parts,
                "num_warps": programs.warps,
                "num_stages": tiling.stages,
            }

        self._launch(
            out_kernel,
            (tiles, spec.hidden_size // tiling.plain.columns),
            work.mixed,
            layer.out,
            work.x,
            y,
            work.active,
            work.count,
            per_row,
            LAST=last,
            WIDTH=spec.hidden_size,
            **shape(tiling.plain),
        )
        per_row = 1 if last else per_row
        inner = {"WIDTH": spec.hidden_size, "INNER": spec.intermediate_size}
        self._launch(
            gate_up_kernel,
            (tiles, spec.intermediate_size // tiling.gate_up.columns),
            y,
            layer.post_norm,
            layer.gate_up,
            work.hidden,
            work.active,
            per_row,
            EPSILON=spec.rms_norm_eps,
            **inner,
            **shape(tiling.gate_up),
        )
        self._launch(
            down_kernel,
            (tiles, spec.hidden_size // tiling.plain.columns),
            work.hidden,
            layer.down,
            y,
            work.active,
            per_row,
            **inner,
            **shape(tiling.plain),
        )

    def _select(self, rows: int, *, first: bool) -> None:
        spec, state, work = self._spec, self._state, self._work
        stride, tokens = self._weights.heads.shape[-1], 16
        self._launch(
            heads_kernel,
            (triton.cdiv(rows, tokens), stride // HEAD_COLUMNS),
            work.last,
            self._weights.heads,
            work.logits,
            work.active,
            WIDTH=spec.hidden_size,
            STRIDE=stride,
            EPSILON=spec.rms_norm_eps,
            TOKENS=tokens,
            SHARED=64,
            COLUMNS=HEAD_COLUMNS,
            num_warps=2,
            num_stages=3,
        )
        self._launch(
            select_kernel,
            (rows,),
            work.slots,
            state.plan,
            work.active,
            work.logits,
            work.count,
            state.group,
            state.position,
            state.anchor,
            state.length,
            state.budget,
            state.requirement,
            state.running,
            state.chosen,
            state.frame,
            state.cursor,
            state.frame_counts,
            state.record,
            self._record_float,
            work.call,
            self._call_float,
            work.flags,
            work.ring.calls,
            work.ring.told,
            len(work.slots),
            spec.tokens_per_frame,
            STRIDE=stride,
            VOCABULARY=spec.vocab_size,
            VOCABULARY_PAD=triton.next_power_of_2(spec.vocab_size),
            GROUP=spec.group_size,
            GROUP_PAD=_padded(spec.group_size),
            RECORD=state.entries,
            WINDOW=state.frame_counts.shape[1],
            CALLS=CALLS,
            CALL_MASK=CALL_MASK,
            FIRST=first,
            num_warps=8,
        )

    @staticmethod
    def _order_of(tokens: int) -> int:
        """When a call's kernels are launched (``chaining.after_previous``)."""
        return 2 if size_of(tokens) == "large" else 1

    def _tiling(self, tokens: int) -> Tiling:
        return self._tilings[self._exact, size_of(tokens)]

    def _attention_tiles(self, rows: int, per_row: int, last: bool) -> tuple[AttentionTiling, int, int]:
        """Shapes of the programs, programs a head, and parts that the keys are split into."""
        call = self._tiling(rows * per_row)
        tiling = call.last if last else call.group if per_row <= call.group.queries else call.frame
        tiles = 1 if last else triton.cdiv(per_row, tiling.queries)
        programs = rows * self._spec.num_heads * tiles
        splits = max(s for s in _SPLITS if s == 1 or (s <= tiling.splits and programs * s <= tiling.programs))
        return tiling, tiles, splits

    def _split_capacity(self, most: int) -> tuple[int, int]:
        """Tokens times parts, and programs that share keys, of the largest split call."""
        spec, capacity, tickets = self._spec, 1, 1
        for rows in range(1, most + 1):
            for per_row in (spec.group_size, spec.group_size + spec.vision_tokens):
                for last in (False, True):
                    _, tiles, splits = self._attention_tiles(rows, per_row, last)
                    if splits > 1:
                        capacity = max(capacity, splits * rows * (1 if last else per_row))
                        tickets = max(tickets, tiles * rows * spec.num_heads)
        return capacity, tickets


def _padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
