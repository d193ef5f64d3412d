"""One clip, batch 1: the published model and ours in turn, from host pixels to host tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from autogaze_backend.clips import gaze
from autogaze_backend.requests import Knobs

from benchmarks.gpu.context import WHOLE_CLIP, Context, random_clips, random_pixels
from benchmarks.report import alternate


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Both schedules; then ours from uint8 frames, as the server gets them."""
    models = context.models()
    # On the device for all: what is timed is choosing tokens, not copying frames.
    video = context.placed(random_clips(1, context.sizes.frames))
    schedules: dict[str, dict[str, Any]] = {
        "quick start": {"max_gaze_tokens_each_frame": context.schedule()},
        "whole_clip": WHOLE_CLIP,
    }
    for name, knobs in schedules.items():
        if context.cut(name):
            continue
        runs: dict[str, Callable[[], object]] = {
            precision: lambda model=model, knobs=knobs: model.generate(video, **knobs)
            for precision, model in models.items()
        }
        if (published := context.published) is not None:
            runs["published"] = lambda knobs=knobs, published=published: published(video, knobs)
        yield from _rows(name, runs, context)
    pixels = random_pixels(context.sizes.frames, 1000)
    wire = Knobs(max_gaze_tokens=np.asarray(context.schedule()))
    if not context.cut("uint8 frames"):
        frames_in: dict[str, Callable[[], object]] = {
            precision: lambda model=model: gaze(model, pixels, wire) for precision, model in models.items()
        }
        yield from _rows("quick start, uint8 frames in", frames_in, context)


def _rows(name: str, runs: dict[str, Callable[[], object]], context: Context) -> Iterator[dict[str, Any]]:
    timings = alternate(runs, repeats=context.sizes.repeats, warmup=3)
    published = timings.get("published")
    for what, timing in timings.items():
        row: dict[str, Any] = {
            "schedule": name,
            "what": what,
            "median, ms": timing.median,
            "best, ms": timing.best,
            "p90, ms": float(np.percentile(timing.samples, 90)),
            "samples": len(timing.samples),
        }
        if published is not None and what != "published":
            row["ratio of medians"] = published.median / timing.median
        yield row
