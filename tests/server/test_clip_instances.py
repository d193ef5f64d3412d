"""``autogaze_generate`` with two instances in a real tritonserver: clips are spread, and nothing else changes."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import pytest
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_backend.serving.errors import ServerStartError
from autogaze_client import GazeClient, InvalidInputError
from goldens import clips

pytestmark = pytest.mark.server

KNOBS = {"gazing_ratio": 0.2, "task_loss_requirement": 0.7}
INSTANCES = ("autogaze_generate_0_0", "autogaze_generate_0_1")


def config(bundle, **environment: str) -> TritonServerConfig:
    variables = {
        "AUTOGAZE_BUNDLE": str(bundle),
        "AUTOGAZE_CLIP_INSTANCES": "2",
        "AUTOGAZE_LOG_FORMAT": "json",
        **environment,
    }
    return TritonServerConfig(model_repository_path(), 0, 0, 0, environment=variables)


@dataclass
class Server:
    """A server and its log."""

    running: TritonServer
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.running.url

    def served_by(self, prefix: str = "") -> Counter[str]:
        """Clips that each instance answered, of requests whose id begins so."""
        lines = [json.loads(line) for line in list(self.log) if line.startswith('{"time"')]
        return Counter(
            line["instance"]
            for line in lines
            if line.get("model") == "autogaze_generate"
            and line["message"] == "request served"
            and line["request_id"].startswith(prefix)
        )

    def logged(self, clips: int, prefix: str = "") -> Counter[str]:
        """``served_by``, once so many clips are in the log, which comes through a pipe."""
        deadline = time.monotonic() + 30
        while sum((counts := self.served_by(prefix)).values()) < clips:
            assert time.monotonic() < deadline, f"{counts}, not {clips} clips"
            time.sleep(0.05)
        return counts


@pytest.fixture(scope="module")
def server(bundle) -> Iterator[Server]:
    log: list[str] = []
    places = {"AUTOGAZE_MAX_ACTIVE_CLIPS": "2"}
    with TritonServer(config(bundle("release"), **places), on_log=log.append) as running:
        running.wait_until_ready(timeout=180)
        yield Server(running, log)


def sample(server: Server, name: str, **labels: str) -> float:
    """The sum of a metric's series with these labels."""
    with urllib.request.urlopen(server.running.metrics_url) as page:
        lines = page.read().decode().splitlines()
    found = [line for line in lines if re.match(rf'{name}{{.*model="autogaze_generate"', line)]
    return sum(
        float(line.split()[-1])
        for line in found
        if all(f'{label}="{value}"' in line for label, value in labels.items())
    )


def settles(server: Server, value: float, name: str, **labels: str) -> None:
    """Metrics are published once a second."""
    deadline = time.monotonic() + 30
    while sample(server, name, **labels) != value:
        assert time.monotonic() < deadline, f"{name} is {sample(server, name, **labels)}, not {value}"
        time.sleep(0.2)


def test_each_instance_is_a_process_and_warm_before_the_first_request(server):
    names = sorted(stub.instance for stub in server.running.stubs() if "autogaze_generate" in stub.model)
    assert names == list(INSTANCES)
    # Triton's own warm-up, once an instance.
    assert server.logged(2) == dict.fromkeys(INSTANCES, 1)
    settles(server, 1, "autogaze_engine_info")


def test_clips_are_the_same_and_both_instances_answer_them(server, model):
    frames = [clips.synthetic_clip(3, 90, 160, seed) for seed in range(1, 9)]

    def run(seed: int) -> list[np.ndarray]:
        with GazeClient(server.url) as client:
            results = [client.gaze(frames[seed], request_id=f"spread-{seed}", **KNOBS) for _ in range(3)]
        return [result.generated.gazing_pos for result in results]

    with ThreadPoolExecutor(len(frames)) as pool:
        found = list(pool.map(run, range(len(frames))))
    loaded = model()
    for clip, answers in zip(frames, found, strict=True):
        wanted = loaded.gaze(clip, **KNOBS).generated.gazing_pos
        for positions in answers:
            np.testing.assert_array_equal(positions, wanted)
    counts = server.logged(24, "spread-")
    # One that is busy takes nothing, so neither can have answered nearly all.
    assert sum(counts.values()) == 24
    assert min(counts[name] for name in INSTANCES) >= 6, counts
    settles(server, sum(server.served_by().values()), "autogaze_requests_total", outcome="ok")
    settles(server, 0, "autogaze_slots_in_use")


def test_one_bad_request_hurts_nobody(server):
    frames = clips.synthetic_clip(2, 90, 160, 3)

    def run(number: int) -> bool:
        with GazeClient(server.url) as client:
            if number % 3:
                return client.gaze(frames, **KNOBS).generated.gazing_pos.size > 0
            with pytest.raises(InvalidInputError, match="this server takes 256"):
                client.gaze(np.zeros((300, 32, 32, 3), np.uint8), **KNOBS)
            return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(run, range(18)))


def test_an_urgent_clip_overtakes_what_waits_for_either_instance(server):
    """What waits is in Triton's queue, and not in an instance beside another one: so priorities order it."""
    order: list[str] = []
    lock = threading.Lock()
    frames = clips.synthetic_clip(8, 90, 160, 3)

    def gaze(name: str, priority: int) -> None:
        with GazeClient(server.url) as client:
            client.gaze(frames, priority=priority, **KNOBS)
        with lock:
            order.append(name)

    with ThreadPoolExecutor(32) as pool:
        patient = [pool.submit(gaze, "patient", 3) for _ in range(24)]
        deadline = time.monotonic() + 60
        while not order:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        urgent = [pool.submit(gaze, "urgent", 1) for _ in range(2)]
        wait([*patient, *urgent])
    assert [future.exception() for future in [*patient, *urgent]] == [None] * 26
    last_urgent = max(index for index, name in enumerate(order) if name == "urgent")
    # Before them: what an instance runs, what it has taken, and what Triton has laid out for it.
    assert order[last_urgent:].count("patient") >= 10, order


def test_places_that_cannot_be_shared_out_are_refused_at_the_start(bundle):
    odd = config(bundle("release"), AUTOGAZE_MAX_ACTIVE_CLIPS="3")
    with TritonServer(odd, on_log=lambda line: None) as running, pytest.raises(ServerStartError) as raised:
        running.wait_until_ready(180)
    assert "max_active_clips is 3, but 2 instances share it evenly" in str(raised.value)
    assert "AUTOGAZE_CLIP_INSTANCES" in str(raised.value)
