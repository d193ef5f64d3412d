"""Clips through our own client, from several processes at once, each asking again as soon as it has its answer."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from autogaze_client import GazeClient

from benchmarks.gpu.context import random_pixels


@dataclass(frozen=True)
class Load:
    """What one process asks.

    Attributes:
        url: of the server.
        threads: that ask at once.
        schedule: tokens of each frame.
        seed: of the clips.
        starts: ``time.monotonic()`` at which answers begin to count.
        seconds: for which they do.
    """

    url: str
    threads: int
    schedule: tuple[int, ...]
    seed: int
    starts: float
    seconds: float


def ask(load: Load) -> list[float]:
    """Milliseconds of every request that was sent and answered in the time that counts."""
    gc.disable()
    times: list[float] = []
    failures: list[BaseException] = []

    def run(thread: int) -> None:
        try:
            frames = random_pixels(len(load.schedule), load.seed + thread)
            with GazeClient(load.url, shared_memory=True) as client:
                while (before := time.monotonic()) < load.starts + load.seconds:
                    client.gaze(frames, max_gaze_tokens_each_frame=load.schedule)
                    after = time.monotonic()
                    if load.starts <= before and after <= load.starts + load.seconds:
                        times.append((after - before) * 1e3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(load.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return times


def measure(
    url: str, concurrency: int, processes: int, schedule: list[int], seconds: float
) -> tuple[float, float, float]:
    """Requests a second, p50 and p99 in milliseconds.

    Args:
        url: of the server.
        concurrency: requests in flight.
        processes: to share them out to, at most.
        schedule: tokens of each frame.
        seconds: that count, after two of warm-up and the processes' start.
    """
    workers = min(processes, concurrency)
    shares = [concurrency // workers + (index < concurrency % workers) for index in range(workers)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        # Every worker is up before the clock is set.
        list(pool.map(time.sleep, [0.5] * workers))
        starts = time.monotonic() + 2.0
        loads = [
            Load(url, share, tuple(schedule), 1000 * index, starts, seconds)
            for index, share in enumerate(shares)
        ]
        times = [sample for part in pool.map(ask, loads) for sample in part]
    if not times:
        raise RuntimeError(f"no request was answered in {seconds:g} s; give the section more time")
    return len(times) / seconds, float(np.median(times)), float(np.percentile(times, 99))
