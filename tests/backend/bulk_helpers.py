"""Small videos, and what the model says of them without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autogaze_client.video import VideoReader
from autogaze_client.video_writer import VideoWriter

RATIO = 0.05
"""Of the tests: few tokens, so that a video takes a second."""


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


def write_folder(folder: Path) -> Path:
    """Five good videos, one of them in a folder below; one cut short and one that is none."""
    for index, frames in enumerate((33, 16, 20, 37)):
        write_video(folder / f"{index}.mp4", frames=frames, seed=index, size=(48, 80 + 16 * (index % 2)))
    write_video(folder / "below" / "4.mkv", frames=18, seed=9)
    whole = (folder / "0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "none.mp4").write_bytes(b"this is a text")
    return folder


def results(out: Path) -> dict[str, dict[str, list]]:
    """The columns of every result."""
    import pyarrow.parquet as pq

    gaze = out / "gaze"
    return {
        path.relative_to(gaze).as_posix().removesuffix(".parquet"): pq.read_table(path).to_pydict()
        for path in gaze.rglob("*.parquet")
    }


def start_command(videos: Path, out: Path, bundle: Any, mark: str) -> subprocess.Popen[str]:
    """``autogaze bulk`` with two workers and a Ray of its own."""
    command = [
        sys.executable, "-m", "autogaze_client._cli", "bulk", str(videos), str(out), "--bundle",
        str(bundle("release")), "--gazing-ratio", str(RATIO), "--actors", "2", "--threads", "1",
    ]  # fmt: skip
    environment = {**os.environ, "AUTOGAZE_TEST_MARK": mark}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def processes(mark: str, title: str) -> list[int]:
    """Processes of the run with this mark in its environment, by the title that Ray gives them."""
    wanted = f"AUTOGAZE_TEST_MARK={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                title.encode() in (entry / "cmdline").read_bytes()
                and wanted in (entry / "environ").read_bytes()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(condition: Any, seconds: float, what: str) -> Any:
    """What the condition gives, once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    pytest.fail(f"no {what} within {seconds} s")
