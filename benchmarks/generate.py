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
THREADS = len(os.sched_getaffinity(0))


def run(repeats: int = 10) -> list[dict[str, Any]]:
    """Times both schedules on a 16-frame clip of 224×224, float32, seeded weights."""
    video = clips.normalise(clips.synthetic_clip(16, 224, 224, 11))[None]
    with tempfile.TemporaryDirectory() as folder:
        source = checkpoint.write_checkpoint(Path(folder) / "checkpoint")
        model = GazeModel.load(build(source, Path(folder) / "bundle"), threads=THREADS)
        published = published_model(source)
    rows = []
    schedules: dict[str, dict[str, Any]] = {
        "quick start (198 + 15 × 10)": {"max_gaze_tokens_each_frame": QUICK_START},
        "whole_clip (0.75, 0.7)": {"gazing_ratio": 0.75, "task_loss_requirement": 0.7},
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
        }
        if published is not None:
            row["published, ms (median)"] = timings["published"].median
            row["ratio of medians"] = timings["published"].median / timings["ours"].median
        rows.append(row)
    return rows


def published_model(source: Path) -> Callable[[np.ndarray, dict[str, Any]], Any] | None:
    """The published model as a function of a video and our knobs, or None where its source is not given."""
    checkout = os.environ.get("AUTOGAZE_SRC")
    if not checkout:
        return None
    from benchmarks.published import load

    return load(Path(checkout), source, THREADS)


if __name__ == "__main__":
    print(table(run()))
