"""Serves ``autogaze_stream``: one frame a request, frames of all waiting streams in one batch."""

from __future__ import annotations

import threading
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from autogaze_client._errors import AutoGazeError, InvalidInputError, ServerUnavailableError
from numpy.typing import NDArray

from autogaze_backend.budgets import Budget
from autogaze_backend.callers import Caller
from autogaze_backend.canary import CanaryLimits, EngineCanary
from autogaze_backend.limits import IngestLimits, StreamLimits
from autogaze_backend.model import GazeModel
from autogaze_backend.preprocessing import check_frames
from autogaze_backend.requests import Knobs, Remembered
from autogaze_backend.stream_answers import STREAM_OUTPUTS, StreamAnswer, StreamAnswers
from autogaze_backend.stream_pool import StreamId, StreamPool
from autogaze_backend.streaming import GazeStream, step_frames

Array = NDArray[Any]

# Different frame shapes that are remembered as good; callers mostly send the same ones again.
_REMEMBERED = 1024


class StreamRequest(NamedTuple):
    """A frame of a stream, or the end of one.

    Attributes:
        stream_id: what tells the stream from others.
        start: whether the stream starts (anew) with this frame.
        end: whether it ends after it; a frame without pixels then only ends it.
        tensors: ``FRAME`` uint8 ``[H, W, 3 or 4]`` and any knobs.
        caller: who waits for it; None for one that waits for ever.
        outputs: what the caller wants, of ``STREAM_OUTPUTS``.
    """

    stream_id: StreamId
    start: bool
    end: bool
    tensors: Mapping[str, Array]
    caller: Caller | None = None
    outputs: Container[str] = STREAM_OUTPUTS


class _Ready(NamedTuple):
    """A request whose frame is checked and whose stream is held."""

    place: int
    stream: GazeStream
    frame: Array
    budget: Budget
    size: tuple[int, int]
    apart: bool


