"""Two checkpoints in one real server: each under its version, promotion and rollback under load, priorities."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_backend import GazeModel
from autogaze_backend.serving import ModelControlMode, TritonServer, TritonServerConfig
from autogaze_backend.serving.versions import write_repository
from autogaze_client import AutoGazeError, GazeClient, GazeResult, NotFoundError, ServerUnavailableError
from autogaze_export import build
from goldens import checkpoint, clips

pytestmark = pytest.mark.server

KNOBS = {"gazing_ratio": 0.1}
FRAMES = clips.synthetic_clip(2, 90, 160, 5)
QUEUE = 8


@pytest.fixture(scope="module")
def bundles(bundle, tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("second")
    other = build(checkpoint.write_checkpoint(folder / "checkpoint", seed=8), folder / "bundle")
    return {1: bundle("release"), 2: other}


@pytest.fixture(scope="module")
def wanted(bundles) -> dict[int, np.ndarray]:
    """The tokens of each version, from the library."""
    tokens = {
        version: GazeModel.load(path).gaze(FRAMES, **KNOBS).generated.gazing_pos
        for version, path in bundles.items()
    }
    assert not np.array_equal(tokens[1], tokens[2])
    return tokens


@pytest.fixture(scope="module")
def repository(bundles, tmp_path_factory) -> Path:
    out = write_repository(tmp_path_factory.mktemp("served") / "repository", bundles, current=1)
    # A short queue, so that a test can fill it.
    config = out / "autogaze_generate" / "config.pbtxt"
    text = config.read_text()
    assert "max_queue_size: 256" in text
    config.write_text(text.replace("max_queue_size: 256", f"max_queue_size: {QUEUE}"))
    return out


@pytest.fixture(scope="module")
def server(repository) -> Iterator[TritonServer]:
    config = TritonServerConfig(
        repository,
        0,
        0,
        0,
        model_control_mode=ModelControlMode.EXPLICIT,
        load_models=("autogaze", "autogaze_v1", "autogaze_v2", "autogaze_stream"),
        environment={"AUTOGAZE_MAX_ACTIVE_CLIPS": "1"},
    )
    with TritonServer(config, on_log=lambda line: None) as running:
        running.wait_until_ready(120)
        yield running


def version_of(result: GazeResult, wanted: dict[int, np.ndarray]) -> int:
    (found,) = [
        number for number, tokens in wanted.items() if np.array_equal(tokens, result.generated.gazing_pos)
    ]
    return found


def reload(server: TritonServer, model: str) -> None:
    with triton.InferenceServerClient(server.url) as control:
        control.load_model(model)


def test_each_version_answers_clips_with_its_own_tokens(server, wanted):
    for version, expected in ((None, 1), (1, 1), (2, 2)):
        with GazeClient(server.url, version=version) as client:
            assert version_of(client.gaze(FRAMES, **KNOBS), wanted) == expected
    with GazeClient(server.url, version=3) as client, pytest.raises(NotFoundError, match="autogaze_v3"):
        client.gaze(FRAMES, **KNOBS)


def test_streams_follow_the_current_version_and_a_newer_one_waits_for_its_turn(server, wanted):
    def first_frame(version: int | None) -> np.ndarray:
        with GazeClient(server.url, version=version) as client, client.stream(**KNOBS) as stream:
            return stream.push(FRAMES[0]).generated.gazing_pos

    for version in (None, 1):
        np.testing.assert_array_equal(first_frame(version), wanted[1][:, :26])
    with pytest.raises(AutoGazeError, match=r"autogaze_stream.*version 2|version 2.*autogaze_stream"):
        first_frame(2)


def test_promotion_and_rollback_under_load_lose_no_request(server, repository, wanted):
    stop = threading.Event()
    seen: tuple[list[int], ...] = ([], [])
    failures: list[Exception] = []

    def load(answers: list[int]) -> None:
        with GazeClient(server.url) as client:
            while not stop.is_set():
                try:
                    answers.append(version_of(client.gaze(FRAMES, **KNOBS), wanted))
                except AutoGazeError as error:
                    failures.append(error)

    def reached(version: int) -> bool:
        """Whether every user gets this version, with a request that began after one that did."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if all(answers[-2:] == [version] * 2 for answers in seen):
                return True
            time.sleep(0.02)
        return False

    with ThreadPoolExecutor(len(seen)) as pool:
        users = [pool.submit(load, answers) for answers in seen]
        try:
            assert reached(1)
            for current in (2, 1):
                write_repository(repository, current=current)
                reload(server, "autogaze")
                assert reached(current)
        finally:
            stop.set()
        for user in users:
            user.result()
    assert failures == []
    for answers in seen:
        changes = [after for before, after in pairwise(answers) if after != before]
        assert changes == [2, 1]
    with GazeClient(server.url, version=2) as client:
        assert version_of(client.gaze(FRAMES, **KNOBS), wanted) == 2, "who asked for it keeps it"


def test_a_promoted_version_serves_streams_and_the_older_one_stays(server, repository, wanted):
    write_repository(repository, current=2)
    try:
        reload(server, "autogaze_stream")
        for version, expected in ((None, 2), (2, 2), (1, 1)):
            with GazeClient(server.url, version=version) as client, client.stream(**KNOBS) as stream:
                tokens = stream.push(FRAMES[0]).generated.gazing_pos
            np.testing.assert_array_equal(tokens, wanted[expected][:, :26])
    finally:
        write_repository(repository, current=1)


def test_a_full_queue_refuses_its_own_level_and_urgent_clips_overtake(server):
    """One clip runs at a time; a batch of 16 has left the queue with it, eight of a level wait, others are refused."""
    order: list[str] = []
    lock = threading.Lock()

    # What waits must still wait when the urgent ones arrive, on a busy machine too.
    frames = {"patient": np.tile(FRAMES, (6, 1, 1, 1)), "urgent": FRAMES}

    def gaze(name: str, priority: int) -> None:
        with GazeClient(server.url) as client:
            client.gaze(frames[name], priority=priority, **KNOBS)
        with lock:
            order.append(name)

    def refusals() -> int:
        return sum(future.done() for future in patient) - len(order)

    with ThreadPoolExecutor(80) as pool:
        patient = [pool.submit(gaze, "patient", 3) for _ in range(64)]
        deadline = time.monotonic() + 20
        while refusals() < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        urgent = [pool.submit(gaze, "urgent", 1) for _ in range(4)]
        wait([*patient, *urgent])
    refused = [error for future in patient if (error := future.exception()) is not None]
    assert len(refused) >= 10, "the queue of level 3 was never full"
    assert {type(error) for error in refused} == {ServerUnavailableError}
    assert "Exceeds maximum queue size" in str(refused[0])
    assert [future.exception() for future in urgent] == [None] * 4, "level 1 has a queue of its own"
    last_urgent = max(index for index, name in enumerate(order) if name == "urgent")
    overtaken = order[last_urgent:].count("patient")
    assert overtaken >= QUEUE // 2, f"urgent clips waited behind patient ones: {order}"
