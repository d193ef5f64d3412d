from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest
from autogaze_client import GazeClient, VideoWriter

# The helpers beside these tests, in any import mode of pytest.
sys.path.insert(0, str(Path(__file__).parent))

from client_helpers import FakeServer


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def client(server: FakeServer) -> GazeClient:
    return GazeClient(transport=server)


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 frames of 64x48, each of its own brightness."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with VideoWriter(path, fps=25) as writer:
        for index in range(37):
            writer.write(np.full((48, 64, 3), 5 * index + 20, np.uint8))
    return path


@pytest.fixture(scope="session")
def truncated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MP4 whose index promises 60 frames, cut in the middle of its pictures."""
    folder = tmp_path_factory.mktemp("truncated")
    whole, cut = folder / "whole.mp4", folder / "cut.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(whole), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(60):
            picture = rng.integers(0, 255, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    return cut
