from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from autogaze_backend.callers import Caller
from autogaze_backend.clips import token_tensors
from autogaze_backend.limits import StreamLimits
from autogaze_backend.stream_answers import STREAM_OUTPUTS, StreamAnswer
from autogaze_backend.stream_pool import StreamPool
from autogaze_backend.stream_service import StreamRequest, StreamService
from autogaze_client import InvalidInputError, RequestCancelledError, ServerUnavailableError, StreamExpired
from goldens import clips


class FakeStream:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    return Clock()


def pool(clock, **limits) -> StreamPool:
    return StreamPool(FakeStream, StreamLimits(**limits), clock=clock)


def test_the_least_recently_used_stream_gives_its_place(clock):
    streams = pool(clock, max_streams=2, ttl_seconds=100)
    first, second = streams.start(1), streams.start(2)
    streams.use(1)
    streams.start(3)
    assert second.closed
    assert not first.closed
    assert streams.use(1) is first
    assert streams.evicted == 1
    with pytest.raises(StreamExpired, match=r"stream 2 has expired.*100 s.*2 places.*START flag"):
        streams.use(2)


def test_an_idle_stream_is_freed_after_its_time(clock):
    streams = pool(clock, max_streams=4, ttl_seconds=10)
    stream = streams.start(1)
    clock.now = 9.9
    streams.use(1)
    clock.now = 19.8
    streams.purge()
    assert len(streams) == 1
    clock.now = 20.0
    streams.purge()
    assert len(streams) == 0
    assert stream.closed
    assert streams.expired == 1


def test_starting_an_id_again_starts_anew(clock):
    streams = pool(clock)
    old = streams.start(1)
    assert streams.start(1) is not old
    assert old.closed
    assert len(streams) == 1


def test_ending_an_unknown_stream_is_no_error(clock):
    pool(clock).end(99)


@pytest.mark.parametrize(
    "limits", [{"max_streams": 0}, {"ttl_seconds": 0}, {"ttl_seconds": float("nan")}, {"horizon": 0}]
)
def test_limits_must_be_above_zero(limits):
    with pytest.raises(InvalidInputError, match="above 0"):
        StreamLimits(**limits)


FRAMES = clips.synthetic_clip(4, 60, 80, 9)


def request(
    stream_id: int,
    frame: np.ndarray,
    *,
    start: bool = False,
    end: bool = False,
    caller: Caller | None = None,
    **knobs: np.ndarray,
) -> StreamRequest:
    return StreamRequest(stream_id, start, end, {"FRAME": frame, **knobs}, caller)


@pytest.fixture
def service(model):
    running = StreamService(model(), StreamLimits(max_streams=3, ttl_seconds=100))
    yield running
    running.close()


def positions(answer) -> list[int]:
    return answer.tensors["GAZING_POS"][0].tolist()


def test_frames_of_several_streams_in_one_batch_equal_each_alone(service, model):
    loaded = model()
    alone = []
    with loaded.open_stream() as stream:
        for frame in FRAMES:
            alone.append(stream.step(loaded.preprocess(frame[None])).gazing_pos[0].tolist())
    for t, frame in enumerate(FRAMES):
        answers = service.run([request(i, frame, start=t == 0) for i in (1, 2, 3)])
        assert [positions(answer) for answer in answers] == [alone[t]] * 3
        assert answers[0].tensors["SOURCE_SIZE"].tolist() == [1, 60, 80]
        assert len(answers[0].tensors["FIXATIONS"]) == (~answers[0].tensors["IF_PADDED_GAZING"]).sum()


def test_answers_made_together_equal_what_each_frames_output_says(service, model):
    """Frames of other sizes and other budgets, one of them stopped early, so that padding is among the slots."""
    knobs = (
        {"MAX_GAZE_TOKENS": 3},
        {"GAZING_RATIO": 0.4, "TASK_LOSS_REQUIREMENT": 0.7},
        {"MAX_GAZE_TOKENS": 41},
    )
    kinds = {"MAX_GAZE_TOKENS": np.int32}
    frames = [FRAMES[0], FRAMES[1][:50], FRAMES[2]]
    answers = service.run(
        [
            request(
                index,
                frame,
                start=True,
                **{name: np.array([value], kinds.get(name, np.float32)) for name, value in own.items()},
            )
            for index, (frame, own) in enumerate(zip(frames, knobs, strict=True), 1)
        ]
    )
    loaded = model()
    names = {
        "MAX_GAZE_TOKENS": "max_gaze_tokens_each_frame",
        "GAZING_RATIO": "gazing_ratio",
        "TASK_LOSS_REQUIREMENT": "task_loss_requirement",
    }
    padded = 0
    for frame, own, answer in zip(frames, knobs, answers, strict=True):
        options = {names[name]: value for name, value in own.items()}
        alone = loaded.generate(loaded.preprocess(frame[None])[None], **options)
        found = answer.tensors
        assert set(found) == set(STREAM_OUTPUTS)
        for name, array in token_tensors(alone).items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found["FIXATIONS"], alone.fixations(0))
        assert found["SOURCE_SIZE"].tolist() == [1, *frame.shape[:2]]
        assert answer.tokens == int((~alone.if_padded_gazing).sum())
        padded += int(alone.if_padded_gazing.sum())
    assert padded, "no slot was padding, so nothing was shown of it"


def test_outputs_that_nobody_asked_for_are_not_made(service):
    whole = request(1, FRAMES[0], start=True)
    few = request(2, FRAMES[0], start=True)._replace(outputs={"GAZING_POS", "FIXATIONS"})
    all_of_it, part = service.run([whole, few])
    assert set(part.tensors) == {"GAZING_POS", "FIXATIONS"}
    np.testing.assert_array_equal(part.tensors["FIXATIONS"], all_of_it.tensors["FIXATIONS"])
    assert part.tokens == all_of_it.tokens
    end = request(2, np.zeros((0, 0, 3), np.uint8), end=True)._replace(outputs={"SOURCE_SIZE"})
    assert set(service.run([end])[0].tensors) == {"SOURCE_SIZE"}


