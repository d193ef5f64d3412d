"""Two real servers behind the shipped balancer configurations: clips spread, streams stick, one server dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_client import AutoGazeGenerateOutput, GazeClient, ServerUnavailableError
from autogaze_client._stream import StreamSession
from goldens import clips

from deploy.deploy_helpers import BALANCERS, requests_of, takes_longer

pytestmark = pytest.mark.server

KNOBS = {"gazing_ratio": 0.05}
STREAMS = 10


def frames(count: int, seed: int = 3) -> np.ndarray:
    return clips.synthetic_clip(count, 90, 160, seed)


class Pair:
    """Two servers on fixed ports; one that was killed comes back on its own."""

    def __init__(self, bundle: Path) -> None:
        environment = {"AUTOGAZE_BUNDLE": str(bundle)}
        self.configs = [TritonServerConfig(model_repository_path(), 0, 0, 0, environment=environment)] * 2
        self.servers: list[TritonServer] = []
        for config in self.configs:
            server = TritonServer(config, on_log=lambda line: None)
            server.start()
            self.servers.append(server)
        for server in self.servers:
            server.wait_until_ready(120)
        self.urls = [server.url for server in self.servers]

    def kill(self, index: int) -> None:
        """The server's process, without a warning."""
        name = f"--id={self.servers[index].name}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if arguments[0].endswith(b"tritonserver") and name in arguments:
                os.kill(int(folder.name), signal.SIGKILL)

    def revive(self, index: int) -> None:
        self.servers[index].stop()
        host, port = self.urls[index].split(":")
        config = self.configs[index]
        again = TritonServerConfig(
            config.model_repository, 0, int(port), 0, host, environment=config.environment
        )
        self.servers[index] = TritonServer(again, on_log=lambda line: None)
        self.servers[index].start()
        self.servers[index].wait_until_ready(120)

    def close(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(TritonServer.stop, self.servers))


@pytest.fixture(scope="module")
def pair(bundle) -> Iterator[Pair]:
    both = Pair(bundle("release"))
    try:
        yield both
    finally:
        both.close()


@pytest.fixture(params=["nginx", pytest.param("envoy", marks=takes_longer)])
def balancer(request, pair, tmp_path) -> Iterator[str]:
    with BALANCERS[request.param](pair.urls, tmp_path) as url:
        yield url


def counted(pair: Pair, model: str, before: tuple[int, int] = (0, 0), total: int = 0) -> tuple[int, int]:
    """Requests of a model on either server since ``before``; Triton counts a moment after it has answered."""
    deadline = time.monotonic() + 10
    while True:
        now = [requests_of(url).get(model, 0) for url in pair.urls]
        since = (now[0] - before[0], now[1] - before[1])
        if sum(since) >= total or time.monotonic() > deadline:
            return since
        time.sleep(0.05)


def wait_until_both_serve(client: GazeClient, pair: Pair) -> None:
    """A balancer may begin before it has found both servers healthy."""
    frame = frames(1)[0]
    before = counted(pair, "autogaze_stream")
    for sent in range(1, 200):
        with client.stream(restart=True, **KNOBS) as stream:
            stream.push(frame)
        if min(counted(pair, "autogaze_stream", before, 2 * sent)) > 0:
            return
    raise AssertionError("streams never reached one of the servers")


def push_with_patience(stream: StreamSession, frame: np.ndarray) -> None:
    """As a camera would: what was on its way when the connection broke is refused, and the caller decides."""
    deadline = time.monotonic() + 15
    while True:
        try:
            stream.push(frame)
            return
        except ServerUnavailableError:
            assert time.monotonic() < deadline, "the stream found no server"
            time.sleep(0.1)


def test_clips_spread_streams_stick_and_move_when_their_server_dies(balancer, pair):
    with GazeClient(balancer, shared_memory=False) as client:
        client.wait_until_ready(30)
        wait_until_both_serve(client, pair)

        before = counted(pair, "autogaze")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda seed: client.gaze(frames(4, seed), **KNOBS), range(24)))
        clips_served = counted(pair, "autogaze", before, 24)
        assert sum(clips_served) == 24
        # How many each serves is a matter of its speed; with eight on their way no server stays idle.
        assert min(clips_served) > 0, f"clips went to {clips_served}"

        # A stream that changed its server would be told to start anew.
        streams = [client.stream(restart=True, **KNOBS) for _ in range(STREAMS)]
        video = frames(6)
        pushed: list[list[AutoGazeGenerateOutput]] = [[] for _ in streams]
        at_start = counted(pair, "autogaze_stream")
        for frame in video[:3]:
            for stream, mine in zip(streams, pushed, strict=True):
                mine.append(stream.push(frame).generated)
        served = counted(pair, "autogaze_stream", at_start, 3 * STREAMS)
        assert sum(served) == 3 * STREAMS
        assert min(served) >= 3, f"every stream is on one server: {served}"
        assert min(served) % 3 == 0, f"a stream's frames were split: {served}"
        assert [stream.restarts for stream in streams] == [0] * STREAMS
        whole = AutoGazeGenerateOutput.concatenate(pushed[0])
        for mine in pushed[1:]:
            same = AutoGazeGenerateOutput.concatenate(mine)
            np.testing.assert_array_equal(same.gazing_pos, whole.gazing_pos)

        pair.kill(0)
        lost = served[0] // 3
        for stream in streams:
            push_with_patience(stream, video[3])
        assert sum(stream.restarts for stream in streams) == lost, "only the dead server's streams start anew"
        assert {stream.restarts for stream in streams} <= {0, 1}
        for stream in streams:
            for frame in video[4:]:
                assert stream.push(frame).tokens_per_frame.tolist() == [13]
        for seed in range(4):
            assert client.gaze(frames(1, seed), **KNOBS).tokens_per_frame.tolist() == [13]
        for stream in streams:
            stream.close()
    pair.revive(0)
