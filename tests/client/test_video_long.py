"""Long videos: strides, timestamps, streams, windows in flight, and bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from autogaze_client import (
    AsyncGazeClient,
    GazeClient,
    GazeResult,
    InferenceError,
    InvalidInputError,
    VideoReader,
)
from client_helpers import AsyncFakeServer, FakeServer, generated_for, response_for
from video_helpers import tagged_video

TIMES = [0, 10, 50, 200, 205, 1000, 1040, 2000]
"""Milliseconds of the frames of a video of variable frame rate."""


class StreamServer(FakeServer):
    """Answers streams, too; a frame's tokens depend on how many came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = []

    def infer(self, model, inputs, outputs, timeout, call=None):
        sequence = call.sequence if call else None
        if sequence is None:
            return super().infer(model, inputs, outputs, timeout, call)
        self.steps.append((model, sequence, inputs["FRAME"].shape))
        self.requests.append(inputs)
        if self.fail_if(inputs):
            raise InferenceError("engine lost")
        _, height, width, _ = inputs["FRAME"].shape
        if sequence.end:
            height = width = 8
        return response_for(generated_for(1, seed=len(self.steps)), height, width)


class AsyncStreamServer(AsyncFakeServer):
    def __init__(self) -> None:
        super().__init__()
        self.twin = StreamServer()

    async def infer(self, model, inputs, outputs, timeout, call=None):
        return self.twin.infer(model, inputs, outputs, timeout, call)


@pytest.fixture
def streams() -> StreamServer:
    return StreamServer()


@pytest.fixture(params=["mp4", "matroska"])
def variable(request, tmp_path) -> Path:
    path = tmp_path / "variable.video"
    path.write_bytes(tagged_video(times=TIMES, container=request.param))
    return path


@pytest.mark.parametrize(("start", "stride", "most"), [(0, 2, None), (3, 5, None), (1, 3, 4), (0, 100, None)])
def test_a_stride_gives_every_nth_frame(video, start, stride, most):
    reader = VideoReader(video, start_frame=start, frame_stride=stride, max_frames=most)
    every = list(VideoReader(video))
    np.testing.assert_array_equal(np.stack(list(reader)), np.stack(every[start::stride][:most]))
    assert reader.frame_count == len(every[start::stride][:most])


def test_skipped_frames_are_not_converted(video, monkeypatch):
    converted = []
    monkeypatch.setattr(
        VideoReader, "_picture", lambda *args: converted.append(1) or np.zeros((48, 64, 3), np.uint8)
    )
    assert len(list(VideoReader(video, frame_stride=10))) == len(converted) == 4


@pytest.mark.parametrize("stride", [0, -1])
def test_a_bad_stride_is_refused(client, server, video, stride):
    with pytest.raises(InvalidInputError, match=f"frame_stride is {stride}; it must be 1"):
        client.gaze(video, frame_stride=stride)
    assert not server.requests


def test_frames_of_a_variable_rate_have_their_times(variable):
    seconds = [seconds for seconds, _ in VideoReader(variable).timed()]
    np.testing.assert_allclose(seconds, np.array(TIMES) / 1000, atol=1e-3)
    windows = list(VideoReader(variable, start_frame=1, frame_stride=2).timed_windows(3))
    assert [times.dtype for times, _ in windows] == [np.float64] * 2
    np.testing.assert_allclose(windows[0][0], [0.01, 0.2, 1.0], atol=1e-3)
    np.testing.assert_allclose(windows[1][0], [2.0], atol=1e-3)


def test_results_of_a_video_have_timestamps(client, variable, tmp_path):
    result = client.gaze(variable, window_frames=3)
    assert result.timestamps.dtype == np.float64
    np.testing.assert_allclose(result.timestamps, np.array(TIMES) / 1000, atol=1e-3)
    parts = list(client.iter_gaze(variable, window_frames=3))
    np.testing.assert_array_equal(GazeResult.concatenate(parts).timestamps, result.timestamps)
    written = json.loads(result.write_json(tmp_path / "gaze.json").read_text())
    assert written["timestamps"] == result.timestamps.tolist()
    strided = client.gaze(variable, frame_stride=3, start_frame=1)
    np.testing.assert_allclose(strided.timestamps, [0.01, 0.205, 2.0], atol=1e-3)


def test_arrays_and_bytes_have_no_timestamps(client, variable):
    array = client.gaze(np.zeros((2, 48, 64, 3), np.uint8))
    assert array.timestamps is None
    assert array.to_dict()["timestamps"] is None
    assert client.gaze(variable.read_bytes()).timestamps is None
    assert GazeResult.concatenate([client.gaze(variable), client.gaze(variable)]).timestamps.shape == (16,)
    assert GazeResult.concatenate([array, client.gaze(variable)]).timestamps is None


