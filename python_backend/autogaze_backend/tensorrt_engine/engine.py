"""The engine interface over TensorRT plans: rows of any slots run in the smallest bucket that holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from autogaze_client._errors import InvalidInputError
from numpy.typing import NDArray

from autogaze_backend.engine import Floats, GroupResult, Integers, Limits
from autogaze_backend.graphs import Phase
from autogaze_backend.plans import Bucket, PlanSet
from autogaze_backend.rotary import RotaryTable
from autogaze_backend.spec import ModelSpec
from autogaze_backend.tensorrt_engine.api import TensorRt
from autogaze_backend.tensorrt_engine.cuda import Cuda
from autogaze_backend.tensorrt_engine.graph import PhaseGraph
from autogaze_backend.tensorrt_engine.opening import Grid, cache_dtype, open_graphs, open_plans
from autogaze_backend.tensorrt_engine.pool import Group, SlotPool

# Writes a group's rows into a graph's inputs: the inputs, the rows of the call, their places.
Fill = Callable[[dict[str, NDArray[Any]], Integers, Integers], None]

# How many times the rows that it needs a graph may have before rows are moved: what a resting row costs, against
# the two or three copies of a cache that an exchange of places takes. A prefill pays for 200 tokens a row, a step
# for a few. Estimated, not measured with TensorRT.
SLACK = {Phase.PREFILL: 2, Phase.STEP: 4}


class TensorRtEngine:
    """Runs a set of plans on one GPU.

    Everything is opened here: plans deserialised, memory taken, graphs captured. A call then only copies a few
    kilobytes into pinned memory, launches a graph and reads the record.

    Args:
        spec: the architecture.
        plans: that fit this machine (``plan_selection.select_plans``).
        api: TensorRT.
        cuda: device and stream; closed with the engine.
        max_rows: leaves plans for larger batches closed, which saves their memory; None opens all.
        weights: by name, for plans that were built without.
        reads_logits: whether calls give the logits, which only comparisons need; else they are ``[B, K, 0]``.

    Raises:
        PlanMismatchError: a plan is refused, or a bucket is missing.
        PlanExecutionError: a plan does not run.
        ServerUnavailableError: the GPU has too little memory.
        CudaError: any other failure of CUDA.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plans: PlanSet,
        api: TensorRt,
        cuda: Cuda,
        *,
        max_rows: int | None = None,
        weights: Mapping[str, NDArray[Any]] | None = None,
        reads_logits: bool = False,
    ) -> None:
        self._spec, self._api, self._cuda = spec, api, cuda
        self.reads_logits = reads_logits
        self._graphs: dict[Bucket, PhaseGraph] = {}
        self._rotary = RotaryTable(spec)
        # What each slot may not choose again, kept between the steps of its frame.
        self._chosen: NDArray[np.bool_] = np.zeros((1, spec.vocab_size), np.bool_)
        try:
            cuda.use()
            self._grid = Grid.of(plans, max_rows)
            opened = open_plans(api, plans, spec, self._grid, weights)
            self._pool = SlotPool(
                cuda,
                spec,
                cache_dtype(opened, spec),
                self._grid.rows,
                self._grid.lengths,
                plans.build_command,
            )
            self._graphs = open_graphs(api, cuda, self._pool, spec, opened)
            opened.clear()
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> ModelSpec:
        """The architecture it runs."""
        return self._spec

    @property
    def preferred_rows(self) -> int:
        """Those of the largest bucket."""
        return self._grid.rows[-1]

    @property
    def max_slots(self) -> int | None:
        """None: slots without a place in the buckets' memory are parked in memory of their own."""
        return None

    @property
    def encoder_state_shape(self) -> tuple[int, ...]:
        """See ``Engine.encoder_state_shape``."""
        spec = self._spec
        grid = spec.vision_grid
        return (spec.encoder_depth, spec.temporal_kernel - 1, spec.hidden_size, grid, grid)

    @property
    def fallbacks(self) -> dict[str, str]:
        """The plans that run without a CUDA graph, and why."""
        return {
            graph.plan.name: graph.fallback for graph in self._graphs.values() if graph.fallback is not None
        }

    def encode(self, frames: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        """See ``Engine.encode``."""
        self._cuda.use()
        batch, time = frames.shape[:2]
        tokens = np.empty((batch, time, self._spec.vision_tokens, self._spec.hidden_size), np.float32)
        if state is None:
            state = np.zeros((batch, *self.encoder_state_shape), np.float32)
        new_state = np.empty((batch, *self.encoder_state_shape), np.float32)
        most = self._grid.encoder_rows[-1]
        for start in range(0, batch, most):
            rows = slice(start, min(start + most, batch))
            here = state[rows]
            bucket_rows = next(count for count in self._grid.encoder_rows if count >= len(here))
            done = 0
            while done < time:
                # Padding in time would end up in the state, so pieces fit exactly.
                count = max(size for size in self._grid.frames if size <= time - done)
                graph = self._graphs[Bucket(Phase.ENCODER, bucket_rows, count)]
                piece = slice(done, done + count)
                tokens[rows, piece], here = self._encode_piece(graph, frames[rows, piece], here)
                done += count
            new_state[rows] = here
        return tokens, new_state

    def open_slot(self) -> int:
        """See ``Engine.open_slot``."""
        slot = self._pool.open()
        if slot >= len(self._chosen):
            self._chosen = np.concatenate([self._chosen, np.zeros_like(self._chosen)])
        return slot

    def close_slot(self, slot: int) -> None:
        """See ``Engine.close_slot``."""
        self._pool.close(slot)

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
        spec = self._spec
        bucket = Bucket(Phase.PREFILL, self._grid.rows[0], self._grid.lengths[0])
        room = self._graphs[bucket].inputs["pending"].shape[1]
        if pending.shape[1] > room:
            raise InvalidInputError(f"{pending.shape[1]} ids are left over, but plans take {room} at most")
        tokens = np.arange(room + spec.vision_tokens)
        counts = pending_count[:, None]
        # A row's real tokens come first: its left-over ids, the vision tokens, then what fills up.
        order = np.where(
            tokens < counts,
            tokens,
            np.where(
                tokens < counts + spec.vision_tokens, tokens + room - counts, tokens - spec.vision_tokens
            ),
        )
        cos, sin = self._rotary(positions[:, None] + tokens)

        def fill(inputs: dict[str, NDArray[Any]], rows: Integers, places: Integers) -> None:
            inputs["vision"][places] = vision[rows]
            inputs["pending"][places, : pending.shape[1]] = pending[rows]
            inputs["order"][places] = order[rows]
            inputs["last"][places] = pending_count[rows] + spec.vision_tokens - 1
            inputs["cos"][places], inputs["sin"][places] = cos[rows], sin[rows]

        fed = pending_count + spec.vision_tokens
        return self._run(Phase.PREFILL, slots, lengths, len(tokens), fed, limits, fill)

    def step(
        self, slots: Integers, group: Integers, positions: Integers, lengths: Integers, limits: Limits
    ) -> GroupResult:
        """See ``Engine.step``."""
        cos, sin = self._rotary(positions)

        def fill(inputs: dict[str, NDArray[Any]], rows: Integers, places: Integers) -> None:
            inputs["group"][places] = group[rows]
            inputs["chosen"][places] = self._chosen[slots[rows]]
            inputs["cos"][places], inputs["sin"][places] = cos[rows], sin[rows]

        size = group.shape[1]
        fed = np.full(len(slots), size, np.int64)
        return self._run(Phase.STEP, slots, lengths, size, fed, limits, fill)

    def move(self, slot: int, source: Integers, destination: Integers) -> None:
        """See ``Engine.move``."""
        self._cuda.use()
        self._pool.move(slot, source, destination)

    def close(self) -> None:
        """See ``Engine.close``."""
        for graph in self._graphs.values():
            graph.release()
        self._graphs.clear()
        self._api.close()
        self._cuda.close()

    def _encode_piece(self, graph: PhaseGraph, frames: Floats, state: Floats) -> tuple[Floats, Floats]:
        rows = len(frames)
        graph.inputs["frames"][:rows] = frames
        graph.inputs["state"][:rows] = state
        graph.queue()
        self._cuda.synchronize()
        # Copies: the record is written again by the next call.
        tokens, new_state = graph.outputs["tokens"], graph.outputs["new_state"]
        return tokens[:rows].astype(np.float32), new_state[:rows].astype(np.float32)

    def _run(
        self,
        phase: Phase,
        slots: Integers,
        lengths: Integers,
        tokens: int,
        fed: Integers,
        limits: Limits,
        fill: Fill,
    ) -> GroupResult:
        """Runs rows in as few launches as their cache lengths allow, and reads the records once all are queued."""
        self._cuda.use()
        ids = slots.tolist()
        result = self._empty(len(ids))
        queued: list[tuple[PhaseGraph, Group, Integers]] = []
        settled = self._pool.settled(ids, lengths, tokens, SLACK[phase])
        for group in self._pool.group(ids, lengths, tokens) if settled is None else [settled[0]]:
            if settled is None:
                count, places = self._pool.arrange(group, ids, lengths, tokens, SLACK[phase])
            else:
                _, count, places = settled
            graph = self._graphs[Bucket(phase, count, group.length)]
            if any(other is graph for other, _, _ in queued):
                # Its memory is in use until then.
                self._collect(queued, slots, result)
            self._write(graph.inputs, group, places, limits)
            fill(graph.inputs, group.members, places)
            graph.queue()
            if self.reads_logits:
                graph.download_rest()
            self._pool.written(group, places, (lengths + fed)[group.members])
            queued.append((graph, group, places))
        self._collect(queued, slots, result)
        return result

    def _write(self, inputs: dict[str, NDArray[Any]], group: Group, places: Integers, limits: Limits) -> None:
        """What every phase takes; rows that rest or do not exist may choose nothing and write behind their end."""
        inputs["write_index"][:] = self._pool.arenas[group.length].lengths[: len(inputs["write_index"])]
        inputs["budget"][:] = 0
        inputs["budget"][places] = limits.budget[group.members]
        inputs["requirement"][:] = np.nan
        inputs["requirement"][places] = limits.requirement[group.members]

    def _collect(
        self, queued: list[tuple[PhaseGraph, Group, Integers]], slots: Integers, result: GroupResult
    ) -> None:
        self._cuda.synchronize()
        for graph, group, places in queued:
            rows, record = group.members, graph.outputs
            for name in ("ids", "count", "finished", "confidences", "losses"):
                getattr(result, name)[rows] = record[name][places]
            if self.reads_logits:
                result.logits[rows] = record["logits"][places]
            self._chosen[slots[rows]] = record["new_chosen"][places]
        queued.clear()

    def _empty(self, rows: int) -> GroupResult:
        spec = self._spec
        size = spec.group_size
        return GroupResult(
            np.empty((rows, size), np.int64),
            np.empty(rows, np.int64),
            np.empty(rows, np.bool_),
            np.empty((rows, size), np.float32),
            np.empty((rows, size), np.float32),
            np.empty((rows, size, spec.vocab_size if self.reads_logits else 0), np.float32),
        )
