from __future__ import annotations

import socket
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest
from autogaze_client import (
    AsyncGazeClient,
    AutoGazeInferenceMode,
    DeadlineExceededError,
    GazeClient,
    InferenceError,
    InvalidInputError,
    ModelStatistics,
    NotFoundError,
    ServerStatistics,
    ServerUnavailableError,
    Timeouts,
    TLSConfig,
    VideoDecodeError,
    VideoReader,
)
from client_helpers import AsyncFakeServer
from tritonclient.grpc import service_pb2_grpc

CLIP = np.full((3, 12, 16, 3), 7, np.uint8)


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_an_array_is_one_clip(client, server):
    result = client.gaze(CLIP, gazing_ratio=0.5)
    assert len(server.requests) == 1
    assert set(server.requests[0]) == {"FRAMES", "MODE", "GAZING_RATIO"}
    assert (result.source_size.frames, result.source_size.height, result.source_size.width) == (3, 12, 16)
    assert result.mode is AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT
    assert result.timings.request_ms > 0
    assert result.timings.requests == 1


def test_rgba_frames_are_sent_as_they_are(client, server):
    client.gaze(np.zeros((1, 4, 4, 4), np.uint8))
    assert server.requests[0]["FRAMES"].shape == (1, 1, 4, 4, 4)


def test_bytes_are_decoded_by_the_server(client, server, video):
    content = video.read_bytes()
    client.gaze(content)
    assert server.requests[0]["VIDEO"].tobytes() == content
    assert "FRAMES" not in server.requests[0]


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_a_path_is_sent_in_windows_and_joined_in_order(client, server, video, as_type):
    result = client.gaze(as_type(video))
    assert sorted(len(request["FRAMES"][0]) for request in server.requests) == [5, 16, 16]
    assert result.source_size.frames == 37
    assert len(result.trace) == 37
    assert result.timings.requests == 3
    parts = [client.gaze(window) for window in VideoReader(video).windows(16)]
    joined = np.concatenate([part.generated.gazing_pos % 265 for part in parts], axis=1)
    np.testing.assert_array_equal(result.generated.gazing_pos % 265, joined)
    assert [frame.points for frame in result.trace.frames] == [
        frame.points for part in parts for frame in part.trace.frames
    ]


def test_part_of_a_path(client, server, video):
    result = client.gaze(video, start_frame=30, max_frames=5, window_frames=4)
    assert result.source_size.frames == 5
    expected = next(VideoReader(video, start_frame=30).windows(4))
    first = max(server.requests, key=lambda request: request["FRAMES"].shape[1])
    np.testing.assert_array_equal(first["FRAMES"][0], expected)


def test_windows_come_as_they_finish_with_four_in_flight(client, server, video):
    server.hold_until = 4
    windows = client.iter_gaze(video, window_frames=4)
    first = next(windows)
    assert first.source_size.frames == 4
    assert len(server.requests) <= 4
    assert [part.source_size.frames for part in windows] == [4] * 8 + [1]
    assert server.most_in_flight == 4


def test_leaving_early_sends_no_more(client, server, video):
    windows = client.iter_gaze(video, window_frames=1)
    next(windows)
    windows.close()
    assert len(server.requests) <= 4


def test_a_failed_window_names_its_frames(client, server, video):
    server.fail_if = lambda inputs: inputs["FRAMES"][0, 0].mean() > 60
    server.delay.set()
    windows = client.iter_gaze(video)
    next(windows)
    with pytest.raises(InferenceError, match=r"frames 16 to 31 of clip\.mp4: engine lost"):
        list(windows)


def test_per_frame_lists_belong_to_every_window(client, video):
    with pytest.raises(InvalidInputError, match=r"frames 32 to 36 of clip\.mp4: gazing_ratio has 16 values"):
        client.gaze(video, gazing_ratio=[0.5] * 16)


