"""Clips as ``autogaze_generate`` serves them: taken in at any time, answered apart, faults kept apart."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from autogaze_backend import clip_service
from autogaze_backend.callers import Caller
from autogaze_backend.clip_service import ClipService
from autogaze_backend.limits import ClipLimits, IngestLimits
from autogaze_backend.requests import Knobs
from autogaze_backend.triton import Arrival
from autogaze_client import (
    DeadlineExceededError,
    InvalidInputError,
    RequestCancelledError,
    ServerUnavailableError,
    VideoDecodeError,
)
from goldens import clips


def request(seed: int, ratio: float = 0.05, frames: int = 1) -> dict[str, np.ndarray]:
    knobs = Knobs(gazing_ratio=np.array([ratio], np.float32))
    return {"FRAMES": clips.synthetic_clip(frames, 64, 80, seed), **knobs.to_tensors()}


class Sender:
    """Sends requests and keeps their answers in the order in which they came."""

    def __init__(self, service: ClipService) -> None:
        self.service = service
        self.answers: dict[int, object] = {}
        self.gone: set[int] = set()
        self.arrived = threading.Condition()

    def arrival(self, index: int, tensors: dict[str, np.ndarray], seconds: float | None = None) -> Arrival:
        def answer(result: object) -> None:
            with self.arrived:
                assert index not in self.answers
                self.answers[index] = result
                self.arrived.notify_all()

        return Arrival(tensors, answer, Caller(lambda: index in self.gone, seconds))

    def send(self, index: int, tensors: dict[str, np.ndarray], seconds: float | None = None) -> None:
        self.service.take_in([self.arrival(index, tensors, seconds)])

    def wait(self, count: int) -> dict[int, object]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.answers) == count, 60)
        return self.answers


@pytest.fixture
def caller(model):
    service = ClipService(model())
    yield Sender(service)
    service.close()


def alone(model, tensors: dict[str, np.ndarray]) -> np.ndarray:
    knobs = Knobs.from_tensors(tensors)
    return model.gaze(tensors["FRAMES"], gazing_ratio=knobs.gazing_ratio).generated.gazing_pos


def test_a_bad_request_among_good_ones_gets_its_own_error(caller, model):
    for index, tensors in enumerate([request(1), request(2, ratio=3.0), request(3)]):
        caller.send(index, tensors)
    answers = caller.wait(3)
    assert isinstance(answers[1], InvalidInputError)
    np.testing.assert_array_equal(answers[0]["GAZING_POS"], alone(model(), request(1)))
    np.testing.assert_array_equal(answers[2]["GAZING_POS"], alone(model(), request(3)))


@pytest.mark.parametrize("stage", ["preprocessing", "finishing"])
def test_a_fault_in_one_request_leaves_the_others(stage, caller, monkeypatch):
    """Not a refused value but a fault of ours: memory that runs out, or an output that cannot be made."""
    prepare, calls = clip_service.prepare_clip, []

    def faulty(*arguments):
        prepared = prepare(*arguments)
        calls.append(prepared)
        if len(calls) != 2:
            return prepared

        def fail(*args):
            raise MemoryError("no room for this one")

        if stage == "finishing":
            return replace(prepared, finish=fail)
        row = prepared.rows[0]
        return replace(prepared, rows=(type(row)(row.frames, fail, row.budget),))

    monkeypatch.setattr(clip_service, "prepare_clip", faulty)
    for index in range(3):
        caller.send(index, request(index + 1))
    answers = caller.wait(3)
    assert isinstance(answers[1], MemoryError)
    assert isinstance(answers[0], dict)
    assert isinstance(answers[2], dict)


def video_request(seed: int) -> dict[str, np.ndarray]:
    sent = request(seed)
    return {name: array for name, array in sent.items() if name != "FRAMES"} | {
        "VIDEO": np.zeros(9, np.uint8)
    }


def test_a_video_is_decoded_elsewhere_and_then_runs_like_frames(caller):
    seen = []

    def decode(video, seconds):
        seen.append((video.size, seconds))
        return request(1)["FRAMES"]

    video = replace(caller.arrival(0, video_request(1), seconds=60), decode=decode)
    caller.service.take_in([video, caller.arrival(1, request(1))])
    answers = caller.wait(2)
    for name, array in answers[1].items():
        np.testing.assert_array_equal(answers[0][name], array)
    ((size, seconds),) = seen
    assert size == 9
    assert 0 < seconds <= 60


def test_frames_do_not_wait_for_a_video_that_is_being_decoded(caller):
    goes_on = threading.Event()

    def decode(video, seconds):
        assert goes_on.wait(60)
        return request(1)["FRAMES"]

    caller.service.take_in([replace(caller.arrival(0, video_request(1)), decode=decode)])
    caller.send(1, request(2))
    assert list(caller.wait(1)) == [1]
    goes_on.set()
    assert isinstance(caller.wait(2)[0], dict)


def test_a_video_that_cannot_be_decoded_gives_its_place_back(model):
    service = ClipService(model(), ClipLimits(max_active_clips=1), IngestLimits(max_frames=4))
    caller = Sender(service)

    def broken(video, seconds):
        raise VideoDecodeError("not a video")

    def too_long(video, seconds):
        return request(1, frames=5)["FRAMES"]

    for index, decode in enumerate((broken, too_long)):
        service.take_in([replace(caller.arrival(index, video_request(1)), decode=decode)])
    caller.gone.add(2)
    gone = replace(caller.arrival(2, video_request(1)), decode=too_long)
    service.take_in([gone])
    caller.send(3, request(3))
    answers = caller.wait(4)
    service.close()
    assert [type(answers[index]) for index in range(4)] == [
        VideoDecodeError,
        InvalidInputError,
        RequestCancelledError,
        dict,
    ]
    assert "5 frames; this server takes 4" in str(answers[1])


def test_a_service_that_closes_finishes_the_videos_that_it_took_in(model):
    service = ClipService(model())
    caller = Sender(service)
    started = threading.Event()

    def decode(video, seconds):
        started.set()
        time.sleep(0.3)
        return request(1)["FRAMES"]

    service.take_in([replace(caller.arrival(0, video_request(1)), decode=decode)])
    assert started.wait(60)
    service.close()
    assert isinstance(caller.answers[0], dict)


@pytest.mark.parametrize("names", [{"FRAMES", "VIDEO"}, set()])
def test_frames_and_a_video_or_neither_are_refused(caller, names):
    tensors = {**request(1), "VIDEO": np.zeros(9, np.uint8)}
    for name in {"FRAMES", "VIDEO"} - names:
        del tensors[name]
    caller.send(0, tensors)
    (answer,) = caller.wait(1).values()
    assert isinstance(answer, InvalidInputError)
    assert "not both or none" in str(answer)


def test_an_answer_holds_the_fixations_and_the_source_and_only_what_was_asked_for(caller, model):
    knobs = {"MODE": np.array([1], np.int32)}
    tensors = {**request(1), "FRAMES": clips.synthetic_clip(2, 250, 300, 4), **knobs}
    few = replace(caller.arrival(1, tensors), outputs={"FIXATIONS", "GAZING_POS"})
    caller.send(0, tensors)
    caller.service.take_in([few])
    answers = caller.wait(2)
    alone = model().gaze(tensors["FRAMES"], mode="tiled_resize_to_grid", gazing_ratio=np.float32(0.05))
    np.testing.assert_array_equal(answers[0]["FIXATIONS"], alone.fixations)
    assert answers[0]["SOURCE_SIZE"].tolist() == [2, 250, 300]
    assert set(answers[1]) == {"FIXATIONS", "GAZING_POS"}


def test_a_short_clip_does_not_wait_for_the_end_of_a_long_one(caller, model):
    caller.send(0, request(1, frames=40))
    caller.send(1, request(2, frames=1))
    answers = caller.wait(2)
    assert list(answers) == [1, 0]
    np.testing.assert_array_equal(answers[0]["GAZING_POS"], alone(model(), request(1, frames=40)))
    np.testing.assert_array_equal(answers[1]["GAZING_POS"], alone(model(), request(2)))


def test_a_clip_whose_caller_has_gone_is_given_up(caller):
    caller.send(0, request(1, frames=100))
    caller.gone.add(0)
    (answer,) = caller.wait(1).values()
    assert isinstance(answer, RequestCancelledError)


def test_what_there_is_no_room_for_waits(model):
    service = ClipService(model(), ClipLimits(max_active_clips=1))
    caller = Sender(service)
    caller.send(0, request(1, frames=30))
    blocked = threading.Thread(target=caller.send, args=(1, request(2)))
    blocked.start()
    answers = caller.wait(2)
    assert list(answers) == [0, 1], "the second was taken in beside the first"
    blocked.join()
    service.close()


def test_a_clip_whose_time_is_over_leaves_the_engine(caller, monkeypatch):
    caller.send(0, request(1, frames=200), seconds=0.3)
    (answer,) = caller.wait(1).values()
    assert isinstance(answer, DeadlineExceededError)
    assert "0.3 s that the caller allowed were over after" in str(answer)
    assert len(caller.service._scheduler) == 0


def test_a_clip_that_runs_too_long_for_the_server_is_ended(model):
    service = ClipService(model(), ClipLimits(max_run_seconds=0.3))
    caller = Sender(service)
    caller.send(0, request(1, frames=200))
    (answer,) = caller.wait(1).values()
    service.close()
    assert isinstance(answer, DeadlineExceededError)
    assert "AUTOGAZE_MAX_RUN_SECONDS" in str(answer)


def test_what_waits_is_answered_when_its_caller_goes_its_time_ends_or_the_line_is_too_slow(model):
    """A batch waits behind a clip that fills the only place; each leaves for its own reason, unserved."""
    service = ClipService(
        model(), ClipLimits(max_active_clips=1, max_wait_seconds=1.0), IngestLimits(max_frames=4000)
    )
    caller = Sender(service)
    caller.send(0, request(1, frames=4000))
    caller.gone.add(2)
    service.take_in(
        [
            caller.arrival(1, request(2), seconds=0.2),
            caller.arrival(2, request(3)),
            caller.arrival(3, request(4)),
        ]
    )
    assert 0 not in caller.answers
    kinds = {index: type(answer) for index, answer in caller.answers.items()}
    assert kinds == {1: DeadlineExceededError, 2: RequestCancelledError, 3: ServerUnavailableError}
    assert "waited 1 s for one of 1 places" in str(caller.answers[3])
    caller.gone.add(0)
    caller.wait(4)
    service.close()


def test_limits_hold_for_callers_that_leave_the_ensemble_out(model):
    service = ClipService(model(), ClipLimits(max_tiles=3), IngestLimits(max_frames=4))
    caller = Sender(service)
    caller.send(0, request(1, frames=5))
    tiled = {**request(1), "FRAMES": np.zeros((1, 300, 300, 3), np.uint8), "MODE": np.array([1], np.int32)}
    caller.send(1, tiled)
    target = {
        **request(1),
        "TARGET_SCALES": np.array([2000, 20000, 30000, 2_240_000], np.int32),
        "TARGET_PATCH_SIZE": np.array([16], np.int32),
    }
    caller.send(2, target)
    service.close()
    assert all(isinstance(answer, InvalidInputError) for answer in caller.answers.values())
    assert "5 frames; this server takes 4 (max_frames; its operator may set AUTOGAZE_MAX_FRAMES)" in str(
        caller.answers[0]
    )
    assert "cut into 4 tiles; this server takes 3 (max_tiles" in str(caller.answers[1])
    assert "cut into 100000000 tiles" in str(caller.answers[2])


def test_closing_finishes_what_was_taken_in_and_takes_nothing_more(model):
    service = ClipService(model())
    caller = Sender(service)
    for index in range(3):
        caller.send(index, request(index, frames=3))
    service.close()
    assert all(isinstance(answer, dict) for answer in caller.answers.values())
    assert len(caller.answers) == 3
    caller.send(3, request(1))
    assert isinstance(caller.answers[3], ServerUnavailableError)
    assert "shutting down" in str(caller.answers[3])


def test_a_fault_of_the_thread_answers_everyone_and_the_service_goes_on(caller, monkeypatch):
    tick = caller.service._scheduler.tick

    def broken():
        monkeypatch.setattr(caller.service._scheduler, "tick", tick)
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(caller.service._scheduler, "tick", broken)
    caller.send(0, request(1))
    assert isinstance(caller.wait(1)[0], RuntimeError)
    caller.send(1, request(1))
    assert isinstance(caller.wait(2)[1], dict)