def test_timestamps_must_be_one_a_frame(client):
    result = client.gaze(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(InvalidInputError, match=r"timestamps has shape \[3\]; it must be one a frame, \[2\]"):
        GazeResult(
            result.generated, result.fixations, result.mode, result.source_size, timestamps=np.zeros(3)
        )


def test_a_video_as_one_stream(streams, video):
    client = GazeClient(transport=streams)
    result = client.gaze(video, as_stream=True, frame_stride=2, gazing_ratio=0.1)
    assert result.source_size.frames == 19
    np.testing.assert_allclose(result.timestamps, np.arange(0, 37, 2) / 25)
    *frames, last = streams.steps
    assert {(model, shape) for model, _, shape in frames} == {("autogaze_stream", (1, 48, 64, 3))}
    assert [step.start for _, step, _ in frames] == [True] + [False] * 18
    assert len({step.id for _, step, _ in streams.steps}) == 1
    assert last[1].end
    sent = np.concatenate([request["FRAME"] for request in streams.requests[:-1]])
    np.testing.assert_array_equal(sent, np.stack(list(VideoReader(video, frame_stride=2))))
    expected = np.concatenate([generated_for(1, seed=index + 1).gazing_pos for index in range(19)], axis=1)
    np.testing.assert_array_equal(result.generated.gazing_pos % 265, expected % 265)


def test_a_stream_comes_in_windows_and_ends_when_left(streams, video):
    windows = GazeClient(transport=streams).iter_gaze(video, as_stream=True, window_frames=5)
    assert next(windows).source_size.frames == 5
    assert len(streams.steps) == 5
    assert next(windows).timestamps.tolist() == pytest.approx([0.2, 0.24, 0.28, 0.32, 0.36])
    windows.close()
    assert len(streams.steps) == 11
    assert streams.steps[-1][1].end


def test_a_failed_frame_of_a_stream_is_named(streams, video):
    streams.fail_if = lambda inputs: len(streams.steps) == 4
    with pytest.raises(InferenceError, match=r"frame 11 of clip\.mp4: engine lost"):
        GazeClient(transport=streams).gaze(video, as_stream=True, start_frame=5, frame_stride=2)


async def test_async_streams_are_the_same(streams, video):
    server = AsyncStreamServer()
    async with AsyncGazeClient(transport=server) as twin:
        theirs = await twin.gaze(video, as_stream=True)
        parts = [
            part async for part in twin.iter_gaze(video, as_stream=True, window_frames=10, frame_stride=2)
        ]
    ours = GazeClient(transport=streams).gaze(video, as_stream=True)
    assert ours.trace == theirs.trace
    np.testing.assert_array_equal(ours.timestamps, theirs.timestamps)
    assert [part.source_size.frames for part in parts] == [10, 9]
    assert [step.end for _, step, _ in server.twin.steps].count(True) == 2


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"mode": "tiled_full_resolution"}, "a stream runs in the resize mode"),
        ({"target_scales": [56], "target_patch_size": 14}, "without target scales"),
        ({"gazing_ratio": [0.1, 0.2]}, "gazing_ratio is a list, but a stream's frames"),
        ({"max_gaze_tokens_each_frame": [3]}, "max_gaze_tokens_each_frame is a list"),
        ({"in_flight": 2}, "in_flight is 2, but the frames of a stream depend on each other"),
    ],
)
def test_what_does_not_go_with_a_stream_is_refused_before_anything_is_sent(streams, video, knobs, message):
    client = GazeClient(transport=streams)
    for call in (client.gaze, client.iter_gaze):
        with pytest.raises(InvalidInputError, match=message):
            call(video, as_stream=True, **knobs)
    assert not streams.steps


@pytest.mark.parametrize(
    ("knobs", "name"),
    [({"frame_stride": 2}, "frame_stride"), ({"as_stream": True}, "as_stream"), ({"in_flight": 1}, "in")],
)
def test_what_only_a_path_has_is_refused_elsewhere(client, knobs, name):
    with pytest.raises(InvalidInputError, match=f"{name}.* but only a path"):
        client.gaze(np.zeros((1, 8, 8, 3), np.uint8), **knobs)


@pytest.mark.parametrize("in_flight", [1, 3, 8])
def test_as_many_windows_travel_as_asked_and_come_in_order(client, server, video, in_flight):
    server.hold_until = in_flight
    result = client.gaze(video, window_frames=4, in_flight=in_flight)
    assert server.most_in_flight == in_flight
    np.testing.assert_allclose(result.timestamps, np.arange(37) / 25)
    assert result.trace == client.gaze(video, window_frames=4).trace


async def test_async_in_flight(video):
    server = AsyncFakeServer()
    server.hold_until = 6
    result = await AsyncGazeClient(transport=server).gaze(video, window_frames=4, in_flight=6)
    assert server.most_in_flight == 6
    np.testing.assert_allclose(result.timestamps, np.arange(37) / 25)


def test_in_flight_is_at_least_one(client, video):
    with pytest.raises(InvalidInputError, match="in_flight is 0; it must be 1 or more"):
        client.gaze(video, in_flight=0)


LONG = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from autogaze_client import GazeClient
from test_video_long import StreamServer

class Forgetful(StreamServer):
    def infer(self, *arguments):
        answer = super().infer(*arguments)
        self.requests.clear()
        return answer

server = Forgetful()
server.delay.set()
def peak(frames):
    parts = GazeClient(transport=server).iter_gaze(sys.argv[2], max_frames=frames, as_stream=sys.argv[3] == "stream")
    count = sum(part.source_size.frames for part in parts)
    assert count == frames, count
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak(200)
print(peak(2000) - before)
"""


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> Path:
    """2,000 frames that are 123 MB as RGB."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    picture = np.random.default_rng(0).integers(0, 255, (128, 160, 3), np.uint8)
    path.write_bytes(tagged_video(picture=picture, frames=2000, pix_fmt="yuv420p"))
    return path


@pytest.mark.parametrize("way", ["windows", "stream"])
def test_memory_does_not_grow_with_the_video(long_video, way):
    here = Path(__file__).parent
    command = [sys.executable, "-c", LONG, str(here), str(long_video), way]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(here.parent)},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 20_000  # KiB