def test_a_truncated_video_gives_its_whole_windows_first(client, truncated):
    windows = client.iter_gaze(truncated, window_frames=2)
    assert next(windows).source_size.frames == 2
    with pytest.raises(VideoDecodeError, match="truncated"):
        list(windows)


@pytest.mark.parametrize(
    ("source", "knobs", "message"),
    [
        (CLIP.tolist(), {}, "frames is a list"),
        (CLIP, {"max_frames": 2}, "slice the array"),
        (b"video", {"start_frame": 2}, "slice the array"),
        (CLIP, {"window_frames": 16}, "window_frames is 16, but only a path is read in windows"),
        (b"video", {"progress": True}, "progress is True, but only a path"),
        (CLIP, {"timeout": 0}, "timeout is 0"),
        (CLIP, {"gazing_ratio": 2}, "gazing_ratio is 2"),
        ("clip.mp4", {"window_frames": 0}, "window_frames is 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(client, server, source, knobs, message):
    with pytest.raises(InvalidInputError, match=message):
        client.gaze(source, **knobs)
    assert server.requests == []


def test_the_first_argument_is_called_frames(client):
    assert client.gaze(frames=CLIP).source_size.frames == 3


@pytest.mark.parametrize("source", [CLIP, b"video"])
def test_only_a_path_is_read_in_windows(client, server, source):
    twin = AsyncGazeClient(transport=AsyncFakeServer())
    for iter_gaze in (client.iter_gaze, twin.iter_gaze):
        with pytest.raises(
            InvalidInputError, match=r"path is a \w+; only a video's path is read in windows.*gaze\(\)"
        ):
            iter_gaze(source)
    assert server.requests == []


def test_a_missing_video_is_refused_at_once(client):
    with pytest.raises(VideoDecodeError, match="no such file"):
        client.iter_gaze("missing.mp4")


def test_deadlines(server):
    client = GazeClient(transport=server, timeouts=Timeouts(request=9))
    client.gaze(CLIP)
    client.gaze(CLIP, timeout=2)
    assert server.timeouts == [9, 2]


def test_readiness(client, server):
    server.ready_after = 2
    assert not client.is_ready()
    client.wait_until_ready(timeout=5)
    server.ready_after = 10**6
    with pytest.raises(ServerUnavailableError, match=r"'autogaze' was not ready after 0\.3 s"):
        client.wait_until_ready(timeout=0.3)


def test_statistics_tell_what_happened_between(client):
    client.gaze(CLIP)
    before = client.statistics()
    assert client.statistics().since(before).request_ms() == {}
    client.gaze(CLIP)
    client.gaze(CLIP)
    assert client.statistics().since(before).request_ms() == {"autogaze": 3.0}


def test_the_step_that_answers_late_has_what_the_others_leave():
    def counted(**ms: float) -> ServerStatistics:
        return ServerStatistics(
            tuple(ModelStatistics(name, 2, int(2e6 * value), 0) for name, value in ms.items())
        )

    spent = counted(autogaze=50, autogaze_ingest=9, autogaze_generate=2, autogaze_stream=7)
    assert spent.stage_ms() == {**spent.request_ms(), "autogaze_generate": 41}
    quick = counted(autogaze=10, autogaze_ingest=9, autogaze_generate=2)
    assert quick.stage_ms() == quick.request_ms(), "never less than its own count"
    assert counted(autogaze_stream=7).stage_ms() == {"autogaze_stream": 7}


def test_a_context_manager_closes(server):
    with GazeClient(transport=server) as client:
        client.gaze(CLIP)
    assert server.closed


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8001",
        "localhost",
        "localhost:grpc",
        ":8001",
        "localhost:99999",
        "localhost:0",
        "localhost:²",
    ],
)
def test_bad_urls_are_refused(url):
    with pytest.raises(InvalidInputError, match="url is"):
        GazeClient(url)


def test_bad_connection_settings_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"Timeouts\.request is -1"):
        Timeouts(request=-1)
    with pytest.raises(InvalidInputError, match="mutual TLS needs both"):
        TLSConfig(private_key=tmp_path)
    with pytest.raises(InvalidInputError, match="root_certificates"):
        TLSConfig(root_certificates=tmp_path / "missing.pem")
    with pytest.raises(InvalidInputError, match="header 'x' is 1"):
        GazeClient(headers={"x": 1})