def test_what_is_remembered_of_knobs_and_sizes_does_not_let_bad_ones_through(service):
    good = {"MAX_GAZE_TOKENS": np.array([5], np.int32)}
    service.run([request(1, FRAMES[0], start=True, **good)])
    answers = service.run(
        [
            # The same bytes, of another type; and a frame of the same size, of another.
            request(1, FRAMES[0], MAX_GAZE_TOKENS=np.array([5], np.uint32)),
            request(2, FRAMES[0].astype(np.int8), start=True, **good),
        ]
    )
    assert [type(answer) for answer in answers] == [InvalidInputError, InvalidInputError]
    (answer,) = service.run([request(1, FRAMES[1], **good)])
    assert answer.tokens == 5


def test_two_frames_of_one_stream_in_one_batch_run_in_order(service):
    service.run([request(1, FRAMES[0], start=True), request(2, FRAMES[0], start=True)])
    apart = [positions(service.run([request(1, frame)])[0]) for frame in FRAMES[1:3]]
    together = service.run([request(2, FRAMES[1]), request(2, FRAMES[2])])
    assert [positions(answer) for answer in together] == apart


def test_a_bad_frame_fails_alone_and_leaves_its_stream(service):
    service.run([request(1, FRAMES[0], start=True), request(2, FRAMES[0], start=True)])
    answers = service.run(
        [
            request(1, FRAMES[1], GAZING_RATIO=np.array([3.0], np.float32)),
            request(2, FRAMES[1]),
            request(7, FRAMES[1]),
            request(8, FRAMES[1][..., :1], start=True),
        ]
    )
    assert isinstance(answers[0], InvalidInputError)
    assert isinstance(answers[1], StreamAnswer)
    assert isinstance(answers[2], StreamExpired)
    assert isinstance(answers[3], InvalidInputError)
    assert len(service.pool) == 2, "a refused START took a place"
    assert positions(service.run([request(1, FRAMES[1])])[0]) == positions(answers[1])


def test_the_end_flag_frees_the_place_with_or_without_a_frame(service):
    service.run([request(1, FRAMES[0], start=True), request(2, FRAMES[0], start=True)])
    last, farewell = service.run(
        [request(1, FRAMES[1], end=True), request(2, np.zeros((0, 0, 3), np.uint8), end=True)]
    )
    assert len(positions(last)) > 0
    assert positions(farewell) == []
    assert farewell.tensors["NUM_GAZING_EACH_FRAME"].tolist() == []
    assert len(service.pool) == 0


def test_a_frame_whose_caller_has_gone_is_not_begun_and_its_stream_stays(service):
    gone = Caller(lambda: True)
    service.run([request(1, FRAMES[0], start=True), request(2, FRAMES[0], start=True)])
    answers = service.run(
        [
            request(1, FRAMES[1], caller=gone),
            request(2, FRAMES[1], caller=Caller()),
            request(3, FRAMES[1], start=True, caller=gone),
        ]
    )
    assert [type(answer) for answer in answers] == [
        RequestCancelledError,
        StreamAnswer,
        RequestCancelledError,
    ]
    assert len(service.pool) == 2
    assert positions(service.run([request(1, FRAMES[1])])[0]) == positions(answers[1])
    service.run([request(1, FRAMES[2], end=True, caller=gone)])
    assert len(service.pool) == 1


def test_modes_that_need_tiles_are_refused(service):
    (answer,) = service.run([request(1, FRAMES[0], start=True, MODE=np.array([1], np.int32))])
    assert isinstance(answer, InvalidInputError)
    assert "mode 0" in str(answer)


def test_an_engine_failure_ends_the_streams_it_hit(service, model, monkeypatch):
    service.run([request(1, FRAMES[0], start=True)])
    with monkeypatch.context() as patch:
        patch.setattr(model().engine, "prefill", lambda *args: (_ for _ in ()).throw(RuntimeError("lost")))
        with pytest.raises(RuntimeError, match="lost"):
            service.run([request(1, FRAMES[1])])
    (answer,) = service.run([request(1, FRAMES[2])])
    assert isinstance(answer, StreamExpired)
    (answer,) = service.run([request(1, FRAMES[0], start=True)])
    assert len(positions(answer)) > 0


def test_a_vanished_clients_place_is_freed_without_another_request(model):
    service = StreamService(model(), StreamLimits(max_streams=3, ttl_seconds=1.5))
    try:
        service.run([request(1, FRAMES[0], start=True)])
        assert len(service.pool) == 1
        deadline = time.monotonic() + 60
        while len(service.pool) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(service.pool) == 0
        assert service.pool.expired == 1
    finally:
        service.close()
    assert "autogaze-stream-reaper" not in {thread.name for thread in threading.enumerate()}


def test_streams_in_use_are_not_given_up_where_they_are_protected(clock):
    streams = pool(clock, max_streams=2, ttl_seconds=60, protect_seconds=5)
    streams.start(1)
    clock.now = 3.0
    streams.start(2)
    with pytest.raises(
        ServerUnavailableError, match=r"all 2 streams .* within 5 s.*AUTOGAZE_PROTECT_SECONDS"
    ):
        streams.start(3)
    streams.use(1)
    clock.now = 8.5
    streams.start(3)  # the second is now the least recently used, and no longer protected
    assert (len(streams), streams.evicted) == (2, 1)
    with pytest.raises(StreamExpired):
        streams.use(2)
