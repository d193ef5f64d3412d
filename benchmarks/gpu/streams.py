"""Streams in this process: milliseconds of a step of many, caches full, from uint8 frames on the host."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from autogaze_backend import GazeModel
from autogaze_backend.budgets import resolve_budget
from autogaze_backend.streaming import DEFAULT_HORIZON, GazeStream, step_frames
from numpy.typing import NDArray

from benchmarks.gpu.context import Context, random_pixels

KNOBS: dict[str, dict[str, Any]] = {
    "10 tokens": {"max_gaze_tokens_each_frame": 10},
    "task-loss stop": {"gazing_ratio": 0.75, "task_loss_requirement": 0.7},
}
_DISTINCT = 8


def run(context: Context) -> Iterator[dict[str, Any]]:
    """The largest number last; a horizon of frames goes before the timed ones."""
    timed = context.sizes.stream_frames
    warm = DEFAULT_HORIZON if timed >= DEFAULT_HORIZON else 1
    distinct = min(_DISTINCT, max(context.sizes.streams))
    videos = [random_pixels(warm + timed, 3000 + index) for index in range(distinct)]
    for precision, model in context.models().items():
        for count in context.sizes.streams:
            for name, knobs in KNOBS.items():
                if context.cut(f"{precision}, {count} streams, {name}"):
                    continue
                times = _steps(model, videos, count, warm, knobs)
                yield {
                    "precision": precision,
                    "streams": count,
                    "frames take": name,
                    "median, ms a step": float(np.median(times)),
                    "p99, ms": float(np.percentile(times, 99)),
                    "frames/s": count / float(np.median(times)) * 1e3,
                    "steps": len(times),
                }


def _steps(
    model: GazeModel, videos: Sequence[NDArray[np.uint8]], count: int, warm: int, knobs: dict[str, Any]
) -> list[float]:
    times = []
    with open_streams(model, count) as streams:
        for t in range(len(videos[0])):
            # As the server has them: every stream's frame at a place of its own.
            frames = [videos[index % len(videos)][t : t + 1].copy() for index in range(count)]
            started = time.perf_counter()
            step_all(model, streams, frames, knobs)
            times.append((time.perf_counter() - started) * 1e3)
    return times[warm:]


@contextmanager
def open_streams(model: GazeModel, count: int) -> Iterator[list[GazeStream]]:
    """That many streams, closed at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(model.open_stream()) for _ in range(count)]


def step_all(
    model: GazeModel,
    streams: Sequence[GazeStream],
    frames: Sequence[NDArray[np.uint8]],
    knobs: dict[str, Any],
) -> None:
    """One frame ``[1, H, W, 3]`` of each, as ``autogaze_stream`` runs it."""
    budget = resolve_budget(model.spec, 1, **knobs)
    items = [(stream, model.stream_input(frame)) for stream, frame in zip(streams, frames, strict=True)]
    step_frames(model, [(stream, frame, budget) for stream, frame in items])
