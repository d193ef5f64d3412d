"""The gaze of the demo video, for the examples beside this file.

``demo_gaze.json`` holds the cells that ``make demo`` chose on its 64 frames of 1280x720, with the open checkpoint.
Written by

    make demo
    python examples/integrations/demo_gaze.py build/demo/gaze.json

With ``make demo CHECKPOINT=nvidia/AutoGaze`` before it, the same two commands give the released model's figures.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from autogaze_client import FrameFixationTrace

FIXTURE = Path(__file__).with_name("demo_gaze.json")
CLIP = 16


@dataclass(frozen=True)
class Saving:
    """Tokens that a model takes with gaze and without."""

    kept: int
    dense: int

    def __str__(self) -> str:
        return f"{self.kept:,} of {self.dense:,} tokens, {1 - self.kept / self.dense:.1%} saved"


def demo_clips(path: Path = FIXTURE) -> list[FrameFixationTrace]:
    """The demo's fixations as clips of 16 frames."""
    content = json.loads(path.read_text(encoding="utf-8"))
    clips = []
    for start in range(0, len(content["frames"]), CLIP):
        frames = content["frames"][start : start + CLIP]
        rows = [
            (frame, (col + 0.5) / grid, (row + 0.5) / grid, 1 / grid, 1 / grid, confidence, grid)
            for frame, cells in enumerate(frames)
            for grid, row, col, confidence in cells
        ]
        stops = content["stop_probabilities"][start : start + CLIP]
        clips.append(
            FrameFixationTrace.from_array(np.array(rows, np.float32).reshape(-1, 7), len(frames), stops)
        )
    return clips


def write_fixture(gaze: Path, path: Path = FIXTURE) -> Path:
    """Keeps grid, row, column and confidence of every fixation of a ``gaze.json`` of mode ``resize``."""
    content = json.loads(gaze.read_text(encoding="utf-8"))
    if content["mode"] != "resize":
        raise SystemExit(f"{gaze} is of mode {content['mode']}; the examples need mode resize")
    frames = [[_cell(point) for point in frame["points"]] for frame in content["frames"]]
    fixture = {
        "about": "make demo, open checkpoint; cells are grid, row, column, confidence: see demo_gaze.py",
        "source_size": content["source_size"],
        "stop_probabilities": [frame["stop_probability"] for frame in content["frames"]],
        "frames": frames,
    }
    path.write_text(json.dumps(fixture, separators=(",", ":")) + "\n", encoding="utf-8")
    return path


def _cell(point: dict[str, float]) -> list[float]:
    grid = int(point["grid"])
    row, col = int(point["y"] * grid), int(point["x"] * grid)
    return [grid, row, col, round(point["confidence"], 4)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/integrations/demo_gaze.py build/demo/gaze.json")
    print(f"wrote {write_fixture(Path(sys.argv[1]))}")
