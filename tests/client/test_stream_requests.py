"""What streams put on the wire, frame after frame: what is kept between requests never carries one into another.

A gRPC server of the test's own keeps every request; the clients reach it through tritonclient, as they reach Triton.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from autogaze_client import AsyncGazeClient, GazeClient, InvalidInputError, StreamExpired
from autogaze_client._grpc_messages import request_inputs
from client_helpers import generated_for, response_for
from grpc_helpers import SystemMemoryServicer, answer_of, listening
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

UNSET = {"GAZING_RATIO": None, "TASK_LOSS_REQUIREMENT": None, "MAX_GAZE_TOKENS": -1, "TOP_K": -1}
EACH = ["GAZING_POS", "IF_PADDED_GAZING", "CONFIDENCES", "TASK_LOSS_PREDICTIONS"]
FIRST = [*EACH, "SCALE_GRIDS"]
# Above 128 KiB frames go through shared memory, below it over the wire.
SIZES = {"shared": (240, 200), "wire": (24, 20)}


@dataclass
class Seen:
    """One request as the server had it."""

    stream: int
    start: bool
    end: bool
    id: str
    frame: np.ndarray
    knobs: dict[str, Any]
    outputs: list[str]
    way: str


class RecordingServer(SystemMemoryServicer):
    """Answers streams with tokens that follow from the frame; ``refuse`` holds what it says to the next requests."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        self.refuse: list[tuple[grpc.StatusCode, str] | None] = []

    def ModelInfer(self, request, context):  # noqa: N802
        raw = iter(request.raw_input_contents)
        tensors, way = {}, "wire"
        for item in request.inputs:
            shape, kind = list(item.shape), triton_to_np_dtype(item.datatype)
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            region = item.parameters["shared_memory_region"].string_param
            if region:
                way = "shared"
                assert item.parameters["shared_memory_byte_size"].int64_param == size
                content = self.system_bytes(region, size)
            else:
                content = next(raw)
            tensors[item.name] = np.frombuffer(content, kind).reshape(shape)
        assert next(raw, None) is None
        frame = tensors.pop("FRAME")[0]
        flags = request.parameters
        self.seen.append(
            Seen(
                flags["sequence_id"].int64_param,
                flags["sequence_start"].bool_param,
                flags["sequence_end"].bool_param,
                request.id,
                frame,
                {name: None if np.isnan(value) else value.item() for name, value in tensors.items()},
                [item.name for item in request.outputs],
                way,
            )
        )
        refusal = self.refuse.pop(0) if self.refuse else None
        if refusal:
            context.abort(*refusal)
        tokens = response_for(generated_for(1, seed=seed_of(frame)), *frame.shape[:2])
        return answer_of(request.model_name, {item.name: tokens[item.name] for item in request.outputs})


def seed_of(frame: np.ndarray) -> int:
    return int(frame.sum()) % 1000


def knobs(**given: float) -> dict[str, Any]:
    return {**UNSET, **given}


