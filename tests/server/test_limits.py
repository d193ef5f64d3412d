"""Limits, deadlines and cancellation on a real tritonserver: what is refused, and that the engine is let go."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_backend.serving import ServerStartError, TritonServer, TritonServerConfig, model_repository_path
from autogaze_client import DeadlineExceededError, GazeClient, InvalidInputError, ServerUnavailableError
from goldens import clips
from server.test_server import UNSET, request_inputs
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server

LIMITS = {
    "AUTOGAZE_MAX_FRAMES": "240",
    "AUTOGAZE_MAX_PIXELS": "250000",
    "AUTOGAZE_MAX_CLIP_BYTES": "2000000",
    "AUTOGAZE_MAX_VIDEO_BYTES": "100000",
    "AUTOGAZE_MAX_SECONDS": "5",
    "AUTOGAZE_MAX_TILES": "4",
    "AUTOGAZE_MAX_ACTIVE_CLIPS": "1",
    "AUTOGAZE_MAX_WAIT_SECONDS": "2",
    "AUTOGAZE_MAX_STREAMS": "2",
    "AUTOGAZE_PROTECT_SECONDS": "20",
    # Cancellation is logged in any case; this shows that the format does not matter.
    "AUTOGAZE_LOG_FORMAT": "json",
}
LONG = np.zeros((240, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def log() -> list[str]:
    return []


@pytest.fixture(scope="module")
def small_server(bundle, log) -> Iterator[TritonServer]:
    config = TritonServerConfig(
        model_repository_path(), 0, 0, 0, environment={"AUTOGAZE_BUNDLE": str(bundle("release")), **LIMITS}
    )
    with TritonServer(config, on_log=log.append) as running:
        running.wait_until_ready(timeout=120)
        yield running


@pytest.fixture
def client(small_server):
    with GazeClient(small_server.url) as connected:
        yield connected


@pytest.fixture
def raw(small_server):
    with triton.InferenceServerClient(small_server.url) as connected:
        yield connected


def metric(server: TritonServer, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    total = 0.0
    for line in lines:
        if match := re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line):
            found = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
            if labels.items() <= found.items():
                total += float(match[2])
    return total


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def engine_rests(server: TritonServer) -> bool:
    """No row holds a cache slot, and the engine is not called any more (metrics are published once a second)."""

    def steps() -> float:
        return metric(server, "autogaze_steps_total", model="autogaze_generate")

    def rests() -> bool:
        before = steps()
        time.sleep(2.5)
        return steps() == before and metric(server, "autogaze_slots_in_use", model="autogaze_generate") == 0

    return eventually(rests)


def long_clip(**changes: np.ndarray) -> list[triton.InferInput]:
    return request_inputs(
        {"FRAMES": LONG[None], **UNSET, "GAZING_RATIO": np.ones((1, 1), np.float32), **changes}
    )


REFUSED = {
    "max_frames": ({"frames": np.zeros((241, 8, 8, 3), np.uint8)}, "241 frames; this server takes 240"),
    "max_pixels": ({"frames": np.zeros((1, 501, 500, 3), np.uint8)}, "250500 pixels"),
    "max_clip_bytes": ({"frames": np.zeros((3, 500, 500, 3), np.uint8)}, "2250000 bytes"),
    "max_video_bytes": ({"frames": bytes(100_001)}, "the video has 100001 bytes"),
    "max_tiles": (
        {"frames": np.zeros((1, 225, 450, 3), np.uint8), "mode": "tiled_full_resolution"},
        "cut into 6 tiles; this server takes 4",
    ),
}


@pytest.mark.parametrize("limit", REFUSED)
def test_the_error_names_the_value_the_limit_and_its_variable(limit, client):
    request, value = REFUSED[limit]
    with pytest.raises(
        InvalidInputError, match=rf"{value}.*\({limit}; its operator may set AUTOGAZE_{limit.upper()}\); "
    ):
        client.gaze(**request)
    assert client.gaze(clips.synthetic_clip(1, 60, 80, 1), gazing_ratio=0.02).tokens_per_frame.tolist() == [5]


def test_target_scales_beyond_the_tiles_are_refused_before_they_are_resized(client):
    """448×448 pixels with patches of 2: 224 cells a side, 16×16 tiles."""
    with pytest.raises(InvalidInputError, match=r"cut into 256 tiles; this server takes 4 \(max_tiles"):
        client.gaze(
            clips.synthetic_clip(1, 60, 80, 1), target_scales=[56, 112, 224, 448], target_patch_size=2
        )


def test_a_video_that_lasts_too_long_is_refused(client, tmp_path):
    from autogaze_client import VideoWriter

    path = tmp_path / "long.mp4"
    with VideoWriter(path, fps=2) as writer:
        for _ in range(12):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(InvalidInputError, match=r"lasts 6.00 s; this server takes 5 s \(max_seconds"):
        client.gaze(path.read_bytes())


def test_the_size_limits_hold_without_the_ensemble(raw):
    with pytest.raises(InferenceServerException, match="241 frames; this server takes 240") as caught:
        raw.infer("autogaze_generate", long_clip(FRAMES=np.zeros((1, 241, 8, 8, 3), np.uint8)))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_an_expired_request_lets_the_engine_go_through_the_ensemble_too(client, small_server, log):
    """The client's timeout travels: the step at hand ends by itself, although nobody tells it of a cancellation."""
    expired = metric(
        small_server, "autogaze_requests_total", model="autogaze_generate", outcome="unavailable"
    )
    with pytest.raises(DeadlineExceededError):
        client.gaze(LONG, gazing_ratio=1.0, timeout=1.5)
    assert eventually(lambda: any("1.5 s that the caller allowed were over after" in line for line in log)), (
        log[-5:]
    )
    (line,) = [line for line in log if "1.5 s that the caller allowed were over after" in line]
    done = int(re.search(r"over after (\d+) of 240 frames", line)[1])
    assert done < 240
    assert engine_rests(small_server)
    assert (
        metric(small_server, "autogaze_requests_total", model="autogaze_generate", outcome="unavailable")
        == expired + 1
    )


