"""Where the time of a clip, and of many at once, goes on a GPU: kernels, the gaps between them, and the host."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.context import Context, random_clips
from benchmarks.gpu.throughput import run_rows

_KERNELS = 25
_FUNCTIONS = 20
# Clips at once of the second profile, and different ones among them.
_MANY = 128
_DISTINCT = 16


@dataclass(frozen=True)
class Activity:
    """Something that the device did.

    Attributes:
        name: of the kernel or copy.
        start: in microseconds.
        end: likewise.
    """

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class DeviceTime:
    """What a clip cost the device.

    Attributes:
        launches: kernels and copies.
        busy: microseconds in which at least one ran.
        gaps: microseconds between the first and the last in which none ran.
        largest_gap: the longest of these.
    """

    launches: int
    busy: float
    gaps: float
    largest_gap: float

    @classmethod
    def of(cls, activities: Sequence[Activity]) -> DeviceTime:
        """Adds the activities up; those that overlap count once."""
        busy = gaps = largest = 0.0
        reached: float | None = None
        for activity in sorted(activities, key=lambda one: one.start):
            if reached is None:
                reached = activity.start
            gap = activity.start - reached
            if gap > 0:
                gaps += gap
                largest = max(largest, gap)
            busy += max(0.0, activity.end - max(activity.start, reached))
            reached = max(reached, activity.end)
        return cls(len(activities), busy, gaps, largest)


def by_name(activities: Sequence[Activity]) -> list[tuple[str, int, float]]:
    """Name, count and microseconds, the costliest first."""
    times: dict[str, list[float]] = defaultdict(list)
    for activity in activities:
        times[activity.name].append(activity.end - activity.start)
    return sorted(((name, len(spans), sum(spans)) for name, spans in times.items()), key=lambda row: -row[2])


def run(context: Context) -> Iterator[dict[str, Any]]:
    """The published schedule in each precision: one clip, and its host; then as many as fill the GPU."""
    video = random_clips(1, context.sizes.frames)
    knobs: dict[str, Any] = {"max_gaze_tokens_each_frame": context.schedule()}
    for precision, model in context.models().items():
        walls = []
        for _ in range(context.sizes.repeats + 3):
            started = time.perf_counter()
            model.generate(video, **knobs)
            walls.append((time.perf_counter() - started) * 1e3)
        wall = statistics.median(walls[3:])
        if context.on_gpu:
            yield from _device_rows(
                precision, "one clip", wall, lambda model=model: model.generate(video, **knobs)
            )
        else:
            yield {"precision": precision, "what": "one clip", "wall, ms (not profiled)": wall}
        for name, calls, own in _host(lambda model=model: model.generate(video, **knobs)):
            yield {"precision": precision, "what": f"host: {name}", "calls": calls, "us": own}
        if context.on_gpu and not context.cut(f"{precision}, {_MANY} clips"):
            clips = [context.placed(clip) for clip in random_clips(_DISTINCT, context.sizes.frames)]

            def many(model: Any = model, clips: Any = clips) -> None:
                run_rows(model, clips, _MANY, context.schedule())

            walls = []
            for _ in range(4):
                started = time.perf_counter()
                many()
                walls.append((time.perf_counter() - started) * 1e3)
            yield from _device_rows(precision, f"{_MANY} clips", statistics.median(walls[1:]), many)


def _device_rows(
    precision: str, what: str, wall: float, call: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    activities = _profiled(call)
    device = DeviceTime.of(activities)
    yield {
        "precision": precision,
        "what": what,
        "wall, ms (not profiled)": wall,
        "kernels and copies, ms": device.busy / 1e3,
        "launches": device.launches,
        "gaps between, ms": device.gaps / 1e3,
        "largest gap, ms": device.largest_gap / 1e3,
        "before the first and after the last, ms": wall - (device.busy + device.gaps) / 1e3,
    }
    for name, count, spent in by_name(activities)[:_KERNELS]:
        yield {"precision": precision, "what": f"{what}: {name[:100]}", "launches": count, "us": spent}


def _profiled(call: Any) -> list[Activity]:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
    return [
        Activity(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA
    ]


def _host(call: Any) -> list[tuple[str, int, float]]:
    """Python functions by their own time; the profiler itself makes small functions look slower."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = [
        (f"{file.rsplit('/', 1)[-1]}:{line} {name}", calls, own * 1e6)
        for (file, line, name), (_, calls, own, _, _) in stats.items()
    ]
    return sorted(rows, key=lambda row: -row[2])[:_FUNCTIONS]
