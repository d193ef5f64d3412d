"""Clips through the real server: what a request adds to the engine, and how much of its rate is left at saturation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend.clips import gaze, gaze_clips
from autogaze_backend.requests import Knobs

from benchmarks.gpu.context import Context, Settings, batch_of, random_pixels
from benchmarks.gpu_server import clip_load, perf_analyzer
from benchmarks.gpu_server.serving import Served, cores, cpu_seconds, server_settings, serving
from benchmarks.report import alternate

_DISTINCT = 8
_LOAD_SECONDS = 4.0


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Each precision: in this machine's process first, then the server alone on the GPU."""
    precisions = []
    for precision in context.settings.precisions:
        try:
            context.bundle(precision)
            precisions.append(precision)
        except Exception as error:
            context.notes[precision] = f"{type(error).__name__}: {error}"
    share = context.left() / max(len(precisions), 1)
    for index, precision in enumerate(precisions):
        ends = (len(precisions) - 1 - index) * share
        # A process of its own, so that its GPU memory and graphs are gone when the server starts.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            inside = pool.submit(in_process, context.settings, precision, share / 4).result()
        best = max(row["frames/s"] for row in inside)
        alone = inside[0]["p50, ms"]
        for row in inside:
            yield {"precision": precision, "way": "in process", **row}
        with serving(context, precision) as server:
            for row in through_server(context, server, ends):
                row["frames/s, % of in process"] = 100 * row["frames/s"] / best
                if row["concurrency"] == 1:
                    row["p50 over in process, ms"] = row["p50, ms"] - alone
                yield {"precision": precision, **row}
            context.notes[f"engines, {precision}"] = server.engines()


def in_process(settings: Settings, precision: str, seconds: float) -> list[dict[str, Any]]:
    """uint8 clips without a server: one at a time, then in growing batches while the time lasts."""
    context = Context(settings, seconds)
    model = context.model(precision)
    frames = context.sizes.frames
    pixels = [random_pixels(frames, 1000 + index) for index in range(_DISTINCT)]
    knobs = Knobs(max_gaze_tokens=np.asarray(context.schedule()))
    one = alternate({"one": lambda: gaze(model, pixels[0], knobs)}, repeats=context.sizes.repeats, warmup=3)[
        "one"
    ]
    rows = [
        {
            "concurrency": 1,
            "frames/s": frames / one.median * 1e3,
            "p50, ms": one.median,
            "p99, ms": float(np.percentile(one.samples, 99)),
        }
    ]
    for count in context.sizes.batches:
        if count == 1 or context.left() <= 0:
            continue
        batch = batch_of(pixels, count)

        def all_at_once(batch: list[Any] = batch) -> None:
            for answer in gaze_clips(model, batch, knobs):
                if isinstance(answer, Exception):
                    raise answer

        timing = alternate({"batch": all_at_once}, repeats=3, warmup=1)["batch"]
        rows.append(
            {"concurrency": count, "frames/s": frames * count / timing.median * 1e3, "p50, ms": timing.median}
        )
    return rows


def through_server(context: Context, server: Served, reserve: float) -> Iterator[dict[str, Any]]:
    """Every concurrency, by perf_analyzer where it runs, and by our own client."""
    settings = server_settings(context)
    frames = context.sizes.frames
    with tempfile.TemporaryDirectory() as folder:
        pixels = [random_pixels(frames, 1000 + index) for index in range(_DISTINCT)]
        inputs = perf_analyzer.write_inputs(Path(folder) / "clips.json", pixels, context.schedule())
        program = settings.perf_analyzer
        if program is None:
            context.notes["perf_analyzer"] = "not run: no --perf-analyzer, none on PATH"
        for concurrency in settings.concurrencies:
            if context.cut(f"concurrency {concurrency}", reserve=reserve):
                continue
            if program is not None:
                timeout = max(30.0, context.left() - reserve)
                try:
                    found = perf_analyzer.measure(
                        program, settings.perf_libraries, server.url, inputs, concurrency, timeout
                    )
                except RuntimeError as error:
                    context.notes["perf_analyzer"] = str(error)
                    program = None
                else:
                    yield {
                        "way": "server, perf_analyzer",
                        "concurrency": concurrency,
                        "frames/s": frames * found.requests_per_s,
                        "p50, ms": found.p50_ms,
                        "p99, ms": found.p99_ms,
                    }
            # Our own client at the ends of the range, or everywhere in perf_analyzer's place.
            if program is None or concurrency in (settings.concurrencies[0], settings.concurrencies[-1]):
                seconds = _LOAD_SECONDS if context.sizes.repeats > 2 else 2.0
                before, started = cpu_seconds(server.name), time.perf_counter()
                rate, p50, p99 = clip_load.measure(
                    server.url, concurrency, settings.processes, context.schedule(), seconds
                )
                # Over the whole load, its warm-up and the start of its processes included.
                used = cores(before, cpu_seconds(server.name), time.perf_counter() - started)
                yield {
                    "way": "server, our client",
                    "concurrency": concurrency,
                    "frames/s": frames * rate,
                    "p50, ms": p50,
                    "p99, ms": p99,
                    **used,
                }
