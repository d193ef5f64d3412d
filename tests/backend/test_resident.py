"""Rows on an engine that keeps them on its device: the torch engine of a CPU, against ONNX Runtime's rows alone."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_backend.budgets import resolve_budget
from autogaze_backend.generation import RowTokens
from autogaze_backend.outputs import assemble
from autogaze_backend.resident import ResidentScheduler, scheduler_for
from autogaze_backend.scheduling import Row, RowJob, RowScheduler, cancelled_error
from autogaze_client import RequestCancelledError, ServerUnavailableError
from goldens import clips

from backend.test_torch_engine import is_empty

pytestmark = pytest.mark.usefixtures("one_torch_thread")

STOP = {"gazing_ratio": 0.2, "task_loss_requirement": 0.75}
FEW = {"max_gaze_tokens_each_frame": 5}


def video(frames: int, seed: int) -> np.ndarray:
    return clips.normalise(clips.synthetic_clip(frames, 224, 224, seed))


class Run:
    """A scheduler and the results of its rows, in the order in which they were finished."""

    def __init__(self, model) -> None:
        self.model, self.scheduler = model, ResidentScheduler(model.engine)
        self.results: dict[object, object] = {}

    def add(self, name: object, frames: int, seed: int, knobs, ended=None, window=None) -> None:
        row = self.model.row(video(frames, seed), resolve_budget(self.model.spec, frames, **knobs))
        if window is not None:
            row = Row(frames, window, row.budget)
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
        assert is_empty(self.model.engine)
        return list(self.results)

    def check(self, name: object, frames: int, seed: int, knobs, reference) -> None:
        """The row's tokens are those of the clip alone on ONNX Runtime."""
        result = self.results[name]
        assert isinstance(result, RowTokens), result
        found, expected = (
            assemble(self.model.spec, [result]),
            reference.generate(video(frames, seed)[None], **knobs),
        )
        np.testing.assert_array_equal(found.gazing_pos, expected.gazing_pos)
        np.testing.assert_array_equal(found.if_padded_gazing, expected.if_padded_gazing)
        np.testing.assert_allclose(found.task_loss_predictions, expected.task_loss_predictions, atol=1e-4)


ROWS = [
    (1, 90, {"max_gaze_tokens_each_frame": 37}),
    (3, 91, STOP),
    (2, 92, {"max_gaze_tokens_each_frame": [25, 1]}),
    (2, 93, {"gazing_ratio": 0.5, "task_loss_requirement": 0.7}),
]


@pytest.mark.parametrize("rows", [2, 16])
def test_rows_that_differ_equal_each_alone(rows, torch_model, model):
    """Also where a call takes fewer rows than there are."""
    run = Run(torch_model(rows=rows))
    for index, row in enumerate(ROWS):
        run.add(index, *row)
    run.finish()
    for index, row in enumerate(ROWS):
        run.check(index, *row, model())


def test_rows_join_while_another_runs(torch_model, model):
    run = Run(torch_model())
    for index, row in enumerate(ROWS):
        run.add(index, *row)
        run.tick(3)
    run.finish()
    for index, row in enumerate(ROWS):
        run.check(index, *row, model())


def test_a_row_longer_than_a_window_is_read_in_turn(torch_model, model):
    run, asked = Run(torch_model()), []
    clip = video(18, 94)

    def window(start, stop):
        asked.append((start, stop))
        return clip[start:stop]

    run.add("long", 18, 94, FEW, window=window)
    run.finish()
    assert asked == [(0, 16), (16, 32)]
    run.check("long", 18, 94, FEW, model())


def test_a_cancelled_row_leaves_the_others_alone(torch_model, model):
    run = Run(torch_model())
    run.add("kept", 2, 95, STOP)
    run.add("gone", 3, 96, FEW, ended=lambda frame: cancelled_error(frame, 3) if frame else None)
    run.finish()
    assert isinstance(run.results["gone"], RequestCancelledError)
    assert "after 1 of 3 frames" in str(run.results["gone"])
    run.check("kept", 2, 95, STOP, model())


