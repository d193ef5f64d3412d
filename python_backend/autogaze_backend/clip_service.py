"""Serves ``autogaze_generate``: a thread of its own runs the rows of all clips that are here."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from autogaze_client._errors import ServerUnavailableError
from numpy.typing import NDArray

from autogaze_backend.canary import CanaryLimits, EngineCanary
from autogaze_backend.clips import PreparedClip, finished_clip, prepare_clip
from autogaze_backend.generation import FrameTokens
from autogaze_backend.model import GazeModel
from autogaze_backend.resident import ResidentScheduler, scheduler_for
from autogaze_backend.scheduling import RowJob, RowScheduler, cancelled_error

_LOG = logging.getLogger("autogaze")

Array = NDArray[Any]
Tensors = dict[str, Array]
Answer = Callable[[Tensors | Exception], None]


@dataclass(frozen=True)
class ClipLimits:
    """Attributes: ``max_active_clips``, clips taken in at once; others wait in Triton's queue, under its rules."""

    max_active_clips: int = 16


class ClipService:
    """The logic of the model ``autogaze_generate``, without Triton.

    Rows of all clips share the engine's calls, join between two calls and are answered as they finish.
    """

    def __init__(
        self, model: GazeModel, limits: ClipLimits | None = None, canary: CanaryLimits | None = None
    ) -> None:
        self._model = model
        self._scheduler = scheduler_for(model.engine)
        self._canary = EngineCanary(model.engine, canary, wake=self._wake)
        self._room = threading.Semaphore((limits or ClipLimits()).max_active_clips)
        # Guards what the two threads share: the inbox and the end.
        self._changed = threading.Condition()
        self._inbox: deque[_Clip] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="autogaze-clips", daemon=True)
        self._thread.start()

    def submit(self, tensors: Mapping[str, Array], answer: Answer, cancelled: Callable[[], bool]) -> None:
        """Takes a clip in; waits while there is no room.

        Args:
            tensors: of a request (docs/protocol.md), every knob filled in.
            answer: told the output tensors or the error, once, from any thread.
            cancelled: whether the caller has gone.

        Raises:
            InvalidInputError: frames or knobs break a rule; ``answer`` is not called then.
            ServerUnavailableError: the service is closing; likewise.
        """
        clip = _Clip(self._model, prepare_clip(self._model, tensors), answer, cancelled, self._room.release)
        self._room.acquire()
        with self._changed:
            if self._closing:
                self._room.release()
                raise ServerUnavailableError("the server is shutting down; send the request to another one")
            self._inbox.append(clip)
            self._changed.notify()

    def is_ready(self) -> bool:
        """Whether the engine generates, shown by a canary between two of its calls; from any thread."""
        return self._canary.is_ready()

    def close(self) -> None:
        """Finishes what was taken in, takes nothing more, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or len(self._scheduler) or self._canary.asked or self._closing):
                    self._changed.wait()
                arrived = list(self._inbox)
                self._inbox.clear()
                over = self._closing and not (arrived or len(self._scheduler))
            self._canary.answer(at_work=len(self._scheduler) > 0)
            if over:
                return
            for clip in arrived:
                clip.enter(self._scheduler)
            try:
                self._scheduler.tick()
            except Exception as error:
                # A fault of this thread must not leave its callers waiting for ever.
                _LOG.exception("the clip service failed")
                self._scheduler.fail(error)


class _Clip:
    """A clip whose rows are on their way; answered when the last is done or the first has failed."""

    def __init__(
        self,
        model: GazeModel,
        prepared: PreparedClip,
        answer: Answer,
        cancelled: Callable[[], bool],
        leave: Callable[[], None],
    ) -> None:
        self._model, self._prepared = model, prepared
        self._answer, self._cancelled, self._leave = answer, cancelled, leave
        self._done: dict[int, Sequence[FrameTokens]] = {}
        self._error: Exception | None = None
        self._open = len(prepared.rows)

    def enter(self, scheduler: RowScheduler | ResidentScheduler) -> None:
        """Hands the rows to the scheduler."""
        work = sum(row.frames for row in self._prepared.rows)
        for index, row in enumerate(self._prepared.rows):
            scheduler.add(RowJob(row, partial(self._finish, index), partial(self._ended, row.frames), work))

    def _ended(self, frames: int, frame: int) -> Exception | None:
        if self._error is None and self._cancelled():
            self._error = cancelled_error(frame, frames)
        return self._error

    def _finish(self, index: int, result: Sequence[FrameTokens] | Exception) -> None:
        if isinstance(result, Exception):
            self._error = self._error or result
        else:
            self._done[index] = result
        self._open -= 1
        if self._open:
            return
        try:
            if self._error is None:
                rows = [self._done[row] for row in range(len(self._prepared.rows))]
                self._answer(finished_clip(self._model, self._prepared, rows))
            else:
                self._answer(self._error)
        finally:
            self._leave()