class StreamService:
    """The logic of the model ``autogaze_stream``, without Triton."""

    def __init__(
        self,
        model: GazeModel,
        limits: StreamLimits | None = None,
        ingest: IngestLimits | None = None,
        canary: CanaryLimits | None = None,
    ) -> None:
        limits = limits or StreamLimits()
        self._model = model
        self._ingest = ingest or IngestLimits()
        self._answers = StreamAnswers(model.spec)
        self.pool = StreamPool(lambda: model.open_stream(horizon=limits.horizon), limits)
        self._budget = Remembered(self._read_budget)
        self._shapes: set[tuple[int, ...]] = set()
        # Execution and housekeeping take turns: no stream is freed while its frame is computed, and the engine
        # has one caller at a time.
        self._busy = threading.Lock()
        self._stopped = False
        self._wanted = threading.Event()
        self._canary = EngineCanary(model.engine, canary, wake=self._wanted.set)
        self._keeper = threading.Thread(target=self._keep_house, name="autogaze-stream-keeper", daemon=True)
        self._keeper.start()

    def is_ready(self) -> bool:
        """Whether the engine generates, shown by a canary between two executions; from any thread."""
        return self._canary.is_ready()

    def close(self) -> None:
        """Stops the thread that frees idle streams and answers canaries."""
        self._stopped = True
        self._wanted.set()
        self._keeper.join()

    def run(self, batch: Sequence[StreamRequest]) -> list[StreamAnswer | Exception]:
        """Serves a batch of requests, at most one a stream at a time.

        A frame whose caller has gone is not begun: its stream stays as it was, or ends where the frame was to end it.

        Returns:
            For each request its answer, or the error that it alone gets.
        """
        with self._busy:
            self._canary.answer()
            answers: list[StreamAnswer | Exception] = [InvalidInputError("not served")] * len(batch)
            waiting = list(range(len(batch)))
            while waiting:
                # Frames of one stream depend on each other: its second request waits for the next round.
                turn: dict[StreamId, int] = {}
                later: list[int] = []
                for index in waiting:
                    if turn.setdefault(batch[index].stream_id, index) != index:
                        later.append(index)
                self._round(batch, list(turn.values()), answers)
                waiting = later
            return answers

    def _round(
        self, batch: Sequence[StreamRequest], turn: list[int], answers: list[StreamAnswer | Exception]
    ) -> None:
        ready: list[_Ready] = []
        for index in turn:
            request = batch[index]
            try:
                if request.caller is not None:
                    self._check_caller(request, request.caller)
                prepared = self._prepare(index, request)
            except AutoGazeError as error:
                answers[index] = error
                continue
            if prepared is None:
                answers[index] = self._answers.of_nothing(request.outputs)
            else:
                ready.append(prepared)
        if not ready:
            return
        try:
            tokens = step_frames(self._model, [(item.stream, item.frame, item.budget) for item in ready])
        except Exception:
            # Their state is gone: what follows must start anew rather than go on from nothing.
            for item in ready:
                self._end(batch[item.place], item)
            raise
        made = self._answers.of_frames(
            tokens, [item.size for item in ready], [batch[item.place].outputs for item in ready]
        )
        for item, answer in zip(ready, made, strict=True):
            answers[item.place] = answer
            if batch[item.place].end:
                self._end(batch[item.place], item)

    def _check_caller(self, request: StreamRequest, caller: Caller) -> None:
        error = caller.lost()
        if error is None:
            return
        if request.end:
            self.pool.end(request.stream_id)
        raise error

    def _prepare(self, place: int, request: StreamRequest) -> _Ready | None:
        """Checks a request and holds its stream; None where it only ends one.

        A request that breaks a rule leaves its stream as it was.
        """
        stream_id, frame = request.stream_id, request.tensors["FRAME"]
        if request.end and frame.size == 0:
            self.pool.end(stream_id)
            return None
        if frame.shape not in self._shapes or frame.dtype != np.uint8:
            self._check_frame(frame)
        budget = self._budget(1, request.tensors)
        video = self._model.stream_input(frame[None])
        apart = self._open_apart(stream_id) if request.start and request.end else None
        stream = apart or (self.pool.start(stream_id) if request.start else self.pool.use(stream_id))
        return _Ready(place, stream, video, budget, (frame.shape[0], frame.shape[1]), apart is not None)

    def _check_frame(self, frame: Array) -> None:
        if frame.ndim != 3:
            raise InvalidInputError(f"FRAME has shape {list(frame.shape)}; pass [H, W, 3] or [H, W, 4]")
        check_frames(frame[None])
        self._ingest.check(1, *frame.shape[:2])
        if len(self._shapes) >= _REMEMBERED:
            self._shapes.clear()
        self._shapes.add(frame.shape)

    def _read_budget(self, frames: int, tensors: Mapping[str, Array]) -> Budget:
        """The budget that the knobs of a request mean."""
        knobs = Knobs.from_tensors(tensors)
        if knobs.mode.is_tiled or knobs.target_scales is not None or knobs.target_patch_size is not None:
            raise InvalidInputError(
                f"MODE is {knobs.mode.code} and TARGET_SCALES {knobs.target_scales}; a stream runs in mode 0 (resize) "
                "without target scales; send clips to 'autogaze' for others"
            )
        return knobs.budget(self._model.spec, frames)

    def _open_apart(self, stream_id: StreamId) -> GazeStream | None:
        """A stream of one frame, which takes no place and so evicts none; None where the engine has no slot left."""
        self.pool.end(stream_id)
        try:
            return self._model.open_stream(horizon=1)
        except ServerUnavailableError:
            return None

    def _end(self, request: StreamRequest, item: _Ready) -> None:
        if item.apart:
            item.stream.close()
        else:
            self.pool.end(request.stream_id)

    def _keep_house(self) -> None:
        while not self._stopped:
            self._wanted.wait(self.pool.limits.ttl_seconds / 4)
            self._wanted.clear()
            with self._busy:
                self._canary.answer()
                self.pool.purge()
