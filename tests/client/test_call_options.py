"""What requests carry beside their tensors: ids, priorities, versions, and the header that balancers hash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from autogaze_client import AsyncGazeClient, GazeClient, InvalidInputError
from autogaze_client._transport import STREAM_HEADER, CallOptions, SequenceStep
from client_helpers import AsyncFakeServer, FakeServer, generated_for, response_for
from video_helpers import tagged_video

CLIP = np.zeros((2, 8, 8, 3), np.uint8)


class RecordingServer(FakeServer):
    """Answers clips and streams, and keeps which model was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.delay.set()
        self.models: list[str] = []

    def infer(self, model, inputs, outputs, timeout, call=None):
        self.models.append(model)
        if "FRAME" not in inputs:
            return super().infer(model, inputs, outputs, timeout, call)
        self.calls.append(call)
        return response_for(generated_for(1), 8, 8)


class AsyncRecordingServer(AsyncFakeServer):
    def __init__(self) -> None:
        super().__init__()
        self.twin = RecordingServer()

    async def infer(self, model, inputs, outputs, timeout, call=None):
        return self.twin.infer(model, inputs, outputs, timeout, call)


def film(folder: Path, frames: int) -> Path:
    path = folder / "film.mp4"
    path.write_bytes(tagged_video(frames=frames))
    return path


@pytest.fixture
def server() -> RecordingServer:
    return RecordingServer()


def test_a_clip_carries_its_id_and_priority(server):
    GazeClient(transport=server).gaze(CLIP, request_id="order-7", priority=3)
    (call,) = server.calls
    assert call.request_options() == {"request_id": "order-7", "priority": 3}
    assert call.headers() == {}


def test_what_is_not_set_is_left_to_the_server(server):
    GazeClient(transport=server).gaze(CLIP)
    assert server.calls[0].request_options() == {}


def test_each_window_of_a_video_has_an_id_of_its_own(server, tmp_path):
    video = film(tmp_path, 5)
    client = GazeClient(transport=server)
    client.gaze(video, window_frames=2, request_id="film", priority=3)
    assert sorted(call.request_id for call in server.calls) == ["film-0", "film-1", "film-2"]
    assert {call.priority for call in server.calls} == {3}


def test_the_frames_of_a_stream_carry_ids_and_the_header_that_keeps_them_together(server):
    with GazeClient(transport=server).stream(request_id="door") as stream:
        stream.push(CLIP[0])
        stream.push(CLIP[1])
    assert [call.request_id for call in server.calls] == ["door-0", "door-1", "door-end"]
    assert {call.headers()[STREAM_HEADER] for call in server.calls} == {str(stream.id)}
    first, second, last = (call.request_options() for call in server.calls)
    assert first["sequence_start"]
    assert not second["sequence_start"]
    assert last["sequence_end"]


async def test_the_asyncio_client_says_the_same():
    server = AsyncRecordingServer()
    client = AsyncGazeClient(transport=server, version=4)
    await client.gaze(CLIP, request_id="a", priority=1)
    async with client.stream(request_id="b") as stream:
        await stream.push(CLIP[0])
    clip, frame, end = server.twin.calls
    assert (clip.request_id, clip.priority, clip.version) == ("a", 1, None)
    assert (frame.request_id, frame.version, end.request_id) == ("b-0", 4, "b-end")
    assert server.twin.models == ["autogaze_v4", "autogaze_stream", "autogaze_stream"]


def test_a_version_names_the_ensemble_and_the_version_of_the_stream_model(server, tmp_path):
    client = GazeClient(transport=server, version=2)
    client.gaze(CLIP)
    client.gaze(film(tmp_path, 2), as_stream=True)
    assert server.models == ["autogaze_v2", *["autogaze_stream"] * 3]
    assert "model_version" not in server.calls[0].request_options()
    assert {call.request_options()["model_version"] for call in server.calls[1:]} == {"2"}


@pytest.mark.parametrize("priority", [0, 4, -1, 1.5, True, "high"])
def test_a_priority_that_triton_would_quietly_replace_is_refused(server, priority):
    with pytest.raises(InvalidInputError, match=r"priority is .*from 1 .* to 3"):
        GazeClient(transport=server).gaze(CLIP, priority=priority)
    assert server.requests == []


@pytest.mark.parametrize("name", ["", "two words", "line\nbreak", "ü", "x" * 129, 7])
def test_an_id_that_does_not_fit_a_log_line_is_refused(server, name):
    client = GazeClient(transport=server)
    with pytest.raises(InvalidInputError, match=r"request_id is .*printable ASCII"):
        client.gaze(CLIP, request_id=name)
    with pytest.raises(InvalidInputError, match="request_id is"):
        client.stream(request_id=name)
    assert server.requests == []


def test_a_longest_id_lasts_for_every_frame(server):
    with GazeClient(transport=server).stream(request_id="x" * 128) as stream:
        for _ in range(12):
            stream.push(CLIP[0])
    assert server.calls[11].request_id == "x" * 128 + "-11"


def test_a_stream_of_a_path_has_no_priority(server, tmp_path):
    video = film(tmp_path, 2)
    with pytest.raises(InvalidInputError, match="priority is 1, but the frames of streams"):
        GazeClient(transport=server).gaze(video, as_stream=True, priority=1)


@pytest.mark.parametrize("version", [0, -3, 1.5, "1"])
def test_a_version_is_a_whole_number(version):
    with pytest.raises(InvalidInputError, match="version is"):
        GazeClient(version=version)


def test_a_restart_keeps_the_id_and_version():
    call = CallOptions("a", version=3, sequence=SequenceStep(9))
    assert call.request_options()["model_version"] == "3"
    assert call.part("x").sequence == SequenceStep(9)
