"""Frames a second of 1, 2, 4 and 8 streams on this machine's CPU, beside the published model's streaming.

``AUTOGAZE_SRC=/path/to/AutoGaze python -m benchmarks.streams``, as for ``benchmarks.generate``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend import GazeModel
from autogaze_export import build

from benchmarks.generate import THREADS, checkpoint, clips, published_source
from benchmarks.report import alternate, table

KNOBS = {"gazing_ratio": 0.75, "task_loss_requirement": 0.7}
FRAMES = 16


def run(repeats: int = 5, counts: tuple[int, ...] = (1, 2, 4, 8)) -> list[dict[str, Any]]:
    """Times 16 frames of each number of streams, seeded weights, 224×224, stop at 0.7."""
    with tempfile.TemporaryDirectory() as folder:
        source = checkpoint.write_checkpoint(Path(folder) / "checkpoint")
        model = GazeModel.load(build(source, Path(folder) / "bundle"), threads=THREADS)
        published = None
        if checkout := published_source():
            from benchmarks.published import load_streaming

            published = load_streaming(checkout, source, THREADS)
    rows = []
    for count in counts:
        videos = np.stack(
            [clips.normalise(clips.synthetic_clip(FRAMES, 224, 224, seed)) for seed in range(count)]
        )
        runs: dict[str, Callable[[], object]] = {"ours": lambda videos=videos: stream_all(model, videos)}
        if published is not None:
            runs["published"] = lambda videos=videos: published(videos, KNOBS)
        timings = alternate(runs, repeats=repeats, warmup=1)
        frames = count * FRAMES
        row: dict[str, Any] = {
            "streams": count,
            "threads": THREADS,
            "ours, frames/s": frames / timings["ours"].median * 1e3,
            "ours, ms a frame of each": timings["ours"].median / FRAMES,
        }
        if published is not None:
            row["published, frames/s"] = frames / timings["published"].median * 1e3
            row["ratio"] = timings["published"].median / timings["ours"].median
        rows.append(row)
    return rows


def stream_all(model: GazeModel, videos: np.ndarray) -> None:
    """Every stream's frames in lockstep, one batch a frame."""
    streams = [model.open_stream() for _ in videos]
    for t in range(videos.shape[1]):
        model.step_streams(
            [(stream, video[t][None]) for stream, video in zip(streams, videos, strict=True)], **KNOBS
        )


if __name__ == "__main__":
    print(table(run()))
