"""Rows that come and go share the engine's calls: a row joins between two calls and leaves when it is done.

Which rows run: those that are due first. A row is due when the engine has finished as many frames since the
row came as the row's request has itself. So requests of one length are served in the order they came, a
short request does not wait for the end of a long one, and a long one cannot wait for ever.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from autogaze_client._errors import RequestCancelledError

from autogaze_backend.budgets import Budget
from autogaze_backend.engine import Engine, Floats
from autogaze_backend.generation import FrameLimits, FrameTokens, RowState, continue_frames, open_frames

_LOG = logging.getLogger("autogaze")

# Frames encoded at once: bounds the memory of a long clip without starving the convolutions.
ENCODE_FRAMES = 16

# Rows that may hold a cache at once where the engine sets no bound: one that runs, and those it was put before.
_STARTED = 4


@dataclass(frozen=True)
class Row:
    """A clip of one row, read in windows so that a long one is never held whole as floats.

    Attributes:
        frames: T.
        window: from a range of frames (the end may lie past T) to float32 ``[t, 3, side, side]``.
        budget: its limits.
    """

    frames: int
    window: Callable[[int, int], Floats]
    budget: Budget


@dataclass
class RowJob:
    """A row on its way.

    Attributes:
        row: what to run.
        done: told the frames' tokens, or the error that ended the row, once.
        ended: asked between calls: the error to end the row with, such as that its caller has gone.
        work: frames of its whole request.
    """

    row: Row
    done: Callable[[Sequence[FrameTokens] | Exception], None]
    ended: Callable[[int], Exception | None] = lambda frame: None
    work: int = 0
    due: int = 0
    order: int = 0
    alone: bool = False
    state: RowState | None = None
    encoder_state: Floats | None = None
    vision: Floats | None = None
    tokens: list[FrameTokens] = field(default_factory=list)

    @property
    def frame(self) -> int:
        """Frames that are finished."""
        return len(self.tokens)

    def limits(self) -> FrameLimits:
        """Of the next frame."""
        return FrameLimits(int(self.row.budget.max_tokens[self.frame]), self.row.budget.requirement)

    def restart(self) -> None:
        """Forgets what was done; the row then shares no call, so that what makes calls fail shows."""
        self.state = self.encoder_state = self.vision = None
        self.tokens = []
        self.alone = True


def cancelled_error(frame: int, frames: int) -> RequestCancelledError:
    """What ends a row whose caller has gone, after ``frame`` of its ``frames``."""
    return RequestCancelledError(f"the caller cancelled the request after {frame} of {frames} frames")


class RowScheduler:
    """Runs rows on one engine. Not thread-safe: ``add`` and ``tick`` belong to the engine's one caller."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: list[RowJob] = []
        self._clock = 0
        self._order = 0

    def __len__(self) -> int:
        """Rows that are not done."""
        return len(self._jobs)

    def add(self, job: RowJob) -> None:
        """Takes a row in; it joins at the next ``tick`` that has room for it."""
        self._order += 1
        job.order, job.due = self._order, self._clock + max(job.work, job.row.frames)
        self._jobs.append(job)

    def tick(self) -> None:
        """One step of the rows that are due first: what must open a frame opens it, the others go on."""
        batch = [job for job in self._due() if not self._ended(job)]
        if not batch:
            return
        running = [job for job in batch if job.state is not None and job.state.running]
        opening = self._encode([job for job in batch if job not in running])
        if opening and self._call(opening, self._open):
            self._collect(opening)
        if running and self._call(running, self._continue):
            self._collect(running)

    def abandon(self) -> None:
        """Gives up all rows, without telling anyone, and frees what they hold."""
        for job in self._jobs:
            self._release(job)
        self._jobs = []

    def fail(self, error: Exception) -> None:
        """Ends all rows with ``error``."""
        for job in list(self._jobs):
            try:
                self._finish(job, error)
            except Exception:
                _LOG.exception("a row's end could not be told")

    def _due(self) -> list[RowJob]:
        """The rows of the next call."""
        bound = self._engine.max_slots
        if bound is None:
            bound = max(_STARTED, self._engine.preferred_rows)
        started = [job for job in self._jobs if job.state is not None]
        jobs = self._jobs if len(started) < bound else started
        batch = heapq.nsmallest(self._engine.preferred_rows, jobs, key=lambda job: (job.due, job.order))
        if batch and batch[0].alone:
            return batch[:1]
        batch = [job for job in batch if not job.alone]
        # Rows without a cache yet may be more than the places that are left.
        room = bound - len(started)
        chosen = []
        for job in batch:
            if job.state is None:
                if room == 0:
                    continue
                room -= 1
            chosen.append(job)
        return chosen

    def _ended(self, job: RowJob) -> bool:
        error = job.ended(job.frame)
        if error is not None:
            self._finish(job, error)
        return error is not None

    def _encode(self, jobs: list[RowJob]) -> list[RowJob]:
        """Sees to it that each row has the encoding of its next frame; the rows that do."""
        ready: list[RowJob] = []
        windows: dict[int, list[tuple[RowJob, Floats]]] = {}
        for job in jobs:
            start = job.frame - job.frame % ENCODE_FRAMES
            if job.frame != start:
                ready.append(job)
                continue
            try:
                frames = job.row.window(start, start + ENCODE_FRAMES)
            except Exception as error:
                self._finish(job, error)
                continue
            windows.setdefault(len(frames), []).append((job, frames))
        for group in windows.values():
            frames_of = {id(job): frames for job, frames in group}
            encoded = [job for job, _ in group]
            if self._call(encoded, partial(self._encode_window, frames_of)):
                ready += encoded
        return ready

    def _encode_window(self, frames_of: dict[int, Floats], jobs: Sequence[RowJob]) -> None:
        shape = self._engine.encoder_state_shape
        states = [
            np.zeros(shape, np.float32) if job.encoder_state is None else job.encoder_state for job in jobs
        ]
        vision, new_states = self._engine.encode(
            np.stack([frames_of[id(job)] for job in jobs]), np.stack(states)
        )
        for index, job in enumerate(jobs):
            job.vision, job.encoder_state = vision[index], new_states[index]

    def _open(self, jobs: Sequence[RowJob]) -> None:
        for job in jobs:
            if job.state is None:
                job.state = RowState(self._engine.open_slot())
        visions = [_vision(job)[job.frame % ENCODE_FRAMES] for job in jobs]
        states = [_state(job) for job in jobs]
        open_frames(self._engine, states, np.stack(visions), [job.limits() for job in jobs])

    def _continue(self, jobs: Sequence[RowJob]) -> None:
        continue_frames(self._engine, [_state(job) for job in jobs])

    def _call(self, jobs: list[RowJob], call: Callable[[list[RowJob]], None]) -> bool:
        """Runs a call of the engine. Where it fails, its rows start anew, each in calls of its own."""
        try:
            call(jobs)
        except Exception as error:
            for job in jobs:
                if len(jobs) == 1:
                    self._finish(job, error)
                else:
                    self._release(job)
                    job.restart()
            return False
        return True

    def _collect(self, jobs: Sequence[RowJob]) -> None:
        for job in jobs:
            state = _state(job)
            if state.running:
                continue
            job.tokens.append(state.tokens)
            self._clock += 1
            if job.frame == job.row.frames:
                self._finish(job, job.tokens)

    def _finish(self, job: RowJob, result: Sequence[FrameTokens] | Exception) -> None:
        self._jobs.remove(job)
        self._release(job)
        job.done(result)

    def _release(self, job: RowJob) -> None:
        if job.state is not None:
            self._engine.close_slot(job.state.slot)
            job.state = None


def _state(job: RowJob) -> RowState:
    assert job.state is not None
    return job.state


def _vision(job: RowJob) -> Floats:
    assert job.vision is not None
    return job.vision
