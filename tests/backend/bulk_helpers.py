"""Small videos, and what the model says of them without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_client.video import VideoReader, VideoWriter


def write_video(path: Path, *, frames: int, seed: int, size: tuple[int, int] = (48, 80)) -> Path:
    """A drifting texture with a patch that moves against it."""
    height, width = size
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height * 2, width * 2, 3)).repeat(4, axis=0).repeat(4, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps=25) as writer:
        for t in range(frames):
            picture = texture[t : t + height, 2 * t : 2 * t + width].astype(np.uint8)
            picture[8:24, (50 - t) % 60 : (50 - t) % 60 + 12] = (20 * seed) % 256
            writer.write(picture)
    return path


def expected_rows(
    model: Any, path: Path, *, window: int = 16, stride: int = 1, **knobs: Any
) -> dict[str, list]:
    """What ``GazeModel.gaze`` chooses in each window of a video, as columns."""
    columns: dict[str, list] = {
        name: [] for name in ("frame", "timestamp", "token", "confidence", "task_loss")
    }
    boxes = []
    first = 0
    for timestamps, frames in VideoReader(path, frame_stride=stride).timed_windows(window):
        result = model.gaze(frames, **knobs)
        generated = result.generated
        chosen = ~generated.if_padded_gazing[0]
        frame = generated.frame_of_slot[chosen]
        columns["frame"] += (first + stride * frame).tolist()
        columns["timestamp"] += timestamps[frame].tolist()
        vocabulary = generated.num_vision_tokens_each_frame
        columns["token"] += (generated.gazing_pos[0, chosen] - vocabulary * frame).tolist()
        columns["confidence"] += generated.confidences[0, chosen].tolist()
        columns["task_loss"] += generated.task_loss_predictions[0, chosen].tolist()
        boxes.append(result.fixations)
        first += stride * len(frames)
    cells = np.concatenate(boxes)
    for index, name in enumerate(("x", "y", "width", "height"), start=1):
        columns[name] = cells[:, index].tolist()
    columns["scale"] = cells[:, 6].astype(int).tolist()
    return columns


def footer(path: Path) -> dict[str, Any]:
    """The JSON in a result's footer."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[b"autogaze"])
    return found
