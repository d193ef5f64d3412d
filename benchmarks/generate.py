"""Choosing the tokens of one clip on this machine's CPU, beside the published model where its source is given.

``AUTOGAZE_SRC=/path/to/AutoGaze python -m benchmarks.generate``: a checkout of NVlabs/AutoGaze with its requirements
installed. The same process, the same number of threads, alternating runs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend import GazeModel
from autogaze_export import build

from benchmarks.report import alternate, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from goldens import checkpoint, clips

# The published schedule: 198 tokens in the first frame, then 10 a frame.
QUICK_START = [198] + [10] * 15
THREADS = int(os.environ.get("AUTOGAZE_THREADS", len(os.sched_getaffinity(0))))


QUICK_NAME, WHOLE_NAME = "quick start (198 + 15 × 10)", "whole_clip (0.75, 0.7)"

# Floating-point work at natural lengths, in GFLOP: encoder, linear layers, attention. The last layer's work on
# tokens that nobody reads is not counted, since it is not done.
FLOOR_GFLOP = {QUICK_NAME: 7.4 + 8.8 + 13.9, WHOLE_NAME: 7.4 + 9.6 + 20.4}


def matrix_rate() -> float:
    """GFLOP/s of a large float32 matrix product in numpy on this machine, the best of a few."""
    size = 1536
    left, right = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    timing = alternate({"product": lambda: left @ right}, repeats=10)["product"]
    return 2 * size**3 / timing.best / 1e6


def run(repeats: int = 10) -> list[dict[str, Any]]:
    """Times both schedules on a 16-frame clip of 224×224, float32, seeded weights."""
    video = clips.normalise(clips.synthetic_clip(16, 224, 224, 11))[None]
    with tempfile.TemporaryDirectory() as folder:
        source = checkpoint.write_checkpoint(Path(folder) / "checkpoint")
        model = GazeModel.load(build(source, Path(folder) / "bundle"), threads=THREADS)
        published = None
        if checkout := published_source():
            from benchmarks.published import load

            published = load(checkout, source, THREADS)
    rate = matrix_rate()
    rows = []
    schedules: dict[str, dict[str, Any]] = {
        QUICK_NAME: {"max_gaze_tokens_each_frame": QUICK_START},
        WHOLE_NAME: {"gazing_ratio": 0.75, "task_loss_requirement": 0.7},
    }
    for name, knobs in schedules.items():
        runs: dict[str, Callable[[], object]] = {"ours": lambda knobs=knobs: model.generate(video, **knobs)}
        if published is not None:
            runs["published"] = lambda knobs=knobs: published(video, knobs)
        timings = alternate(runs, repeats=repeats)
        row: dict[str, Any] = {
            "schedule": name,
            "threads": THREADS,
            "ours, ms (median)": timings["ours"].median,
            "ours, ms (best)": timings["ours"].best,
            "floor, ms": FLOOR_GFLOP[name] / rate * 1e3,
        }
        if published is not None:
            row["published, ms (median)"] = timings["published"].median
            row["ratio of medians"] = timings["published"].median / timings["ours"].median
        rows.append(row)
    return rows


def published_source() -> Path | None:
    """The checkout of the published model, where AUTOGAZE_SRC names one."""
    checkout = os.environ.get("AUTOGAZE_SRC")
    return Path(checkout) if checkout else None


if __name__ == "__main__":
    print(table(run()))
