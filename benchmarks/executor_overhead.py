"""What the TensorRT executor itself costs on a GPU: a step around its graph, and moving rows.

Torch's kernels stand in for plans, so the graphs' own times say nothing of TensorRT; host time and copies do.
Run from the root: ``PYTHONPATH=tests python -m benchmarks.executor_overhead`` (needs a GPU, torch, cuda-python).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from autogaze_backend.bundle import Bundle
from autogaze_backend.engine import Limits
from autogaze_backend.graphs import Phase
from autogaze_backend.plans import Bucket, EngineKind
from autogaze_backend.tensorrt_engine import TensorRtEngine
from autogaze_backend.tensorrt_engine.api import TensorRt
from autogaze_backend.tensorrt_engine.cuda import Cuda
from autogaze_export import build

LENGTH = 4096
ROWS = (1, 16)


def median_us(run: Callable[[], object], repeats: int = 300) -> float:
    """Median of the later nine tenths."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e6)
    return round(statistics.median(times[repeats // 10 :]), 1)


def main() -> None:
    """Prints one JSON object."""
    from backend.tensorrt_doubles import write_plans
    from gpu.torch_plans import TorchTensorRt

    folder = Path(tempfile.mkdtemp())
    bundle = build("open", folder / "bundle")
    plans = write_plans(bundle, folder / "plans", rows=ROWS, lengths=(LENGTH,), frames=(1,))
    spec, cuda = Bundle.load(bundle).spec, Cuda(0)
    engine = TensorRtEngine(spec, plans, TensorRt(EngineKind.TENSORRT, TorchTensorRt()), cuda)
    slots = np.array([engine.open_slot() for _ in range(ROWS[-1])])
    random = np.random.default_rng(0)
    report: dict[str, object] = {"length": LENGTH, "bytes_a_row": LENGTH * 6144}
    for rows in ROWS:
        here, zero = slots[:rows], np.zeros(rows, np.int64)
        limits = Limits(zero + 100, np.full(rows, np.nan, np.float32))
        vision = random.normal(size=(rows, spec.vision_tokens, spec.hidden_size)).astype(np.float32)
        pending = np.zeros((rows, 0), np.int64)
        group = engine.prefill(here, vision, pending, zero, zero, zero, limits).ids
        length = zero + spec.vision_tokens
        positions = length[:, None] + np.arange(-spec.group_size, 0)
        graph = engine._graphs[Bucket(Phase.STEP, rows, LENGTH)]

        def bare(graph=graph) -> None:
            graph.queue()
            cuda.synchronize()

        def step(here=here, group=group, positions=positions, length=length, limits=limits) -> None:
            engine.step(here, group, positions, length, limits)

        graph_us, step_us = median_us(bare), median_us(step)
        report[f"rows_{rows}"] = {"graph_us": graph_us, "step_us": step_us, "host_us": step_us - graph_us}
    pool = engine._pool
    arena = pool.arenas[LENGTH]
    place = pool._places[0]
    assert place is not None
    for positions_moved in (400, 4096):

        def queue_only(count: int = positions_moved) -> None:
            pool._copy(arena.slab(1), place.slab(), count, place)

        def whole(count: int = positions_moved) -> None:
            queue_only(count)
            cuda.synchronize()

        report[f"move_{positions_moved}"] = {
            "queue_us": median_us(queue_only, 60),
            "whole_us": (cuda.synchronize(), median_us(whole, 60))[1],
        }
    engine.close()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
