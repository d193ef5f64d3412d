"""SIGTERM with requests in flight: they finish or get UNAVAILABLE, and none hangs."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest
from autogaze_backend.serving import TritonServer
from autogaze_client import AutoGazeGenerateOutput, GazeClient, ServerUnavailableError, StreamExpired
from faults.fault_helpers import KNOBS, LONG, Users, clip, config, eventually
from serving.serving_helpers import run_command, server_processes, wait_for

pytestmark = pytest.mark.server


def test_calls_in_flight_finish_or_are_told(bundle, model):
    server = TritonServer(config(bundle()), on_log=lambda line: None)
    server.start()
    try:
        server.wait_until_ready(LONG)
        with Users(server.url, clips=3, streams=2, frames=8) as users:
            users.wait_until_served("clip", "frame")
            stopped = time.monotonic()
            server.stop()
    finally:
        server.kill()
    wanted = model().gaze(clip(8), **KNOBS).generated.gazing_pos
    done = [outcome for outcome in users.outcomes if outcome.kind == "clip" and outcome.error is None]
    for outcome in done:
        np.testing.assert_array_equal(outcome.tokens, wanted)
    assert any(outcome.began < stopped < outcome.ended for outcome in users.outcomes), "nothing was in flight"
    # The Users' own end shows that no call hung.
    told = [outcome.error for outcome in users.errors()]
    assert told
    assert [error for error in told if not isinstance(error, ServerUnavailableError)] == []


def test_a_clip_that_fits_the_exit_timeout_is_finished_and_one_that_does_not_is_told(bundle):
    server = TritonServer(config(bundle(), settings={"exit_timeout": 3.0}), on_log=lambda line: None)
    answers: dict[str, object] = {}

    def ask(name: str, frames: int, ratio: float) -> None:
        with GazeClient(server.url) as client:
            try:
                answers[name] = client.gaze(clip(frames, size=(32, 32)), gazing_ratio=ratio)
            except Exception as error:
                answers[name] = error

    server.start()
    try:
        server.wait_until_ready(LONG)
        callers = [
            threading.Thread(target=ask, args=("short", 1, 0.05)),
            threading.Thread(target=ask, args=("endless", 256, 1.0)),
        ]
        for caller in callers:
            caller.start()
        time.sleep(0.3)  # both are on their way; if the short one is answered by now, so much the better
        server.stop()
        for caller in callers:
            caller.join(LONG)
            assert not caller.is_alive()
    finally:
        server.kill()
    assert not isinstance(answers["short"], Exception), answers
    assert isinstance(answers["endless"], ServerUnavailableError), answers


@pytest.mark.faults
@pytest.mark.parametrize("signals", [1, 2])
def test_the_command_is_told_to_end_under_load(bundle, signals):
    """As process managers do, once, and as the impatient do, twice."""
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "supervisor")]
    process = run_command("serve", "--bundle", str(bundle()), *ports)
    drain = threading.Thread(target=process.stderr.read)
    drain.start()
    url = next(line.split("gRPC ")[1].split(",")[0] for line in process.stdout if "ready: gRPC" in line)
    with Users(url, clips=2, streams=1) as users:
        users.wait_until_served("clip", "frame")
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            eventually(lambda: "stopping" in process.stdout.readline(), "a first reaction")
            process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == (0 if signals == 1 else 130)
    drain.join(LONG)
    assert {type(outcome.error) for outcome in users.errors()} <= {ServerUnavailableError, StreamExpired}
    assert users.errors()
    assert wait_for(lambda: not server_processes(process.pid))


def test_streams_that_nobody_uses_hold_up_no_stop(bundle):
    log: list[str] = []
    server = TritonServer(config(bundle(), settings={"exit_timeout": 60.0}), on_log=log.append)
    server.start()
    try:
        server.wait_until_ready(LONG)
        with GazeClient(server.url) as client:
            for _ in range(3):
                client.stream(**KNOBS).push(clip(1)[0])
            server.stop()
    finally:
        server.kill()
    # Triton counts its exit timeout down in the log.
    assert any("'autogaze_stream' (version 1) has 3 in-flight" in line for line in log)
    assert not any("Timeout 30:" in line or "Exit timeout expired" in line for line in log)


def test_a_stream_in_use_is_served_until_it_ends(bundle, model):
    frames = clip(14)
    log: list[str] = []
    server = TritonServer(config(bundle(), settings={"exit_timeout": 60.0}), on_log=log.append)
    server.start()
    try:
        server.wait_until_ready(LONG)
        with GazeClient(server.url) as client:
            client.stream(**KNOBS).push(frames[0])  # and one that is not
            stream = client.stream(**KNOBS)
            parts = [stream.push(frames[0]).generated]
            stopper = threading.Thread(target=server.stop)
            stopper.start()
            for frame in frames[1:]:
                time.sleep(0.3)
                parts.append(stream.push(frame).generated)
            with pytest.raises(ServerUnavailableError, match="stopping"):
                client.gaze(frames, **KNOBS)
            stream.close()
            stopper.join(LONG)
            assert not stopper.is_alive()
    finally:
        server.kill()
    assert not any("Timeout 30:" in line for line in log)
    loaded = model()
    wanted = loaded.generate(loaded.preprocess(frames)[None], **KNOBS).gazing_pos
    np.testing.assert_array_equal(AutoGazeGenerateOutput.concatenate(parts).gazing_pos, wanted)
