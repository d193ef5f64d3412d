"""The server's processes die or hang under load: what callers get, and that a supervised server comes back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_backend.serving import SupervisedServer, SupervisionConfig, SupervisionState
from autogaze_client import GazeClient, ServerUnavailableError, StreamExpired, VideoWriter
from faults.fault_helpers import (
    KNOBS,
    LONG,
    Users,
    clip,
    config,
    eventually,
    metric,
    serving,
    signal_stub,
)
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server

# From detection to serving again, measured by the supervision itself.
PROMISE_SECONDS = 5.0


@contextmanager
def supervised(
    bundle: Path, supervision: SupervisionConfig | None = None, **environment: str
) -> Iterator[SupervisedServer]:
    with SupervisedServer(config(bundle, **environment), supervision, on_log=lambda line: None) as server:
        server.wait_until_ready(LONG)
        yield server


def restarted(server: SupervisedServer, times: int) -> bool:
    status = server.status
    assert status.is_live, status
    return status.restarts == times and status.is_ready


@pytest.mark.parametrize("instances", ["1", "2"])
def test_a_stub_killed_under_load_costs_the_calls_in_flight_and_no_more(bundle, model, instances):
    several = {"AUTOGAZE_CLIP_INSTANCES": instances}
    with supervised(bundle(), **several) as server, Users(server.url, clips=3, streams=1) as users:
        users.wait_until_served("clip", "frame", times=2)
        killed = time.monotonic()
        signal_stub(server.server, "autogaze_generate", signal.SIGKILL)
        eventually(lambda: restarted(server, 1), "a restart")
        back = time.monotonic()
        users.wait_until_served("clip", "frame", since=back, times=2)
    wanted = model().gaze(clip(4), **KNOBS).generated.gazing_pos
    for outcome in users.outcomes:
        if outcome.kind == "clip" and outcome.error is None:
            np.testing.assert_array_equal(outcome.tokens, wanted)
    hit = [outcome for outcome in users.errors() if outcome.kind == "clip" and outcome.began < killed]
    assert hit, "no clip was in flight, so nothing was shown"
    # Not one of them waited for its own deadline: the end of the server ended them.
    assert all(outcome.ended < back for outcome in hit)
    assert {type(outcome.error) for outcome in users.errors() if outcome.kind == "clip"} == {
        ServerUnavailableError
    }
    lost = [type(outcome.error) for outcome in users.errors() if outcome.kind == "frame"]
    assert set(lost) <= {ServerUnavailableError, StreamExpired}
    assert lost.count(StreamExpired) == 1, (
        "the new server does not know the stream; its next frame starts anew"
    )


def test_a_stream_that_may_restart_goes_on_by_itself(bundle, model):
    frames = clip(3)
    loaded = model()
    with supervised(bundle()) as server, GazeClient(server.url) as client:
        with client.stream(restart=True, **KNOBS) as stream:
            stream.push(frames[0])
            signal_stub(server.server, "autogaze_stream", signal.SIGKILL)
            eventually(lambda: restarted(server, 1), "a restart")
            result = stream.push(frames[1])
            assert stream.restarts == 1
        wanted = loaded.generate(loaded.preprocess(frames[1:2])[None], **KNOBS).gazing_pos
        np.testing.assert_array_equal(result.generated.gazing_pos, wanted)


def test_without_supervision_a_caller_is_told_that_the_process_is_gone(bundle):
    """What Triton calls INTERNAL is no fault of the request."""
    with serving(bundle()) as server, GazeClient(server.url) as client:
        signal_stub(server, "autogaze_stream", signal.SIGKILL)
        with pytest.raises(ServerUnavailableError, match=r"autogaze_stream.*process has died.*restart"):
            client.stream(**KNOBS).push(clip(1)[0])
        assert client.gaze(clip(1), **KNOBS).tokens_per_frame.sum() > 0, "the other models go on"
        server.kill()  # an orderly stop waits for the dead


@pytest.mark.parametrize(
    "name", ["autogaze_generate", pytest.param("autogaze_stream", marks=pytest.mark.faults)]
)
def test_a_model_that_hangs_fails_its_canary_and_is_replaced(bundle, name):
    """Its process lives and Triton calls it ready; only an answer would show that it works."""
    supervision = SupervisionConfig(canary_interval=0.3, canary_timeout=2.0, canary_failures=2)
    with supervised(bundle(), supervision) as server, GazeClient(server.url) as client:
        signal_stub(server.server, name, signal.SIGSTOP)
        eventually(lambda: server.status.state is SupervisionState.FAILING, "a failed canary")
        # The canary's own time, or Triton's shorter patience with a stub.
        assert f"canary of {name} version 1 failed: " in server.status.reason
        eventually(lambda: restarted(server, 1), "a restart")
        assert "2 canaries in a row failed" in server.status.reason
        assert client.gaze(clip(1), **KNOBS).tokens_per_frame.sum() > 0


@pytest.mark.faults
def test_a_server_that_is_only_busy_is_left_alone(bundle):
    """One clip at a time, and two long ones before the canary: it is late for minutes, but the engine steps."""
    supervision = SupervisionConfig(canary_interval=0.2, canary_timeout=2.5, canary_failures=1)
    seen: list[SupervisionState] = []
    with supervised(bundle(), supervision, AUTOGAZE_MAX_ACTIVE_CLIPS="1") as server:
        name = server.server.name

        def gaze() -> None:
            with GazeClient(server.url) as client, pytest.raises(ServerUnavailableError):
                client.gaze(clip(250, size=(64, 64)), gazing_ratio=1.0)

        callers = [threading.Thread(target=gaze) for _ in range(2)]
        for caller in callers:
            caller.start()
        watched = time.monotonic() + 8
        while time.monotonic() < watched:
            seen.append(server.status.state)
            time.sleep(0.1)
        assert server.server.name == name
        assert any(caller.is_alive() for caller in callers), "they were done before anyone could be late"
        server.server.kill()
        for caller in callers:
            caller.join(LONG)
    assert set(seen) == {SupervisionState.READY}


@pytest.mark.faults
def test_every_stub_in_turn_is_replaced_within_the_promise(bundle):
    supervision = SupervisionConfig(backoff=0.01, max_restarts=10)
    taken = {}
    with supervised(bundle(), supervision) as server, Users(server.url) as users:
        models = ("autogaze_generate", "autogaze_stream", "autogaze_ingest")
        for times, name in enumerate(models, 1):
            users.wait_until_served("clip", "frame", since=time.monotonic())
            signal_stub(server.server, name, signal.SIGKILL)
            eventually(lambda times=times: restarted(server, times), f"restart {times}")
            taken[name] = server.status.last_restart_seconds
        users.wait_until_served("clip", "frame", since=time.monotonic(), times=3)
    assert {type(outcome.error) for outcome in users.errors()} <= {ServerUnavailableError, StreamExpired}
    # Of a machine that does nothing else; what others take of it comes on top.
    allowed = PROMISE_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert max(taken.values()) <= allowed, (taken, os.getloadavg())


@pytest.mark.faults
def test_the_server_itself_is_killed_again_and_again(bundle):
    supervision = SupervisionConfig(backoff=0.01, max_restarts=10)
    with supervised(bundle(), supervision) as server, Users(server.url) as users:
        for times in range(1, 4):
            users.wait_until_served("clip", "frame", since=time.monotonic())
            os.kill(server.server.process().pid, signal.SIGKILL)
            eventually(lambda times=times: restarted(server, times), f"restart {times}")
        users.wait_until_served("clip", "frame", since=time.monotonic(), times=3)
    assert {type(outcome.error) for outcome in users.errors()} <= {ServerUnavailableError, StreamExpired}


def test_a_video_whose_decoders_are_dead_is_unavailable_and_frames_are_served(bundle, tmp_path):
    """By the status on the wire, and by our own count."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=25) as writer:
        for frame in clip(2):
            writer.write(frame)
    ask = triton.InferInput("VIDEO", [1, path.stat().st_size], "UINT8")
    ask.set_data_from_numpy(np.frombuffer(path.read_bytes(), np.uint8)[None])
    with serving(bundle()) as server, triton.InferenceServerClient(server.url) as raw:
        raw.infer("autogaze", [ask])
        for stub in server.stubs():
            if Path(stub.model).parents[1].name == "autogaze_ingest":
                os.kill(stub.pid, signal.SIGKILL)
        with pytest.raises(InferenceServerException) as raised:
            raw.infer("autogaze", [ask])
        assert raised.value.status() == "StatusCode.UNAVAILABLE"
        assert "autogaze_ingest cannot decode the video now" in raised.value.message()
        with GazeClient(server.url) as client:
            assert client.gaze(clip(2), **KNOBS).source_size.frames == 2
        eventually(
            lambda: metric(
                server, "autogaze_requests_total", model="autogaze_generate", outcome="unavailable"
            ),
            "counted as unavailable",
        )
        server.kill()  # an orderly stop waits for the dead
