"""Rows that join and leave between calls, and the order in which they are served."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_backend.budgets import resolve_budget
from autogaze_backend.outputs import assemble
from autogaze_backend.scheduling import RowJob, RowScheduler
from goldens import clips
from hypothesis import given, settings
from hypothesis import strategies as st

STOP = {"gazing_ratio": 0.2, "task_loss_requirement": 0.7}


def video(frames: int, seed: int) -> np.ndarray:
    return clips.normalise(clips.synthetic_clip(frames, 224, 224, seed))


class Run:
    """A scheduler and the results of its rows, in the order in which they were finished."""

    def __init__(self, model) -> None:
        self.model, self.scheduler = model, RowScheduler(model.engine)
        self.results: dict[object, object] = {}

    def add(self, name: object, frames: int, seed: int = 1, knobs=None, ended=None) -> None:
        knobs = knobs or {"max_gaze_tokens_each_frame": 5}
        row = self.model.row(video(frames, seed), resolve_budget(self.model.spec, frames, **knobs))
        job = RowJob(row, lambda result: self.results.update({name: result}))
        if ended is not None:
            job.ended = ended
        self.scheduler.add(job)

    def tick(self, count: int) -> None:
        for _ in range(count):
            self.scheduler.tick()

    def finish(self) -> list[object]:
        while len(self.scheduler):
            self.scheduler.tick()
        return list(self.results)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_rows_that_join_and_leave_at_any_time_equal_their_rows_alone(data, model):
    loaded = model()
    engine = type(loaded.engine)
    original = engine.preferred_rows
    engine.preferred_rows = property(lambda self: together)
    together = data.draw(st.integers(1, 5), label="rows a call")
    run = Run(loaded)
    rows = data.draw(
        st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=6),
        label="frames, seed, ticks before the next",
    )
    try:
        for name, (frames, seed, ticks) in enumerate(rows):
            run.add(name, frames, seed, STOP)
            run.tick(ticks)
        run.finish()
    finally:
        engine.preferred_rows = original
    for name, (frames, seed, _) in enumerate(rows):
        alone = loaded.generate(video(frames, seed)[None], **STOP)
        found = assemble(loaded.spec, [run.results[name]])
        np.testing.assert_array_equal(found.gazing_pos, alone.gazing_pos)
        np.testing.assert_array_equal(found.if_padded_gazing, alone.if_padded_gazing)


def test_rows_of_one_length_are_served_in_the_order_they_came(model):
    run = Run(model())
    for name in range(4):
        run.add(name, 2, name)
        run.tick(1)
    assert run.finish() == [0, 1, 2, 3]


def test_a_long_row_is_overtaken_by_short_ones_but_not_for_ever(model):
    run = Run(model())
    run.add("long", 6)
    run.tick(1)
    for name in range(12):
        run.add(name, 1, name)
        run.tick(1)
    order = run.finish()
    assert order[0] == 0, "the short row waited for the end of the long one"
    assert order.index("long") < 11, "short rows kept the long one waiting"


def test_started_rows_are_bounded(model):
    """Each later row is due before the earlier: without the bound every one of them would hold a cache."""
    loaded = model()
    before = len(loaded.engine._slots)
    run = Run(loaded)
    most = 0
    for name, frames in enumerate(range(30, 10, -2)):
        run.add(name, frames)
        run.tick(1)
        most = max(most, len(loaded.engine._slots) - before)
    run.scheduler.abandon()
    assert most == 4
    assert len(loaded.engine._slots) == before


def test_a_row_is_ended_between_the_groups_of_a_frame(model):
    """The whole frame is 27 calls; the row ends after four of them."""
    run = Run(model())
    asked = []

    def ended(frame):
        asked.append(frame)
        return TimeoutError("too late") if len(asked) > 4 else None

    run.add("late", 1, knobs={"gazing_ratio": 1.0}, ended=ended)
    run.finish()
    assert isinstance(run.results["late"], TimeoutError)
    assert asked == [0] * 5


def test_a_call_that_fails_is_laid_at_the_door_of_its_cause(model, monkeypatch):
    """Three rows share a call that fails because of one of them: that one fails, the others start anew."""
    loaded = model()
    monkeypatch.setattr(type(loaded.engine), "preferred_rows", property(lambda engine: 3))
    encode = loaded.engine.encode

    def fragile(frames, state):
        if (frames[:, 0, 0, 0, 0] > 100).any():
            raise RuntimeError("the device is unhappy")
        return encode(frames, state)

    monkeypatch.setattr(loaded.engine, "encode", fragile)
    run = Run(loaded)
    bad = video(1, 2)
    bad[0, 0, 0, 0] = 1000.0
    budget = resolve_budget(loaded.spec, 1, max_gaze_tokens_each_frame=5)
    run.add(0, 1, 1)
    run.scheduler.add(RowJob(loaded.row(bad, budget), lambda result: run.results.update({1: result})))
    run.add(2, 1, 3)
    run.finish()
    assert isinstance(run.results[1], RuntimeError)
    for name, seed in ((0, 1), (2, 3)):
        alone = loaded.generate(video(1, seed)[None], max_gaze_tokens_each_frame=5)
        np.testing.assert_array_equal(assemble(loaded.spec, [run.results[name]]).gazing_pos, alone.gazing_pos)


def test_failing_all_rows_tells_each(model):
    run = Run(model())
    run.add(0, 2)
    run.add(1, 2)
    run.tick(1)
    run.scheduler.fail(RuntimeError("lost"))
    assert len(run.scheduler) == 0
    assert [str(result) for result in run.results.values()] == ["lost", "lost"]


@pytest.mark.parametrize("together", [1, 4])
def test_windows_of_a_long_clip_are_read_in_turn(together, model, monkeypatch):
    loaded = model()
    monkeypatch.setattr(type(loaded.engine), "preferred_rows", property(lambda engine: together))
    monkeypatch.setattr("autogaze_backend.scheduling.ENCODE_FRAMES", 2)
    run = Run(loaded)
    run.add("a", 5, 3, STOP)
    run.add("b", 3, 4, STOP)
    run.finish()
    for name, frames, seed in (("a", 5, 3), ("b", 3, 4)):
        alone = loaded.generate(video(frames, seed)[None], **STOP)
        np.testing.assert_array_equal(assemble(loaded.spec, [run.results[name]]).gazing_pos, alone.gazing_pos)
