"""Serves ``autogaze_generate``: a thread of its own runs the rows of all clips that are here."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from autogaze_client._errors import DeadlineExceededError, InvalidInputError, ServerUnavailableError

from autogaze_backend.canary import CanaryLimits, EngineCanary
from autogaze_backend.clips import PreparedClip, finished_clip, prepare_clip, read_plan
from autogaze_backend.generation import FrameTokens
from autogaze_backend.limits import ClipLimits, IngestLimits
from autogaze_backend.model import GazeModel
from autogaze_backend.preprocessing import Frames, check_frames
from autogaze_backend.requests import Knobs, Remembered
from autogaze_backend.resident import ResidentScheduler, scheduler_for
from autogaze_backend.scheduling import RowJob, RowScheduler
from autogaze_backend.triton import Arrival

_LOG = logging.getLogger("autogaze")

# How often the callers of waiting clips are asked whether they still wait.
_LOOK_SECONDS = 0.05

# Videos that may be on their way through autogaze_ingest at once.
_DECODERS = 8


class ClipService:
    """The logic of the model ``autogaze_generate``, without Triton.

    Rows of all clips share the engine's calls, join between two calls and are answered as they finish.

    Args:
        model: runs them.
        limits: of clips at once, their work and their time.
        sizes: of one clip; checked here too, because a client may call this model without the ensemble.
    """

    def __init__(
        self,
        model: GazeModel,
        limits: ClipLimits | None = None,
        sizes: IngestLimits | None = None,
        canary: CanaryLimits | None = None,
    ) -> None:
        self._model = model
        self._limits, self._sizes = limits or ClipLimits(), sizes or IngestLimits()
        self._read = Remembered(partial(read_plan, model.spec))
        self._scheduler = scheduler_for(model.engine)
        self._canary = EngineCanary(model.engine, canary, wake=self._wake)
        # Guards what the two threads share: the inbox, the places and the end.
        self._changed = threading.Condition()
        self._inbox: deque[_Clip] = deque()
        self._active = self._decoding = 0
        self._closing = False
        # They wait for autogaze_ingest; how many videos are decoded at once is up to its instances.
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="autogaze-videos")
        self._thread = threading.Thread(target=self._work, name="autogaze-clips", daemon=True)
        self._thread.start()
        # An answer takes the server's time to arrive: meanwhile the engine goes on.
        self._outbox: queue.SimpleQueue[_Clip | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, name="autogaze-answers", daemon=True)
        self._sender.start()

    def take_in(self, arrivals: Sequence[Arrival]) -> None:
        """Takes clips in, in order; returns when none is left that waits for a place.

        The caller is Triton's batcher, so what waits beside a batch waits in Triton's queue, under its rules.
        Each request is answered: with its outputs, or with the error that it alone gets: ``InvalidInputError``
        (frames or knobs break a rule), ``ServerUnavailableError`` (no place came free in time, or the service is
        closing), ``RequestCancelledError`` or ``DeadlineExceededError`` (its caller has gone, or its time is over).
        """
        waiting: list[_Clip] = []
        for arrival in arrivals:
            try:
                waiting.append(self._taken(arrival))
            except Exception as error:
                arrival.answer(error)
        while waiting:
            refused: list[tuple[_Clip, Exception]] = []
            with self._changed:
                waiting, refused = self._admit(waiting)
                if waiting and not refused:
                    self._changed.wait(_LOOK_SECONDS)
            for clip, reason in refused:
                clip.refuse(reason)

    def _taken(self, arrival: Arrival) -> _Clip:
        """A clip that is ready to run, or one whose video is to be decoded first."""
        tensors = arrival.tensors
        if ("FRAMES" in tensors) == ("VIDEO" in tensors):
            raise InvalidInputError(
                "send either FRAMES (uint8 [T, H, W, 3 or 4]) or VIDEO (an encoded file), not both or none"
            )
        clip = _Clip(self._model, arrival, self._limits, self._conclude)
        if "VIDEO" in tensors:
            # What is wrong with the knobs is known before anything is decoded.
            Knobs.from_tensors(tensors)
        else:
            self._prepare(clip, tensors["FRAMES"])
        return clip

    def _prepare(self, clip: _Clip, frames: Frames) -> None:
        check_frames(frames)
        self._sizes.check(*frames.shape[:3])
        tensors = {**clip.arrival.tensors, "FRAMES": frames}
        clip.prepared = prepare_clip(self._model, tensors, self._limits.check_tiles, self._read)

    def _decode(self, clip: _Clip) -> None:
        """Has a video decoded, by a thread that has nothing else to do; then the clip enters like any other."""
        error: Exception | None = None
        try:
            clip.caller.check()
            self._prepare(clip, clip.arrival.decode(clip.arrival.tensors["VIDEO"], clip.caller.left))
        except Exception as failure:
            error = failure
        with self._changed:
            self._decoding -= 1
            if error is None:
                self._inbox.append(clip)
            else:
                self._active -= 1
            self._changed.notify_all()
        if error is not None:
            clip.refuse(error)

    def _conclude(self, clip: _Clip) -> None:
        """Has a clip answered whose rows are done: by the other thread, unless the engine has nothing else to do."""
        if len(self._scheduler):
            self._outbox.put(clip)
        else:
            self._answer(clip)

    def _answer(self, clip: _Clip) -> None:
        try:
            clip.answer()
        except Exception:
            _LOG.exception("a clip could not be answered")
        finally:
            self._leave()

    def _send(self) -> None:
        while (clip := self._outbox.get()) is not None:
            self._answer(clip)
            # No name is left behind: it would keep the clip until the next one comes.
            del clip

    def _admit(self, waiting: list[_Clip]) -> tuple[list[_Clip], list[tuple[_Clip, Exception]]]:
        """Lets those in that have a place; the ones that go on waiting, and the ones that do not, with the reason."""
        left, refused = [], []
        for clip in waiting:
            error = self._why_not_wait(clip)
            if error is not None:
                refused.append((clip, error))
            elif self._active < self._limits.max_active_clips:
                self._active += 1
                if clip.prepared is None:
                    self._decoding += 1
                    self._decoders.submit(self._decode, clip)
                else:
                    self._inbox.append(clip)
                    self._changed.notify_all()
            else:
                left.append(clip)
        return left, refused

    def _why_not_wait(self, clip: _Clip) -> Exception | None:
        limits = self._limits
        if self._closing:
            return ServerUnavailableError("the server is shutting down; send the request to another one")
        lost = clip.caller.lost()
        if lost is None and clip.caller.waited >= limits.max_wait_seconds:
            return ServerUnavailableError(
                f"the clip waited {limits.max_wait_seconds:g} s for one of {limits.max_active_clips} places; send it "
                "later or to another server (its operator may set AUTOGAZE_MAX_ACTIVE_CLIPS and "
                "AUTOGAZE_MAX_WAIT_SECONDS)"
            )
        return lost

    def _leave(self) -> None:
        with self._changed:
            self._active -= 1
            self._changed.notify_all()

    def is_ready(self) -> bool:
        """Whether the engine generates, shown by a canary between two of its calls; from any thread."""
        return self._canary.is_ready()

    def close(self) -> None:
        """Finishes what was taken in, takes nothing more, and ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._decoders.shutdown()
        self._thread.join()
        self._outbox.put(None)
        self._sender.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (
                    self._inbox
                    or len(self._scheduler)
                    or self._canary.asked
                    or (self._closing and not self._decoding)
                ):
                    self._changed.wait()
                arrived, self._inbox = self._inbox, deque()
                over = self._closing and not (arrived or len(self._scheduler) or self._decoding)
            self._canary.answer(at_work=len(self._scheduler) > 0)
            if over:
                return
            # No name is left behind: it would keep the last clip's frames until the next one comes.
            while arrived:
                arrived.popleft().enter(self._scheduler)
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
        arrival: Arrival,
        limits: ClipLimits,
        conclude: Callable[[_Clip], None],
    ) -> None:
        self._model, self.arrival, self.caller = model, arrival, arrival.caller
        self.prepared: PreparedClip | None = None
        self._conclude = conclude
        self._limits = limits
        self._entered = time.monotonic()
        self._done: dict[int, Sequence[FrameTokens]] = {}
        self._error: Exception | None = None
        self._open = 0

    def refuse(self, error: Exception) -> None:
        """Answers a clip that never entered."""
        self.arrival.answer(error)

    def enter(self, scheduler: RowScheduler | ResidentScheduler) -> None:
        """Hands the rows to the scheduler."""
        assert self.prepared is not None  # Only clips that are ready enter.
        self._entered = time.monotonic()
        rows = self.prepared.rows
        self._open, work = len(rows), sum(row.frames for row in rows)
        for index, row in enumerate(rows):
            scheduler.add(RowJob(row, partial(self._finish, index), partial(self._ended, row.frames), work))

    def _ended(self, frames: int, frame: int) -> Exception | None:
        if self._error is None:
            self._error = self.caller.lost(f"after {frame} of {frames} frames") or self._overrun(
                frames, frame
            )
        return self._error

    def _overrun(self, frames: int, frame: int) -> Exception | None:
        most = self._limits.max_run_seconds
        if time.monotonic() - self._entered < most:
            return None
        return DeadlineExceededError(
            f"the clip ran for {most:g} s and came to {frame} of {frames} frames; send fewer frames or tiles at once "
            "(the server's operator may set AUTOGAZE_MAX_RUN_SECONDS)"
        )

    def _finish(self, index: int, result: Sequence[FrameTokens] | Exception) -> None:
        if isinstance(result, Exception):
            self._error = self._error or result
        else:
            self._done[index] = result
        self._open -= 1
        if not self._open:
            self._conclude(self)

    def answer(self) -> None:
        """Tells the outputs, or the error."""
        if self._error is not None or self.prepared is None:
            self.arrival.answer(self._error or RuntimeError("the clip was never prepared"))
            return
        rows = [self._done[row] for row in range(len(self.prepared.rows))]
        self.arrival.answer(finished_clip(self._model, self.prepared, rows, self.arrival.outputs))
