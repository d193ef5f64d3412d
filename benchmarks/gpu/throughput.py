"""Frames a second over batches of clips, beside the published model's best and the card's own peak."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from autogaze_backend import GazeModel
from autogaze_backend.budgets import resolve_budget
from autogaze_backend.clips import gaze_clips
from autogaze_backend.requests import Knobs
from numpy.typing import NDArray

from benchmarks.gpu.context import Context, batch_of, random_clips, random_pixels
from benchmarks.gpu.floor import clip_floor

_DISTINCT = 16
_SAMPLES = 5
# A batch is timed no longer than this, however many samples that leaves.
_SECONDS = 6.0


def run(context: Context) -> Iterator[dict[str, Any]]:
    """The card first; then ours, the largest batches last; then the published model."""
    peaks = matrix_peaks(context)
    for kind, rate in peaks.items():
        yield {"what": f"matrix product, {kind}", "TFLOP/s": rate / 1e12}
    models = context.models()
    schedule = context.schedule()
    for model in list(models.values())[:1]:
        floor = clip_floor(model.spec, schedule)
        yield {
            "what": "floor of a clip",
            "GFLOP": floor.operations / 1e9,
            "calls": floor.prefills + floor.steps,
        }
    count = min(_DISTINCT, max(context.sizes.batches))
    floats = [context.placed(clip) for clip in random_clips(count, context.sizes.frames)]
    pixels = [random_pixels(context.sizes.frames, 1000 + index) for index in range(len(floats))]
    published_time = 0.25 * context.left() if context.settings.published is not None else 0.0
    best: dict[str, float] = {}
    for count in context.sizes.batches:
        for precision, model in models.items():
            if context.cut(f"{precision}, {count} clips", reserve=published_time):
                continue
            runs = {
                "float32 rows": lambda model=model, count=count: run_rows(model, floats, count, schedule),
                "uint8 frames": lambda model=model, count=count: _frames(model, pixels, count, schedule),
            }
            for source, call in runs.items():
                rate = context.sizes.frames * count / _median(call)
                best[precision] = max(rate, best.get(precision, 0.0))
                yield {"what": precision, "source": source, "clips": count, "frames/s": rate}
    for precision, rate in best.items():
        yield _best(context, models[precision], precision, rate, peaks["float32"])
    yield from _published(context, floats, schedule)


def _best(context: Context, model: GazeModel, precision: str, rate: float, peak: float) -> dict[str, Any]:
    floor = clip_floor(model.spec, context.schedule())
    achieved = floor.operations / context.sizes.frames * rate
    return {
        "what": f"best of {precision}",
        "frames/s": rate,
        "TFLOP/s": achieved / 1e12,
        "share of the float32 peak": achieved / peak,
    }


def run_rows(model: GazeModel, floats: list[Any], count: int, schedule: list[int]) -> None:
    """That many clips through ``generate_rows``, all at once."""
    budget = resolve_budget(model.spec, len(schedule), max_gaze_tokens_each_frame=schedule)
    rows = [model.row(clip, budget) for clip in batch_of(floats, count)]
    finished = 0
    for _, tokens in model.generate_rows(rows):
        if isinstance(tokens, Exception):
            raise tokens
        finished += 1
    if finished != count:
        raise RuntimeError(f"{finished} of {count} rows came back")


def _frames(model: GazeModel, pixels: list[NDArray[np.uint8]], count: int, schedule: list[int]) -> None:
    for answer in gaze_clips(model, batch_of(pixels, count), Knobs(max_gaze_tokens=np.asarray(schedule))):
        if isinstance(answer, Exception):
            raise answer


def _published(context: Context, floats: list[Any], schedule: list[int]) -> Iterator[dict[str, Any]]:
    published = context.published
    if published is None:
        return
    for count in context.sizes.published_batches:
        if context.cut(f"published model, {count} clips"):
            continue
        videos = context.stacked(batch_of(floats, count))
        seconds = _median(lambda videos=videos: published(videos, {"max_gaze_tokens_each_frame": schedule}))
        yield {
            "what": "published",
            "source": "float32 rows",
            "clips": count,
            "frames/s": context.sizes.frames * count / seconds,
        }


def _median(call: Callable[[], object]) -> float:
    """Seconds of a call: the median of some, after one that is not counted."""
    call()
    samples: list[float] = []
    started = time.perf_counter()
    while not samples or (len(samples) < _SAMPLES and time.perf_counter() - started < _SECONDS):
        before = time.perf_counter()
        call()
        samples.append(time.perf_counter() - before)
    return float(np.median(samples))


def matrix_peaks(context: Context) -> dict[str, float]:
    """FLOP/s of large matrix products on random data: float32 without TF32, and fp16 on a GPU."""
    size = context.sizes.matrix
    operations = 2.0 * size**3
    if not context.on_gpu:
        left = np.random.default_rng(0).standard_normal((size, size), np.float32)
        return {"float32": operations / _median(lambda: left @ left)}
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    peaks = {}
    for kind, dtype in (("float32", torch.float32), ("fp16", torch.float16)):
        matrix = torch.randn(size, size, device="cuda", dtype=dtype)
        out = torch.empty_like(matrix)
        for _ in range(3):
            torch.mm(matrix, matrix, out=out)
        seconds = []
        for _ in range(10):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            torch.mm(matrix, matrix, out=out)
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        peaks[kind] = operations / float(np.median(seconds))
    return peaks