def test_a_cancelled_request_lets_the_engine_go(raw, small_server):
    assert engine_rests(small_server), "it has clips of other tests"
    cancelled = metric(
        small_server, "autogaze_requests_total", model="autogaze_generate", outcome="cancelled"
    )
    ended = threading.Event()
    call = raw.async_infer("autogaze_generate", long_clip(), callback=lambda result, error: ended.set())
    assert eventually(
        lambda: metric(small_server, "autogaze_slots_in_use", model="autogaze_generate") == 1
    ), "it never began"
    call.cancel()
    assert ended.wait(30)
    assert engine_rests(small_server)
    assert eventually(
        lambda: (
            metric(small_server, "autogaze_requests_total", model="autogaze_generate", outcome="cancelled")
            == cancelled + 1
        )
    )


def test_what_waits_for_a_place_leaves_when_its_time_is_over_or_the_line_is_too_slow(
    raw, client, small_server
):
    """One clip fills the only place; a request with a timeout of its own, and one without, are shed meanwhile."""
    steps = metric(small_server, "autogaze_steps_total", model="autogaze_generate")
    ended = threading.Event()
    blocker = raw.async_infer("autogaze_generate", long_clip(), callback=lambda result, error: ended.set())
    assert eventually(
        lambda: metric(small_server, "autogaze_steps_total", model="autogaze_generate") > steps
    ), "it never began"
    short = {"FRAMES": np.zeros((1, 1, 32, 32, 3), np.uint8)}

    def send(timeout: int | None) -> str:
        with triton.InferenceServerClient(small_server.url) as own:
            try:
                own.infer("autogaze_generate", long_clip(**short), timeout=timeout, client_timeout=120)
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"
        return "served"

    with ThreadPoolExecutor(2) as pool:
        patient, hasty = pool.submit(send, None), pool.submit(send, 300_000)
        answers = [hasty.result(), patient.result()]
    assert not ended.is_set(), "the clip before them was finished too early to show anything"
    blocker.cancel()
    assert ended.wait(30)
    # Which of the two queues the hasty one was in when its time ended is Triton's affair.
    assert re.match(
        r"StatusCode.UNAVAILABLE .*(Request timeout expired|0.3 s that the caller allowed)", answers[0]
    )
    assert re.match(
        r"StatusCode.UNAVAILABLE .*waited 2 s for one of 1 places.*AUTOGAZE_MAX_ACTIVE_CLIPS", answers[1]
    )
    assert client.gaze(clips.synthetic_clip(1, 60, 80, 1), gazing_ratio=0.02).tokens_per_frame.tolist() == [5]


def test_a_server_with_limits_that_triton_would_undo_does_not_start(bundle):
    environment = {"AUTOGAZE_BUNDLE": str(bundle("release")), "AUTOGAZE_MAX_STREAMS": "513"}
    config = TritonServerConfig(model_repository_path(), 0, 0, 0, environment=environment)
    with (
        TritonServer(config, on_log=lambda line: None) as server,
        pytest.raises(ServerStartError, match=r"max_streams is 513, but config\.pbtxt lets 512 sequences in"),
    ):
        server.wait_until_ready(timeout=120)


def test_a_new_stream_is_shed_while_all_places_are_in_use(client):
    frame = clips.synthetic_clip(1, 60, 80, 1)[0]
    first, second, third = (client.stream(gazing_ratio=0.02) for _ in range(3))
    for _ in range(2):
        first.push(frame)
        second.push(frame)
    with pytest.raises(
        ServerUnavailableError, match=r"all 2 streams .* within 20 s.*AUTOGAZE_PROTECT_SECONDS"
    ):
        third.push(frame)
    assert first.push(frame).tokens_per_frame.tolist() == [5]
    first.close()
    again = client.stream(gazing_ratio=0.02)
    assert again.push(frame).tokens_per_frame.tolist() == [5]
    for stream in (second, again):
        stream.close()
