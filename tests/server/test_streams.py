"""``autogaze_stream`` in a real tritonserver: sequences, expiry, eviction, shared batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_client import (
    AsyncGazeClient,
    AutoGazeGenerateOutput,
    GazeClient,
    InvalidInputError,
    StreamExpired,
)
from goldens import clips

pytestmark = pytest.mark.server

KNOBS = {"gazing_ratio": 0.3, "task_loss_requirement": 0.7}
# Long enough that streams in use never reach it, on a loaded machine, too.
TTL = 4.0


def video(frames: int, seed: int = 5) -> np.ndarray:
    return clips.synthetic_clip(frames, 90, 160, seed)


@pytest.fixture(scope="module")
def stream_server(bundle) -> Iterator[TritonServer]:
    """Three places and a short time to live, so that eviction and expiry can be watched."""
    config = TritonServerConfig(
        model_repository_path(),
        0,
        0,
        0,
        environment={
            "AUTOGAZE_BUNDLE": str(bundle("release")),
            "AUTOGAZE_MAX_STREAMS": "3",
            "AUTOGAZE_TTL_SECONDS": str(TTL),
        },
    )
    with TritonServer(config, on_log=lambda line: None) as running:
        running.wait_until_ready(timeout=120)
        yield running


@pytest.fixture
def client(stream_server):
    with GazeClient(stream_server.url) as connected:
        yield connected


def expected(model, frames: np.ndarray, knobs: Mapping[str, float] = KNOBS) -> np.ndarray:
    loaded = model()
    return loaded.generate(loaded.preprocess(frames)[None], **knobs).gazing_pos


def test_a_stream_gives_the_tokens_of_the_whole_clip(client, model):
    frames = video(5)
    with client.stream(**KNOBS) as stream:
        results = [stream.push(frame) for frame in frames]
    joined = AutoGazeGenerateOutput.concatenate([result.generated for result in results])
    np.testing.assert_array_equal(joined.gazing_pos, expected(model, frames))
    assert (results[0].source_size.frames, results[0].source_size.height, results[0].source_size.width) == (
        1,
        90,
        160,
    )


async def test_an_asyncio_stream_gives_the_same(stream_server, model):
    frames = video(4)
    async with AsyncGazeClient(stream_server.url) as client, client.stream(**KNOBS) as stream:
        results = [await stream.push(frame) for frame in frames]
    joined = AutoGazeGenerateOutput.concatenate([result.generated for result in results])
    np.testing.assert_array_equal(joined.gazing_pos, expected(model, frames))


def test_streams_at_once_keep_apart_and_share_batches(stream_server, model):
    def run(seed: int) -> np.ndarray:
        with GazeClient(stream_server.url) as own, own.stream(**KNOBS) as stream:
            parts = [stream.push(frame).generated for frame in video(8, seed)]
        return AutoGazeGenerateOutput.concatenate(parts).gazing_pos

    import tritonclient.grpc as triton

    with triton.InferenceServerClient(stream_server.url) as raw:

        def counts() -> tuple[int, int]:
            (stats,) = raw.get_inference_statistics("autogaze_stream", as_json=True)["model_stats"]
            return int(stats["inference_count"]), int(stats["execution_count"])

        before = counts()
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(run, (1, 2, 3)))
        after = counts()
    for seed, positions in zip((1, 2, 3), found, strict=True):
        np.testing.assert_array_equal(positions, expected(model, video(8, seed)))
    assert after[1] - before[1] < after[0] - before[0], "no two frames ever shared an execution"


def test_an_idle_stream_expires_and_the_next_frame_starts_anew(client):
    frames = video(2)
    stream = client.stream(**KNOBS)
    first = stream.push(frames[0])
    time.sleep(TTL * 1.25)
    with pytest.raises(StreamExpired, match=r"has expired.*restart=True"):
        stream.push(frames[1])
    again = stream.push(frames[0])
    np.testing.assert_array_equal(again.generated.gazing_pos, first.generated.gazing_pos)
    stream.close()


def test_the_least_recently_used_of_too_many_streams_is_evicted(client):
    frames = video(2)
    streams = [client.stream(**KNOBS) for _ in range(4)]
    for stream in streams:
        stream.push(frames[0])
    with pytest.raises(StreamExpired):
        streams[0].push(frames[1])
    for stream in streams[1:]:
        assert stream.push(frames[1]).tokens_per_frame.sum() > 0
    for stream in streams:
        stream.close()


def test_a_stream_may_restart_by_itself(client, model):
    frames = video(3)
    with client.stream(restart=True, **KNOBS) as stream:
        stream.push(frames[0])
        time.sleep(TTL * 1.25)
        result = stream.push(frames[1])
        assert stream.restarts == 1
    np.testing.assert_array_equal(result.generated.gazing_pos, expected(model, frames[1:2]))


def test_tritons_own_answer_to_a_forgotten_stream_is_recognised(client):
    """Without START and without our ever having seen the id, the sequence batcher itself refuses."""
    stream = client.stream(**KNOBS)
    stream._conversation.started = True
    with pytest.raises(StreamExpired, match="START flag"):
        stream.push(video(1)[0])


def test_a_client_that_vanishes_frees_its_place(stream_server):
    """Three clients take all places and go without a word; after the time to live three others find room."""
    frames = video(2)
    for _ in range(3):
        with GazeClient(stream_server.url) as lost:
            lost.stream(**KNOBS).push(frames[0])
    time.sleep(TTL * 1.25)
    with GazeClient(stream_server.url) as own:
        streams = [own.stream(**KNOBS) for _ in range(3)]
        for frame in frames:
            for stream in streams:
                stream.push(frame)
        for stream in streams:
            stream.close()


def test_a_bad_frame_gets_its_error_and_the_stream_goes_on(client, model):
    frames = video(3)
    with client.stream(**KNOBS) as stream:
        parts = [stream.push(frames[0]).generated]
        with pytest.raises(InvalidInputError, match="gazing_ratio"):
            stream.push(frames[1], gazing_ratio=7.0)
        with pytest.raises(InvalidInputError, match="64 times longer"):
            stream.push(np.zeros((1, 500, 3), np.uint8))
        parts += [stream.push(frame).generated for frame in frames[1:]]
    np.testing.assert_array_equal(
        AutoGazeGenerateOutput.concatenate(parts).gazing_pos, expected(model, frames)
    )


# Below 128 KiB frames go over the wire, above it through shared memory.
@pytest.mark.parametrize("size", [(90, 160), (240, 320)], ids=["wire", "shared"])
def test_streams_of_one_client_that_take_turns_keep_apart(client, model, size):
    clip_of = {"door": clips.synthetic_clip(5, *size, 1), "yard": clips.synthetic_clip(5, *size, 2)}
    knobs_of = {"door": KNOBS, "yard": {"gazing_ratio": 0.1}}
    streams = {name: client.stream(**knobs) for name, knobs in knobs_of.items()}
    parts: dict[str, list[AutoGazeGenerateOutput]] = {name: [] for name in streams}
    for index in range(5):
        for name, stream in streams.items():
            if index == 2:
                with pytest.raises(InvalidInputError, match="64 times longer"):
                    stream.push(np.zeros((1, 500, 3), np.uint8), max_gaze_tokens_each_frame=3)
            parts[name].append(stream.push(clip_of[name][index]).generated)
    for name, stream in streams.items():
        stream.close()
        joined = AutoGazeGenerateOutput.concatenate(parts[name])
        np.testing.assert_array_equal(joined.gazing_pos, expected(model, clip_of[name], knobs_of[name]))


async def test_asyncio_streams_of_one_client_keep_apart(stream_server, model):
    videos = [clips.synthetic_clip(5, 240, 320, seed) for seed in range(3)]

    async def run(client: AsyncGazeClient, frames: np.ndarray) -> np.ndarray:
        async with client.stream(**KNOBS) as stream:
            parts = [(await stream.push(frame)).generated for frame in frames]
        return AutoGazeGenerateOutput.concatenate(parts).gazing_pos

    async with AsyncGazeClient(stream_server.url) as client:
        found = await asyncio.gather(*(run(client, frames) for frames in videos))
    for positions, frames in zip(found, videos, strict=True):
        np.testing.assert_array_equal(positions, expected(model, frames))


def test_knobs_may_change_from_frame_to_frame(client):
    frames = video(2)
    with client.stream(gazing_ratio=0.02) as stream:
        assert stream.push(frames[0]).tokens_per_frame.tolist() == [5]
        assert stream.push(frames[1], max_gaze_tokens_each_frame=12).tokens_per_frame.tolist() == [12]
        assert stream.push(frames[0]).tokens_per_frame.tolist() == [5]


def test_a_closed_stream_says_so(client):
    stream = client.stream(**KNOBS)
    stream.push(video(1)[0])
    stream.close()
    stream.close()
    with pytest.raises(InvalidInputError, match="closed"):
        stream.push(video(1)[0])
