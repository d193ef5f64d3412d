"""Device memory: what a model, a clip's row and a stream take, and whether a warm model allocates anything."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Any

from autogaze_backend import GazeModel

from benchmarks.gpu.context import Context, batch_of, random_clips, random_pixels
from benchmarks.gpu.floor import clip_floor
from benchmarks.gpu.streams import open_streams, step_all
from benchmarks.gpu.throughput import run_rows

_MIB = 2**20
# Of torch's caching allocator: requests to it, blocks that it took from the driver, and flushes.
_COUNTERS = ("allocation.all.allocated", "segment.all.allocated", "num_alloc_retries")


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One precision after the other; what the first holds is not counted for the second."""
    schedule = context.schedule()
    floats = list(random_clips(min(8, max(context.sizes.batches)), context.sizes.frames))
    for precision in context.settings.precisions:
        if context.cut(precision):
            continue
        before = used(context)
        try:
            model = context.model(precision)
        except Exception as error:
            context.notes[precision] = f"{type(error).__name__}: {error}"
            continue
        loaded = used(context)
        yield {"precision": precision, "what": "model loaded", "MiB": (loaded - before) / _MIB}
        yield from _cache(precision, model, schedule)
        run_rows(model, floats, 1, schedule)
        one = used(context)
        yield {"precision": precision, "what": "after one clip", "MiB": (one - before) / _MIB}
        yield from _steady(context, precision, model, floats)
        if (count := max(context.sizes.streams)) > 1:
            yield _streams(context, precision, model, count)
        if (count := max(context.sizes.batches)) > 1:
            start = used(context)
            run_rows(model, floats, count, schedule)
            grown = used(context) - start
            what = f"{count} clips at once, more than before"
            yield {
                "precision": precision,
                "what": what,
                "MiB": grown / _MIB,
                "KiB each": grown / 1024 / count,
            }


def _cache(precision: str, model: GazeModel, schedule: list[int]) -> Iterator[dict[str, Any]]:
    """Keys and values by their count, for engines that take the whole cache at the start."""
    number = 2 if precision == "fast" else 4
    kinds = {
        "cache of a clip's row, by count": clip_floor(model.spec, schedule).positions,
        "cache of a stream, 16 frames of 10 tokens, by count": clip_floor(model.spec, [10] * 16).positions,
    }
    for what, positions in kinds.items():
        size = positions * clip_floor(model.spec, schedule).cache * number
        yield {"precision": precision, "what": what, "MiB": size / _MIB, "KiB each": size / 1024}


def _steady(
    context: Context, precision: str, model: GazeModel, floats: list[Any]
) -> Iterator[dict[str, Any]]:
    """Allocations over clips of different content after a warm-up."""
    schedule = context.schedule()
    clips = batch_of(floats, context.sizes.steady_clips)
    for clip in clips[:3]:
        run_rows(model, [clip], 1, schedule)
    before, memory = _counters(context), used(context)
    for clip in clips:
        run_rows(model, [clip], 1, schedule)
    after = _counters(context)
    row: dict[str, Any] = {
        "precision": precision,
        "what": f"{len(clips)} more clips, one by one",
        "MiB": (used(context) - memory) / _MIB,
    }
    yield row | {name: after[name] - before[name] for name in after}


def _streams(context: Context, precision: str, model: GazeModel, count: int) -> dict[str, Any]:
    """A full horizon of every stream."""
    before = used(context)
    with open_streams(model, count) as streams:
        frames = random_pixels(16, 7000)
        for frame in frames:
            step_all(model, streams, [frame[None]] * count, {"max_gaze_tokens_each_frame": 10})
        grown = used(context) - before
    return {
        "precision": precision,
        "what": f"{count} streams with a full horizon, more than before",
        "MiB": grown / _MIB,
        "KiB each": grown / 1024 / count,
    }


def used(context: Context) -> int:
    """Bytes in use on the device, by the driver's count; on a CPU the peak of this process."""
    if not context.on_gpu:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torch

    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _counters(context: Context) -> dict[str, int]:
    if not context.on_gpu:
        return {}
    import torch

    stats = torch.cuda.memory_stats()
    return {name: int(stats.get(name, 0)) for name in _COUNTERS}