class Blocking:
    """The asyncio client's shape over the blocking one, so that one test holds for both."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    async def push(self, frame: np.ndarray, **knobs: Any) -> Any:
        return self.wrapped.push(frame, **knobs)

    async def close(self) -> None:
        self.wrapped.close()

    def stream(self, **options: Any) -> Blocking:
        return Blocking(self.wrapped.stream(**options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


@pytest.fixture
def server() -> Iterator[tuple[RecordingServer, str]]:
    servicer = RecordingServer()
    with listening(servicer) as url:
        yield servicer, url


@pytest.fixture(params=["blocking", "asyncio"])
async def client(request, server):
    if request.param == "blocking":
        with GazeClient(server[1]) as connected:
            yield Blocking(connected)
    else:
        async with AsyncGazeClient(server[1]) as connected:
            yield connected


@pytest.fixture(params=sorted(SIZES))
def way(request) -> str:
    return request.param


def pictures(count: int, way: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZES[way], 3), np.uint8)


def check_answer(result: Any, frame: np.ndarray) -> None:
    want = generated_for(1, seed=seed_of(frame))
    np.testing.assert_array_equal(result.generated.gazing_pos, want.gazing_pos)
    np.testing.assert_array_equal(result.fixations, want.fixations(0))
    size = result.source_size
    assert (size.frames, size.height, size.width) == (1, *frame.shape[:2])


async def test_two_streams_of_one_client_keep_apart(server, client, way):
    seen = server[0].seen
    frames = pictures(6, way)
    door, yard = client.stream(gazing_ratio=0.25, request_id="door"), client.stream(task_loss_requirement=0.5)
    for index, frame in enumerate(frames):
        check_answer(await (yard if index % 2 else door).push(frame), frame)
    await yard.close()
    check_answer(await door.push(frames[0]), frames[0])
    await door.close()
    own = {door.id: knobs(GAZING_RATIO=0.25), yard.id: knobs(TASK_LOSS_REQUIREMENT=0.5)}
    order = [door, yard, door, yard, door, yard, yard, door, door]
    assert [item.stream for item in seen] == [stream.id for stream in order]
    assert all(item.knobs == own[item.stream] for item in seen)
    assert [item.start for item in seen] == [True, True, *[False] * 7]
    assert [item.end for item in seen] == [*[False] * 6, True, False, True]
    assert [item.outputs for item in seen] == [FIRST, FIRST, *[EACH] * 7]
    door_ids = ["door-0", "door-1", "door-2", "door-3", "door-end"]
    assert [item.id for item in seen if item.stream == door.id] == door_ids
    assert {item.id for item in seen if item.stream == yard.id} == {""}
    for item, frame in zip(seen[:6], frames, strict=True):
        np.testing.assert_array_equal(item.frame, frame)
        assert item.way == way
    assert [item.frame.shape for item in seen if item.end] == [(0, 0, 3)] * 2


async def test_knobs_of_one_push_are_for_that_push_alone(server, client, way):
    frames = pictures(4, way)
    stream = client.stream(gazing_ratio=0.25, top_k=3)
    await stream.push(frames[0])
    await stream.push(frames[1], max_gaze_tokens_each_frame=7)
    await stream.push(frames[2])
    await stream.push(frames[3], gazing_ratio=0.5, task_loss_requirement=0.75)
    await stream.close()
    session = knobs(GAZING_RATIO=0.25, TOP_K=3)
    assert [item.knobs for item in server[0].seen] == [
        session,
        knobs(MAX_GAZE_TOKENS=7, TOP_K=3),
        session,
        knobs(GAZING_RATIO=0.5, TASK_LOSS_REQUIREMENT=0.75, TOP_K=3),
        session,
    ]


@pytest.mark.parametrize("restart", [True, False])
async def test_a_forgotten_stream_starts_with_the_frame_that_was_refused(server, client, way, restart):
    recorder = server[0]
    frames = pictures(4, way)
    stream = client.stream(gazing_ratio=0.25, restart=restart, request_id="a")
    other = client.stream(gazing_ratio=0.5)
    await other.push(frames[0])
    await stream.push(frames[0])
    recorder.refuse.append((grpc.StatusCode.INVALID_ARGUMENT, "the stream has expired"))
    if restart:
        check_answer(await stream.push(frames[1], max_gaze_tokens_each_frame=5), frames[1])
    else:
        with pytest.raises(StreamExpired):
            await stream.push(frames[1], max_gaze_tokens_each_frame=5)
        check_answer(await stream.push(frames[1], max_gaze_tokens_each_frame=5), frames[1])
    await other.push(frames[2])
    check_answer(await stream.push(frames[3]), frames[3])
    mine = [item for item in recorder.seen if item.stream == stream.id]
    assert [item.start for item in mine] == [True, False, True, False]
    assert [item.outputs for item in mine] == [FIRST, EACH, FIRST, EACH]
    session, once = knobs(GAZING_RATIO=0.25), knobs(MAX_GAZE_TOKENS=5)
    assert [item.knobs for item in mine] == [session, once, once, session]
    assert [item.id for item in mine] == ["a-0", "a-1", *(["a-1", "a-2"] if restart else ["a-2", "a-3"])]
    for item, index in zip(mine, (0, 1, 1, 3), strict=True):
        np.testing.assert_array_equal(item.frame, frames[index])
    assert [item.start for item in recorder.seen if item.stream == other.id] == [True, False]
    assert stream.restarts == int(restart)


async def test_an_error_in_between_leaves_nothing_behind(server, client, way):
    recorder = server[0]
    frames = pictures(5, way)
    stream = client.stream(gazing_ratio=0.25)
    await stream.push(frames[0])
    recorder.refuse.append((grpc.StatusCode.INVALID_ARGUMENT, "not this one"))
    with pytest.raises(InvalidInputError, match="not this one"):
        await stream.push(frames[1], max_gaze_tokens_each_frame=5)
    with pytest.raises(InvalidInputError, match="gazing_ratio is 7"):
        await stream.push(frames[2], gazing_ratio=7)
    with pytest.raises(InvalidInputError, match="the frame has shape"):
        await stream.push(frames[2][0])
    check_answer(await stream.push(frames[3]), frames[3])
    check_answer(await stream.push(frames[4]), frames[4])
    session = knobs(GAZING_RATIO=0.25)
    assert [item.knobs for item in recorder.seen] == [session, knobs(MAX_GAZE_TOKENS=5), session, session]
    assert [item.start for item in recorder.seen] == [True, False, False, False]
    for item, index in zip(recorder.seen, (0, 1, 3, 4), strict=True):
        np.testing.assert_array_equal(item.frame, frames[index])
    assert len(recorder.system) == (way == "shared"), "the region of the refused frame is used again"


async def test_an_error_before_the_first_answer_keeps_the_stream_unopened(server, client, way):
    recorder = server[0]
    frame = pictures(1, way)[0]
    stream = client.stream()
    recorder.refuse.append((grpc.StatusCode.INVALID_ARGUMENT, "not this one"))
    with pytest.raises(InvalidInputError):
        await stream.push(frame)
    check_answer(await stream.push(frame), frame)
    assert [item.start for item in recorder.seen] == [True, True]
    assert [item.outputs for item in recorder.seen] == [FIRST, FIRST]


async def test_frames_of_other_sizes_and_channels_follow_each_other(server, client):
    frames = [
        np.random.default_rng(index).integers(0, 256, shape, np.uint8)
        for index, shape in enumerate(
            [(240, 200, 3), (200, 240, 3), (150, 240, 4), (3, 4, 3), (4, 3, 3), (300, 400, 3), (240, 200, 3)]
        )
    ]
    stream = client.stream()
    for frame in frames:
        check_answer(await stream.push(frame), frame)
    for item, frame in zip(server[0].seen, frames, strict=True):
        np.testing.assert_array_equal(item.frame, frame)


async def test_knobs_that_do_not_fit_one_frame_are_refused_by_each_push(server, client, way):
    frames = pictures(1, way)
    stream = client.stream(gazing_ratio=[0.1, 0.2])
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="2 values for 1 frames"):
            await stream.push(frames[0])
    with pytest.raises(InvalidInputError, match="frames are float32"):
        await stream.push(frames[0].astype(np.float32))
    check_answer(await stream.push(frames[0], gazing_ratio=0.5), frames[0])
    assert [(item.start, item.knobs) for item in server[0].seen] == [(True, knobs(GAZING_RATIO=0.5))]


def test_streams_of_several_threads_share_a_client(server, way):
    recorder, url = server

    def play(number: int) -> int:
        frames = pictures(12, way, seed=number)
        with client.stream(max_gaze_tokens_each_frame=number + 1) as stream:
            for frame in frames:
                check_answer(stream.push(frame), frame)
        return stream.id

    with GazeClient(url) as client, futures.ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(play, range(6)))
    for number, stream in enumerate(ids):
        mine = [item for item in recorder.seen if item.stream == stream]
        assert [item.start for item in mine] == [True, *[False] * 12]
        assert [item.end for item in mine] == [*[False] * 12, True]
        assert all(item.knobs == knobs(MAX_GAZE_TOKENS=number + 1) for item in mine)
        for item, frame in zip(mine[:-1], pictures(12, way, seed=number), strict=True):
            np.testing.assert_array_equal(item.frame, frame)


def test_a_transport_cannot_change_what_the_next_frame_sends():
    class Careless:
        def infer(self, model, inputs, outputs, timeout, call=None):
            inputs["GAZING_RATIO"][...] = 1
            raise AssertionError("the knobs of a session were overwritten")

    stream = GazeClient(transport=Careless()).stream(gazing_ratio=0.25)
    with pytest.raises(ValueError, match="read-only"):
        stream.push(np.zeros((4, 4, 3), np.uint8))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["FRAME", "TOP_K", "GAZING_RATIO"]),
            arrays.arrays(
                st.sampled_from([np.uint8, np.int32, np.float32, np.int64]),
                arrays.array_shapes(max_dims=3, max_side=3),
                elements=st.sampled_from([0, 1]),
            ),
        ),
        max_size=30,
    )
)
def test_a_tensor_says_what_its_array_holds_whatever_came_before(requests):
    """Few values of few types and shapes, so that many differ in one thing only."""
    for name, array in requests:
        (tensor,) = request_inputs({name: array})
        assert (tensor.name(), tensor.datatype()) == (name, np_to_triton_dtype(array.dtype))
        assert tuple(tensor.shape()) == array.shape
        assert tensor._get_content() == array.tobytes()
