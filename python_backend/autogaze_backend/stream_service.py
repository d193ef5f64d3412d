"""Serves ``autogaze_stream``: one frame a request, frames of all waiting streams in one batch."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from autogaze_client._errors import AutoGazeError, InvalidInputError, ServerUnavailableError
from autogaze_client.generated import AutoGazeGenerateOutput
from numpy.typing import NDArray

from autogaze_backend.budgets import Budget, resolve_budget
from autogaze_backend.callers import Caller
from autogaze_backend.canary import CanaryLimits, EngineCanary
from autogaze_backend.clips import token_tensors
from autogaze_backend.limits import IngestLimits, StreamLimits
from autogaze_backend.model import GazeModel
from autogaze_backend.outputs import assemble
from autogaze_backend.preprocessing import check_frames
from autogaze_backend.requests import Knobs
from autogaze_backend.stream_pool import StreamPool
from autogaze_backend.streaming import GazeStream, step_frames

Array = NDArray[Any]


@dataclass(frozen=True)
class _Ready:
    """A request whose frame is preprocessed and whose stream is held."""

    index: int
    stream: GazeStream
    stream_id: int
    frame: Array
    budget: Budget
    size: tuple[int, int]
    end: bool
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
        self.pool = StreamPool(lambda: model.open_stream(horizon=limits.horizon), limits)
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

    def run(
        self, batch: Sequence[Mapping[str, Array]], callers: Sequence[Caller] = ()
    ) -> list[dict[str, Array] | Exception]:
        """Serves a batch of requests, at most one a stream at a time.

        Args:
            batch: for each request ``FRAME`` uint8 ``[H, W, 3 or 4]``, any knobs, and the sequence
                batcher's ``CORRID``, ``START`` and ``END``.
            callers: who waits for each; none for callers that wait for ever. A frame whose caller has gone is
                not begun: its stream stays as it was, or ends where the frame was to end it.

        Returns:
            For each request its output tensors, or the error that it alone gets.
        """
        with self._busy:
            self._canary.answer()
            answers: list[dict[str, Array] | Exception] = [InvalidInputError("not served")] * len(batch)
            waiting = list(range(len(batch)))
            while waiting:
                # Frames of one stream depend on each other: its second request waits for the next round.
                first: dict[int, int] = {}
                for index in waiting:
                    first.setdefault(_stream_id(batch[index]), index)
                turn = sorted(first.values())
                waiting = [index for index in waiting if index not in turn]
                self._round(batch, callers, turn, answers)
            return answers

    def _round(
        self,
        batch: Sequence[Mapping[str, Array]],
        callers: Sequence[Caller],
        turn: list[int],
        answers: list[dict[str, Array] | Exception],
    ) -> None:
        ready: list[_Ready] = []
        for index in turn:
            try:
                if callers:
                    self._check_caller(batch[index], callers[index])
                prepared = self._prepare(index, batch[index])
            except AutoGazeError as error:
                answers[index] = error
                continue
            if prepared is None:
                answers[index] = self._answer(assemble_nothing(self._model), (0, 0, 0))
            else:
                ready.append(prepared)
        if not ready:
            return
        try:
            tokens = step_frames(self._model, [(item.stream, item.frame, item.budget) for item in ready])
        except Exception:
            # Their state is gone: what follows must start anew rather than go on from nothing.
            for item in ready:
                self._end(item)
            raise
        for item, frame in zip(ready, tokens, strict=True):
            answers[item.index] = self._answer(assemble(self._model.spec, [[frame]]), (1, *item.size))
            if item.end:
                self._end(item)

    def _check_caller(self, tensors: Mapping[str, Array], caller: Caller) -> None:
        error = caller.lost()
        if error is None:
            return
        if _flag(tensors, "END"):
            self.pool.end(_stream_id(tensors))
        raise error

    def _prepare(self, index: int, tensors: Mapping[str, Array]) -> _Ready | None:
        """Checks a request and holds its stream; None where it only ends one.

        A request that breaks a rule leaves its stream as it was.
        """
        stream_id = _stream_id(tensors)
        start, end = _flag(tensors, "START"), _flag(tensors, "END")
        frame = tensors["FRAME"]
        if end and frame.size == 0:
            self.pool.end(stream_id)
            return None
        if frame.ndim != 3:
            raise InvalidInputError(f"FRAME has shape {list(frame.shape)}; pass [H, W, 3] or [H, W, 4]")
        check_frames(frame[None])
        self._ingest.check(1, *frame.shape[:2])
        knobs = Knobs.from_tensors(tensors)
        if knobs.mode.is_tiled or knobs.target_scales is not None or knobs.target_patch_size is not None:
            raise InvalidInputError(
                f"MODE is {knobs.mode.code} and TARGET_SCALES {knobs.target_scales}; a stream runs in mode 0 (resize) "
                "without target scales; send clips to 'autogaze' for others"
            )
        budget = resolve_budget(
            self._model.spec,
            1,
            gazing_ratio=knobs.gazing_ratio,
            task_loss_requirement=knobs.task_loss_requirement,
            max_gaze_tokens_each_frame=knobs.max_gaze_tokens,
        )
        if knobs.top_k is not None:
            budget = budget.at_least(min(knobs.top_k, self._model.spec.tokens_per_frame))
        video = self._model.stream_input(frame[None])
        apart = self._open_apart(stream_id) if start and end else None
        stream = apart or (self.pool.start(stream_id) if start else self.pool.use(stream_id))
        size = (frame.shape[0], frame.shape[1])
        return _Ready(index, stream, stream_id, video, budget, size, end, apart is not None)

    def _open_apart(self, stream_id: int) -> GazeStream | None:
        """A stream of one frame, which takes no place and so evicts none; None where the engine has no slot left."""
        self.pool.end(stream_id)
        try:
            return self._model.open_stream(horizon=1)
        except ServerUnavailableError:
            return None

    def _end(self, item: _Ready) -> None:
        if item.apart:
            item.stream.close()
        else:
            self.pool.end(item.stream_id)

    def _answer(self, generated: AutoGazeGenerateOutput, size: tuple[int, int, int]) -> dict[str, Array]:
        return {
            **token_tensors(generated),
            "FIXATIONS": generated.fixations(0),
            "SOURCE_SIZE": np.array(size, np.int32),
        }

    def _keep_house(self) -> None:
        while not self._stopped:
            self._wanted.wait(self.pool.limits.ttl_seconds / 4)
            self._wanted.clear()
            with self._busy:
                self._canary.answer()
                self.pool.purge()


def assemble_nothing(model: GazeModel) -> AutoGazeGenerateOutput:
    """The output of no frames: one row without slots."""
    return AutoGazeGenerateOutput(
        gazing_pos=np.zeros((1, 0), np.int64),
        if_padded_gazing=np.zeros((1, 0), np.bool_),
        num_gazing_each_frame=np.zeros(0, np.int64),
        confidences=np.zeros((1, 0), np.float32),
        task_loss_predictions=np.zeros((1, 0), np.float32),
        scale_layouts=model.spec.scale_layouts,
    )


def _stream_id(tensors: Mapping[str, Array]) -> int:
    return int(tensors["CORRID"].reshape(-1)[0])


def _flag(tensors: Mapping[str, Array], name: str) -> bool:
    return bool(tensors[name].reshape(-1)[0])
