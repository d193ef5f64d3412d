"""Cameras: many streams, each sending a frame when it is due, whether or not the one before is answered.

A camera's frame k is due at its start + k/30 s; starts are spread over a frame's time. A frame goes out when it
is due, or, as frames of a stream go in order, when the one before has been answered. Its latency counts from
when it was **due**, so waiting behind a late answer is not hidden. It is **dropped** when its answer has not come
by the time the next but one is due, 2/30 s after its own: a camera that keeps one frame back would have thrown
it away. A stream that is a second behind leaves out the frames that are past, and they count as dropped too.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from autogaze_client import AsyncGazeClient
from numpy.typing import NDArray

from benchmarks.gpu.context import Context, random_pixels
from benchmarks.gpu_server.serving import cores, cpu_seconds, gpu_memory, server_settings, serving

RATE = 30.0
WARM_SECONDS = 3.0
# Behind this far, a camera gives up the frames that are past.
GIVE_UP_SECONDS = 1.0
_PICTURES = 16
KNOBS = {"max_gaze_tokens_each_frame": 10}


@dataclass(frozen=True)
class Cameras:
    """What one process plays.

    Attributes:
        url: of the server.
        numbers: its cameras, of all. Every nth, so that no process sends its frames in a burst: starts are spread
            by number.
        total: cameras of all processes.
        shared: whether frames go through shared memory.
        opens: ``time.monotonic()`` at which the cameras start.
        seconds: that count, after ``WARM_SECONDS``.
    """

    url: str
    numbers: range
    total: int
    shared: bool
    opens: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """Frames that counted.

    Attributes:
        latencies: seconds from due to answered, of the answered ones.
        late_sends: seconds from when a frame could go to when it went: the load generator's own delay.
        given_up: frames that were never sent.
        cpu: seconds of CPU that the load generators used.
    """

    latencies: NDArray[np.float64]
    late_sends: NDArray[np.float64]
    given_up: int
    cpu: float

    @property
    def frames(self) -> int:
        """All that were due."""
        return len(self.latencies) + self.given_up

    @property
    def dropped(self) -> int:
        """See the module."""
        return self.given_up + int((self.latencies > 2 / RATE).sum())

    @classmethod
    def joined(cls, parts: list[Outcome]) -> Outcome:
        """Of several processes."""
        return cls(
            np.concatenate([part.latencies for part in parts]),
            np.concatenate([part.late_sends for part in parts]),
            sum(part.given_up for part in parts),
            sum(part.cpu for part in parts),
        )

    def row(self, seconds: float) -> dict[str, Any]:
        """The figures, in milliseconds."""
        if not len(self.latencies):
            return {"frames due": self.frames, "dropped": self.dropped}
        p50, p90, p99 = np.percentile(self.latencies, (50, 90, 99)) * 1e3
        return {
            "frames due": self.frames,
            "dropped": self.dropped,
            "answered/s": len(self.latencies) / seconds,
            "p50, ms": float(p50),
            "p90, ms": float(p90),
            "p99, ms": float(p99),
            "max, ms": float(self.latencies.max() * 1e3),
            "generator late, p99, ms": float(np.percentile(self.late_sends, 99) * 1e3),
            "generator, cores": round(self.cpu / (WARM_SECONDS + seconds), 2),
        }


def play(cameras: Cameras) -> Outcome:
    """Runs a process's cameras to their end."""
    gc.disable()
    return asyncio.run(_play(cameras))


async def _play(cameras: Cameras) -> Outcome:
    latencies: list[float] = []
    late: list[float] = []
    given_up = [0]
    used = time.process_time()
    async with AsyncGazeClient(cameras.url, shared_memory=cameras.shared) as client:
        pictures = [random_pixels(_PICTURES, 100 + seed) for seed in range(4)]

        async def camera(number: int) -> None:
            frames = pictures[number % len(pictures)]
            start = cameras.opens + number / cameras.total / RATE
            counts = start + WARM_SECONDS
            ends = counts + cameras.seconds
            async with client.stream(**KNOBS) as stream:
                index = 0
                free = start
                while (due := start + index / RATE) < ends:
                    now = time.monotonic()
                    if now - due > GIVE_UP_SECONDS:
                        given_up[0] += due >= counts
                        index += 1
                        continue
                    if now < due:
                        await asyncio.sleep(due - now)
                    sent = time.monotonic()
                    await stream.push(frames[index % len(frames)])
                    answered = time.monotonic()
                    if due >= counts:
                        latencies.append(answered - due)
                        late.append(sent - max(due, free))
                    free = answered
                    index += 1

        await asyncio.gather(*(camera(number) for number in cameras.numbers))
    return Outcome(np.array(latencies), np.array(late), given_up[0], time.process_time() - used)


def measure(
    url: str,
    streams: int,
    processes: int,
    seconds: float,
    *,
    shared: bool,
    watch: Callable[[], None] = lambda: None,
) -> Outcome:
    """All cameras, shared out to processes; ``watch`` is called when frames begin to count, and at the end."""
    workers = min(processes, streams)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(time.sleep, [0.5] * workers))
        opens = time.monotonic() + 2.0
        parts = [
            Cameras(url, range(index, streams, workers), streams, shared, opens, seconds)
            for index in range(workers)
        ]
        outcomes = pool.map(play, parts)
        for moment in (opens + WARM_SECONDS, opens + WARM_SECONDS + seconds):
            time.sleep(max(0.0, moment - time.monotonic()))
            watch()
        return Outcome.joined(list(outcomes))


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Each number of cameras, frames in shared memory; the largest number over the wire too."""
    settings = server_settings(context)
    for precision in settings.precisions:
        try:
            context.bundle(precision)
        except Exception as error:
            context.notes[precision] = f"{type(error).__name__}: {error}"
            continue
        with serving(context, precision) as server:
            for count, shared in [(count, True) for count in settings.cameras] + [
                (max(settings.cameras), False)
            ]:
                if context.cut(f"{precision}, {count} cameras"):
                    continue
                marks: list[dict[str, float]] = []
                outcome = measure(
                    server.url,
                    count,
                    settings.processes,
                    settings.camera_seconds,
                    shared=shared,
                    watch=lambda marks=marks, name=server.name: marks.append(cpu_seconds(name)),
                )
                row = {
                    "precision": precision,
                    "cameras": count,
                    "frames by": "shared memory" if shared else "wire",
                    **outcome.row(settings.camera_seconds),
                    **cores(*marks, settings.camera_seconds),
                }
                for name, mib in gpu_memory().items():
                    row[f"{name}, MiB"] = mib
                yield row
            context.notes[f"engines, {precision}"] = server.engines()
