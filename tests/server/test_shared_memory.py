"""Frames through system shared memory against a real tritonserver: used where it can be, never leaked."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_client import AsyncGazeClient, GazeClient
from goldens import clips

pytestmark = pytest.mark.server

FRAMES = clips.synthetic_clip(3, 240, 320, 5)
KNOBS = {"gazing_ratio": 0.05}


def client_files(process: int | None = None) -> set[str]:
    """The regions of one process; other clients on this machine are none of ours."""
    prefix = f"autogaze-client-{process or os.getpid()}-"
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(prefix)}


def server_regions(url: str) -> set[str]:
    with triton.InferenceServerClient(url) as raw:
        status = raw.get_system_shared_memory_status(as_json=True)
    return {name for name in status.get("regions", {}) if name.startswith("autogaze-client-")}


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    before = client_files()
    yield
    assert client_files() == before
    assert server_regions(server.url) == set()


def test_a_local_server_gets_its_frames_through_shared_memory(server):
    with GazeClient(server.url, shared_memory=False) as client:
        wire = client.gaze(FRAMES, **KNOBS)
        assert server_regions(server.url) == set()
    with GazeClient(server.url) as client:
        for _ in range(3):
            shared = client.gaze(FRAMES, **KNOBS)
        assert len(server_regions(server.url)) == 1, "the region is used again"
        assert len(client_files()) == 1
    np.testing.assert_array_equal(shared.generated.gazing_pos, wire.generated.gazing_pos)


async def test_the_asyncio_client_shares_too(server):
    async with AsyncGazeClient(server.url) as client:
        shared = await client.gaze(FRAMES, **KNOBS)
        assert len(server_regions(server.url)) == 1
    with GazeClient(server.url, shared_memory=False) as client:
        np.testing.assert_array_equal(shared.fixations, client.gaze(FRAMES, **KNOBS).fixations)


def test_requests_at_once_use_regions_of_their_own(server):
    videos = [clips.synthetic_clip(3, 240, 320, seed) for seed in range(4)]
    with GazeClient(server.url, shared_memory=False) as client:
        want = [client.gaze(video, **KNOBS).generated.gazing_pos for video in videos]
    with GazeClient(server.url) as client, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda video: client.gaze(video, **KNOBS).generated.gazing_pos, videos * 3))
    for index, positions in enumerate(found):
        np.testing.assert_array_equal(positions, want[index % 4])


def test_small_frames_go_over_the_wire(server):
    with GazeClient(server.url) as client:
        client.gaze(clips.synthetic_clip(1, 40, 40, 1), **KNOBS)
        assert client_files() == set()


def test_where_the_server_cannot_open_the_memory_the_wire_is_used(server, monkeypatch, caplog):
    """As with a server in a container that has its own /dev/shm."""
    from autogaze_client import _shared_memory

    monkeypatch.setattr(_shared_memory.SystemRegion, "key", property(lambda region: "/nowhere-to-be-found"))
    with caplog.at_level(logging.DEBUG, "autogaze_client"), GazeClient(server.url) as client:
        result = client.gaze(FRAMES, **KNOBS)
        assert client.gaze(FRAMES, **KNOBS).tokens_per_frame.tolist() == result.tokens_per_frame.tolist()
    reasons = [record.message for record in caplog.records if "shared memory is not used" in record.message]
    assert len(reasons) == 1, "it is tried once"
    assert result.tokens_per_frame.tolist() == [13, 13, 13]


def test_a_full_shared_memory_falls_back_to_the_wire(server, monkeypatch, caplog):
    def full(descriptor, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with caplog.at_level(logging.DEBUG, "autogaze_client"), GazeClient(server.url) as client:
        assert client.gaze(FRAMES, **KNOBS).tokens_per_frame.tolist() == [13, 13, 13]
    assert any("No space left" in record.message for record in caplog.records)


def test_a_restarted_server_is_told_again(bundle):
    from autogaze_backend.serving.ports import choose_ports

    environment = {"AUTOGAZE_BUNDLE": str(bundle())}
    ports = choose_ports(TritonServerConfig(model_repository_path(), 0, 0, 0))
    config = TritonServerConfig(
        model_repository_path(), ports.http, ports.grpc, ports.metrics, environment=environment
    )
    client = None
    for _ in range(2):
        with TritonServer(config, on_log=lambda line: None) as running:
            running.wait_until_ready(60)
            client = client or GazeClient(running.url)
            client.wait_until_ready(30)
            assert client.gaze(FRAMES, **KNOBS).tokens_per_frame.tolist() == [13, 13, 13]
            assert len(server_regions(running.url)) == 1
    client.close()


def test_a_killed_client_leaves_no_memory_and_the_next_one_tells_the_server(server):
    code = (
        "import sys, time, numpy as np\n"
        "from autogaze_client import GazeClient\n"
        f"client = GazeClient({server.url!r})\n"
        "client.gaze(np.zeros((3, 240, 320, 3), np.uint8), gazing_ratio=0.05)\n"
        "print('done', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "done"
    assert len(client_files(process.pid)) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while client_files(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client_files(process.pid) == set()
    assert len(server_regions(server.url)) == 1, "the server still holds what the dead client registered"
    with GazeClient(server.url) as client:
        client.gaze(FRAMES, **KNOBS)
        assert len(server_regions(server.url)) == 1, "the dead client's region is gone, ours is there"