def test_a_row_that_cannot_be_read_leaves_the_others_alone(torch_model, model):
    run = Run(torch_model())

    def window(start, stop):
        raise OSError("the file has gone")

    run.add("broken", 2, 97, FEW, window=window)
    run.add("kept", 2, 95, STOP)
    run.finish()
    assert str(run.results["broken"]) == "the file has gone"
    run.check("kept", 2, 95, STOP, model())


def test_a_call_that_fails_ends_its_rows_and_frees_what_they_held(torch_model, model, monkeypatch):
    run = Run(torch_model())
    with monkeypatch.context() as patch:

        def fail(slots, calls=1):
            raise RuntimeError("device lost")

        patch.setattr(run.model.engine, "continue_rows", fail)
        run.add(0, 2, 95, STOP)
        run.add(1, 1, 96, {"max_gaze_tokens_each_frame": 20})
        run.finish()
    assert [str(result) for result in run.results.values()] == ["device lost"] * 2
    run.add(2, 2, 95, STOP)
    run.finish()
    run.check(2, 2, 95, STOP, model())


def test_rows_without_a_slot_wait_and_come_in_order(torch_model, model):
    run = Run(torch_model(slots=2, rows=2))
    for seed in range(4):
        run.add(seed, 1, 90 + seed, FEW)
    assert run.finish() == [0, 1, 2, 3]
    for seed in range(4):
        run.check(seed, 1, 90 + seed, FEW, model())


def test_rows_without_memory_wait_and_one_that_never_fits_is_refused(torch_model, model):
    """The pool's 12 pages hold three frames."""
    run = Run(torch_model(slots=4, rows=4, cache_gib=12 * 64 * 4 * 2 * 192 * 4 / 2**30))
    run.add("first", 2, 90, FEW)
    run.add("waits", 2, 91, FEW)
    run.add("too long", 5, 92, FEW)
    run.tick(1)
    assert len(run.scheduler) == 3
    run.finish()
    for name, seed in (("first", 90), ("waits", 91)):
        run.check(name, 2, seed, FEW, model())
    assert isinstance(run.results["too long"], ServerUnavailableError)
    assert "AUTOGAZE_CACHE_GIB" in str(run.results["too long"])
    assert "needs 1088 cached positions, more than the 768" in str(run.results["too long"])


def test_giving_up_and_failing_free_everything(torch_model):
    run = Run(torch_model())
    for end in (run.scheduler.abandon, lambda: run.scheduler.fail(RuntimeError("lost"))):
        run.add(0, 2, 90, STOP)
        run.add(1, 2, 91, STOP)
        run.tick(2)
        assert not run.results
        end()
        assert len(run.scheduler) == 0
        assert is_empty(run.model.engine)
    assert [str(result) for result in run.results.values()] == ["lost"] * 2


def test_the_scheduler_fits_the_engine(torch_model, model):
    assert isinstance(scheduler_for(torch_model().engine), ResidentScheduler)
    assert isinstance(scheduler_for(model().engine), RowScheduler)


def test_frames_are_cut_out_of_windows():
    def window(counts, start):
        ids = np.arange(start, start + 12)
        return np.array(counts), ids, ids.astype(np.float32) / 100, -ids.astype(np.float32)

    # Entries beyond the frames' own are what the window held before.
    tokens = RowTokens([window([2, 0, 3], 0), window([4], 100)])
    assert len(tokens) == 4
    assert [frame.arrays()[0].tolist() for frame in tokens] == [[0, 1], [], [2, 3, 4], [100, 101, 102, 103]]
    assert tokens[-1].arrays()[2].tolist() == [-100, -101, -102, -103]
    np.testing.assert_allclose(tokens[2].arrays()[1], [0.02, 0.03, 0.04])
    assert [frame.arrays()[0].tolist() for frame in tokens[1:3]] == [[], [2, 3, 4]]
    with pytest.raises(IndexError):
        tokens[4]