async def test_async_twin_gives_the_same(client, video):
    async with AsyncGazeClient(transport=AsyncFakeServer()) as twin:
        ours, theirs = await twin.gaze(video, window_frames=8), client.gaze(video, window_frames=8)
        assert ours.trace == theirs.trace
        assert (await twin.gaze(frames=CLIP)).trace == client.gaze(CLIP).trace
        with pytest.raises(InvalidInputError, match="progress is True, but only a path"):
            await twin.gaze(CLIP, progress=True)


async def test_async_windows(video):
    server = AsyncFakeServer()
    server.hold_until = 4
    client = AsyncGazeClient(transport=server)
    sizes = [part.source_size.frames async for part in client.iter_gaze(video, window_frames=10)]
    assert sizes == [10, 10, 10, 7]
    assert server.most_in_flight == 4
    await client.close()
    assert server.closed


async def test_async_errors(video, truncated):
    server = AsyncFakeServer()
    server.fail_if = lambda inputs: inputs["FRAMES"][0, 0].mean() > 60
    client = AsyncGazeClient(transport=server)
    with pytest.raises(InferenceError, match=r"frames 16 to 31 of clip\.mp4: engine lost"):
        await client.gaze(video)
    with pytest.raises(VideoDecodeError, match="truncated"):
        await AsyncGazeClient(transport=AsyncFakeServer()).gaze(truncated)
    with pytest.raises(InvalidInputError, match="frames is a int"):
        await client.gaze(3)
    server.ready_after = 10**6
    with pytest.raises(ServerUnavailableError, match=r"not ready after 0\.3 s"):
        await client.wait_until_ready(timeout=0.3)


def test_no_server_over_grpc():
    with GazeClient(closed_port(), timeouts=Timeouts(request=5, control=2)) as client:
        assert not client.is_ready()
        with pytest.raises(ServerUnavailableError, match="autogaze serve"):
            client.gaze(CLIP)


async def test_no_server_over_async_grpc():
    async with AsyncGazeClient(closed_port(), timeouts=Timeouts(request=5, control=2)) as client:
        assert not await client.is_ready()
        with pytest.raises(ServerUnavailableError, match="autogaze serve"):
            await client.gaze(CLIP)


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A gRPC endpoint that answers every inference with one status, or not at all."""

    def __init__(self, status: grpc.StatusCode | None) -> None:
        self.status = status
        self.metadata: dict[str, str] = {}
        self.release = threading.Event()

    def ModelInfer(self, request, context):  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        if self.status is None:
            self.release.wait(5)
        context.abort(self.status or grpc.StatusCode.INTERNAL, "the server's own words")


@pytest.fixture
def endpoint(request):
    servicer = Servicer(request.param)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    servicer.release.set()
    server.stop(0)


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInputError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.UNAVAILABLE, ServerUnavailableError),
        (grpc.StatusCode.INTERNAL, InferenceError),
    ],
    indirect=["endpoint"],
)
async def test_status_codes_over_grpc(endpoint, kind):
    servicer, url = endpoint
    with GazeClient(url, headers={"Authorization": "token"}) as client:
        with pytest.raises(kind, match="the server's own words"):
            client.gaze(CLIP)
        assert servicer.metadata["authorization"] == "token"
    async with AsyncGazeClient(url) as twin:
        with pytest.raises(kind, match="the server's own words"):
            await twin.gaze(CLIP)


@pytest.mark.parametrize("endpoint", [None], indirect=True)
def test_a_deadline_over_grpc(endpoint):
    with GazeClient(endpoint[1]) as client, pytest.raises(DeadlineExceededError, match="timeout="):
        client.gaze(CLIP, timeout=0.2)
