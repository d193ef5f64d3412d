"""Turns plan files into graphs that are ready to run: deserialise, check, share scratch, bind, capture."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from autogaze_client._errors import PlanMismatchError
from numpy.typing import NDArray

from autogaze_backend.graphs import Phase, cache_names, signature
from autogaze_backend.plans import Bucket, Plan, PlanSet
from autogaze_backend.spec import ModelSpec
from autogaze_backend.tensorrt_engine.api import Binding, TensorRt
from autogaze_backend.tensorrt_engine.cuda import Cuda
from autogaze_backend.tensorrt_engine.graph import OpenedPlan, PhaseGraph
from autogaze_backend.tensorrt_engine.pool import SlotPool

_LOG = logging.getLogger("autogaze.tensorrt")

# What the host reads of a decoder's call, in the order of the record; logits only where they are asked for.
RECORD = ("ids", "count", "finished", "confidences", "losses", "new_chosen", "logits")
LAST = "new_chosen"


@dataclass(frozen=True)
class Grid:
    """The buckets that a set of plans has in full.

    Attributes:
        rows: of prefill and step, ascending.
        lengths: of their caches, ascending.
        encoder_rows: ascending.
        frames: of an encoder's call, ascending, the first of them 1.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    encoder_rows: tuple[int, ...]
    frames: tuple[int, ...]

    @classmethod
    def of(cls, plans: PlanSet, max_rows: int | None = None) -> Grid:
        """The grid of a set.

        Args:
            plans: the set.
            max_rows: leaves larger batches out, which saves their memory; None takes all.

        Raises:
            PlanMismatchError: a bucket that the executor needs is missing.
        """
        decoder = [b for b in plans.plans if b.phase is not Phase.ENCODER]
        encoder = [b for b in plans.plans if b.phase is Phase.ENCODER]
        grid = cls(
            _fitting({b.rows for b in decoder}, max_rows, plans),
            tuple(sorted({b.length for b in decoder})),
            _fitting({b.rows for b in encoder}, max_rows, plans),
            tuple(sorted({b.length for b in encoder} | {1})),
        )
        missing = [bucket for bucket in grid.buckets if bucket not in plans.plans]
        if missing:
            first = missing[0]
            what = "frames" if first.phase is Phase.ENCODER else "cache positions"
            option = "--frame-buckets" if first.phase is Phase.ENCODER else "--length-buckets"
            raise PlanMismatchError(
                f"{plans.path} lacks the {first.phase.value} plan of {first.rows} rows and {first.length} {what} "
                f"({len(missing)} plans are missing); build them with `{plans.build_command} --batch-buckets "
                f"{_joined(grid.rows)} {option} "
                f"{_joined(grid.frames if first.phase is Phase.ENCODER else grid.lengths)}`"
            )
        return grid

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Every bucket that is opened."""
        encoder = [
            Bucket(Phase.ENCODER, rows, frames) for rows in self.encoder_rows for frames in self.frames
        ]
        decoder = [
            Bucket(phase, rows, length)
            for phase in (Phase.PREFILL, Phase.STEP)
            for rows in self.rows
            for length in self.lengths
        ]
        return (*encoder, *decoder)


def open_plans(
    api: TensorRt,
    plans: PlanSet,
    spec: ModelSpec,
    grid: Grid,
    weights: Mapping[str, NDArray[Any]] | None = None,
) -> dict[Bucket, OpenedPlan]:
    """Deserialises every plan of the grid and checks its tensors.

    Args:
        api: TensorRT.
        plans: where they are.
        spec: the architecture.
        grid: which of them.
        weights: by name, for plans without weights.

    Raises:
        PlanMismatchError: TensorRT refuses a plan, or its tensors are not those that are expected.
    """
    opened = {}
    for bucket in grid.buckets:
        plan = plans.plans[bucket]
        path = plans.file(plan)
        remedy = f"build it again with `{plans.build_command}`"
        engine = api.deserialize(path.read_bytes(), str(path), remedy)
        if plans.stripped:
            api.refit(engine, weights or {}, str(path))
        bindings = api.bindings(engine, plan.file)
        check_bindings(plan, bindings, spec, remedy)
        opened[bucket] = OpenedPlan(plan.file, engine, bindings, api.scratch_size(engine))
    return opened


def open_graphs(
    api: TensorRt, cuda: Cuda, pool: SlotPool, spec: ModelSpec, opened: Mapping[Bucket, OpenedPlan]
) -> dict[Bucket, PhaseGraph]:
    """Binds and captures every plan. The graphs share their scratch memory: they run one after another."""
    size = max(plan.scratch for plan in opened.values())
    scratch = (cuda.allocate(size) if size else 0, size)
    graphs = {}
    for bucket, plan in opened.items():
        encoder = bucket.phase is Phase.ENCODER
        graph = PhaseGraph(
            api,
            cuda,
            plan,
            scratch=scratch,
            caches={} if encoder else pool.arenas[bucket.length].addresses,
            outputs=signature(spec, bucket.phase).outputs if encoder else RECORD,
            last=None if encoder else LAST,
        )
        graph.prepare()
        graphs[bucket] = graph
    plain = sum(graph.fallback is not None for graph in graphs.values())
    _LOG.info("%d plans ready, %d as CUDA graphs", len(graphs), len(graphs) - plain)
    return graphs


def cache_dtype(opened: Mapping[Bucket, OpenedPlan], spec: ModelSpec) -> np.dtype[Any]:
    """The type of keys and values, one in all plans.

    Raises:
        PlanMismatchError: they differ.
    """
    names = cache_names(spec)
    found = {binding.dtype for plan in opened.values() for binding in plan.bindings if binding.name in names}
    if len(found) != 1:
        raise PlanMismatchError(f"the plans' caches are of types {sorted(map(str, found))}; build them again")
    return found.pop()


def check_bindings(plan: Plan, bindings: Sequence[Binding], spec: ModelSpec, remedy: str) -> None:
    """Checks that an engine's tensors are those of its phase and bucket, and those that its manifest lists.

    Raises:
        PlanMismatchError: a name, shape or type differs.
    """
    names = signature(spec, plan.bucket.phase)
    for kind, expected, found in (
        ("inputs", names.inputs, [b for b in bindings if b.is_input]),
        ("outputs", names.outputs, [b for b in bindings if not b.is_input]),
    ):
        here = {binding.name for binding in found}
        if here != set(expected):
            unknown, missing = sorted(here - set(expected)), sorted(set(expected) - here)
            raise PlanMismatchError(
                f"{plan.file} has {kind} that this version does not know ({', '.join(unknown) or 'none'}) or "
                f"lacks some ({', '.join(missing) or 'none'}); {remedy}"
            )
    shapes = {binding.name: binding.shape for binding in bindings}
    for name, axis, size in _sizes(spec, plan.bucket):
        shape = shapes[name]
        if len(shape) <= axis or shape[axis] != size:
            raise PlanMismatchError(
                f"{name} of {plan.file} has the shape {list(shape)}, but its manifest says {plan.bucket.rows} rows and "
                f"length {plan.bucket.length}; {remedy}"
            )
    listed = {tensor.name: (tensor.shape, np.dtype(tensor.dtype)) for tensor in plan.tensors}
    for binding in bindings:
        recorded = listed.get(binding.name, (binding.shape, binding.dtype))
        if recorded != (binding.shape, binding.dtype):
            raise PlanMismatchError(
                f"{binding.name} of {plan.file} is {binding.dtype} {list(binding.shape)}, but its manifest says "
                f"{recorded[1]} {list(recorded[0])}; {remedy}"
            )


def _sizes(spec: ModelSpec, bucket: Bucket) -> list[tuple[str, int, int]]:
    """What the manifest says of shapes: tensor, axis and size."""
    if bucket.phase is Phase.ENCODER:
        return [("frames", 0, bucket.rows), ("frames", 1, bucket.length), ("state", 0, bucket.rows)]
    caches = cache_names(spec)
    return [
        ("write_index", 0, bucket.rows),
        *((name, 0, bucket.rows) for name in caches),
        *((name, 2, bucket.length) for name in caches),
    ]


def _fitting(rows: set[int], most: int | None, plans: PlanSet) -> tuple[int, ...]:
    fitting = tuple(sorted(count for count in rows if most is None or count <= most))
    if not fitting:
        found = _joined(tuple(sorted(rows))) or "none"
        raise PlanMismatchError(
            f"no plan of {plans.path} has at most {most} rows (built: {found}); raise AUTOGAZE_MAX_ROWS, or build with "
            f"`{plans.build_command} --batch-buckets 1`"
        )
    return fitting


def _joined(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
