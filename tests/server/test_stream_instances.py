"""``autogaze_stream`` with two instances in a real tritonserver: streams stay where they began, limits are shared."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_client import AutoGazeGenerateOutput, GazeClient, StreamExpired
from goldens import clips

pytestmark = pytest.mark.server

KNOBS = {"gazing_ratio": 0.3, "task_loss_requirement": 0.7}
PLACES = 4


@pytest.fixture(scope="module")
def two_instances(bundle) -> Iterator[TritonServer]:
    config = TritonServerConfig(
        model_repository_path(),
        0,
        0,
        0,
        environment={
            "AUTOGAZE_BUNDLE": str(bundle("release")),
            "AUTOGAZE_STREAM_INSTANCES": "2",
            "AUTOGAZE_MAX_STREAMS": str(PLACES),
        },
    )
    with TritonServer(config, on_log=lambda line: None) as running:
        running.wait_until_ready(timeout=180)
        yield running


def sample(server: TritonServer, name: str, **labels: str) -> float:
    """The sum of a metric's series with these labels."""
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    found = [line for line in lines if re.match(rf'{name}{{.*model="autogaze_stream"', line)]
    return sum(
        float(line.split()[-1])
        for line in found
        if all(f'{label}="{value}"' in line for label, value in labels.items())
    )


def settles(server: TritonServer, value: float, name: str, **labels: str) -> None:
    """Metrics are published once a second."""
    deadline = time.monotonic() + 30
    while sample(server, name, **labels) != value:
        assert time.monotonic() < deadline, f"{name} is {sample(server, name, **labels)}, not {value}"
        time.sleep(0.2)


def test_two_processes_serve_streams_that_stay_where_they_began(two_instances, model):
    loaded = model()

    def run(seed: int) -> np.ndarray:
        frames = clips.synthetic_clip(6, 90, 160, seed)
        with GazeClient(two_instances.url) as own, own.stream(**KNOBS) as stream:
            parts = [stream.push(frame).generated for frame in frames]
        return AutoGazeGenerateOutput.concatenate(parts).gazing_pos

    seeds = range(1, PLACES + 1)
    with ThreadPoolExecutor(PLACES) as pool:
        found = list(pool.map(run, seeds))
    for seed, positions in zip(seeds, found, strict=True):
        video = loaded.preprocess(clips.synthetic_clip(6, 90, 160, seed))[None]
        np.testing.assert_array_equal(positions, loaded.generate(video, **KNOBS).gazing_pos)
    settles(two_instances, 6 * PLACES, "autogaze_frames_total")
    settles(two_instances, 0, "autogaze_streams_open")


def test_places_are_those_of_the_model_and_both_instances_are_counted(two_instances):
    frame = clips.synthetic_clip(1, 90, 160, 3)[0]
    with GazeClient(two_instances.url) as client:
        before = sample(two_instances, "autogaze_stream_evictions_total", reason="evicted")
        streams = [client.stream(**KNOBS) for _ in range(PLACES)]
        for stream in streams:
            stream.push(frame)
        settles(two_instances, PLACES, "autogaze_streams_open")
        settles(two_instances, PLACES, "autogaze_slots_in_use")
        assert sample(two_instances, "autogaze_stream_evictions_total", reason="evicted") == before
        for stream in streams:
            stream.push(frame)
        late = client.stream(**KNOBS)
        late.push(frame)
        settles(two_instances, before + 1, "autogaze_stream_evictions_total", reason="evicted")
        settles(two_instances, PLACES, "autogaze_streams_open")
        expired = 0
        for stream in streams:
            try:
                stream.push(frame)
            except StreamExpired:
                expired += 1
        assert expired == 1, "the new stream must take one place, and no more"
        for stream in [*streams, late]:
            stream.close()
        settles(two_instances, 0, "autogaze_streams_open")
    assert sample(two_instances, "autogaze_engine_info") == 1


def test_each_instance_is_a_process(two_instances):
    names = sorted(stub.instance for stub in two_instances.stubs() if "autogaze_stream" in stub.model)
    assert names == ["autogaze_stream_0_0", "autogaze_stream_0_1"]
