"""Streams: one frame or chunk at a time, with a cache that holds the last frames only.

Up to the horizon a stream's tokens are those of the whole clip. Past it, before each frame, the oldest
frames leave the cache; positions keep counting and cached keys keep their rotation (pipeline §5).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from autogaze_client._errors import InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from numpy.typing import NDArray

from autogaze_backend.budgets import Budget, Ratio, Tokens, resolve_budget
from autogaze_backend.engine import Engine, Floats
from autogaze_backend.generation import FrameLimits, FrameTokens, RowState, generate_frames
from autogaze_backend.outputs import assemble
from autogaze_backend.preprocessing import resize_to_input
from autogaze_backend.resident import ResidentEngine, frame_positions, is_resident

if TYPE_CHECKING:
    from autogaze_backend.model import GazeModel

DEFAULT_HORIZON = 16


class FrameWindow:
    """Which frame each cached position of a row belongs to, and how the oldest frames leave.

    A dropped frame's places are filled from the end of the cache, so dropping costs what the frame costs,
    not what the cache costs; attention does not depend on the order of the keys.
    """

    def __init__(self, horizon: int) -> None:
        self._horizon = horizon
        self._owners = np.zeros(0, np.int64)
        self._active: deque[int] = deque()
        self.processed = 0

    @property
    def active(self) -> int:
        """Frames in the cache."""
        return len(self._active)

    def make_room(self, engine: Engine, state: RowState) -> None:
        """Drops the oldest frames of a row until another frame fits the horizon."""
        while len(self._active) >= self._horizon:
            self._drop(engine, state, self._active.popleft())

    def add_frame(self, leftover: int, state: RowState) -> None:
        """Notes the frame that was just generated.

        Args:
            leftover: tokens of the frame before that this frame fed first; they are that frame's, unless it
                has left the cache already (a horizon of 1), then this one's.
            state: after the frame.
        """
        frame = self.processed
        previous = frame - 1 if frame - 1 in self._active else frame
        new = state.length - len(self._owners) - leftover
        self._owners = np.concatenate(
            [self._owners, np.full(leftover, previous, np.int64), np.full(new, frame, np.int64)]
        )
        self._active.append(frame)
        self.processed += 1

    def _drop(self, engine: Engine, state: RowState, frame: int) -> None:
        kept = int((self._owners != frame).sum())
        holes = np.flatnonzero(self._owners[:kept] == frame)
        movers = kept + np.flatnonzero(self._owners[kept:] != frame)
        if len(holes):
            engine.move(state.slot, movers, holes)
        self._owners[holes] = self._owners[movers]
        self._owners = self._owners[:kept]
        state.length = kept


class FrameSpans:
    """How many cached positions each frame of a row takes, on an engine whose cache drops its oldest in place."""

    def __init__(self, horizon: int) -> None:
        self._horizon = horizon
        self._spans: deque[int] = deque()
        self.processed = 0
        self.end = 0

    @property
    def active(self) -> int:
        """Frames in the cache."""
        return len(self._spans)

    def drop_oldest(self) -> int:
        """Takes frames out until another one fits the horizon; the positions that they held."""
        dropped = 0
        while len(self._spans) >= self._horizon:
            dropped += self._spans.popleft()
        return dropped

    def add_frame(self, leftover: int, new: int) -> None:
        """Notes the frame that was just generated; ``leftover`` is that of ``FrameWindow.add_frame``.

        Args:
            leftover: tokens of the frame before that this frame fed first.
            new: tokens that it fed since.
        """
        if self._spans:
            self._spans[-1] += leftover
            self._spans.append(new)
        else:
            self._spans.append(leftover + new)
        self.end += leftover + new
        self.processed += 1


@dataclass(frozen=True)
class _Progress:
    """Everything that a stream carries from frame to frame."""

    row: RowState
    window: FrameWindow | FrameSpans


class GazeStream:
    """A camera or any other endless video; from ``GazeModel.open_stream``.

    Example:
        >>> with model.open_stream() as stream:  # doctest: +SKIP
        ...     gaze = stream.step(frame, gazing_ratio=0.1)  # frame: float32 [1, 3, H, W]
    """

    def __init__(self, model: GazeModel, horizon: int = DEFAULT_HORIZON) -> None:
        if horizon < 1:
            raise InvalidInputError(f"horizon is {horizon}; a stream must keep at least 1 frame")
        self._model = model
        self.horizon = horizon
        self._progress: _Progress | None = None
        self._encoder_state: Floats | None = None
        self._closed = False
        self.reset()

    @property
    def processed_frames(self) -> int:
        """Frames since the start or the last reset."""
        return self._require().window.processed

    @property
    def active_frames(self) -> int:
        """Frames in the cache, at most the horizon."""
        return self._require().window.active

    def step(
        self,
        frame: NDArray[np.float32],
        *,
        gazing_ratio: Ratio = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: Tokens = None,
    ) -> AutoGazeGenerateOutput:
        """Chooses the tokens of the next frame.

        Args:
            frame: float32 ``[1, 3, H, W]``, normalised as upstream's processor does.
            gazing_ratio: see ``GazeModel.generate``; the knobs may change from frame to frame.
            task_loss_requirement: likewise.
            max_gaze_tokens_each_frame: likewise.

        Returns:
            The frame's tokens, one row, ids counted within the frame.

        Raises:
            InvalidInputError: a wrong shape or knob, or the stream is closed or lost.
        """
        if frame.ndim != 4:
            raise InvalidInputError(f"frame has shape {list(frame.shape)}; pass [1, 3, H, W]")
        return self.push(
            frame[:, None],
            gazing_ratio=gazing_ratio,
            task_loss_requirement=task_loss_requirement,
            max_gaze_tokens_each_frame=max_gaze_tokens_each_frame,
        )

    def push(
        self,
        clip: NDArray[np.float32],
        *,
        gazing_ratio: Ratio = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: Tokens = None,
    ) -> AutoGazeGenerateOutput:
        """Chooses the tokens of the next frames, float32 ``[1, t, 3, H, W]``; as that many steps would.

        Returns:
            The frames' tokens, one row, frames counted within this chunk.

        Raises:
            InvalidInputError: as ``step``.
        """
        from autogaze_backend.model import check_video

        check_video(clip)
        if len(clip) != 1:
            raise InvalidInputError(
                f"the chunk has {len(clip)} rows; a stream is one row, so open one a camera"
            )
        budget = resolve_budget(
            self._model.spec,
            clip.shape[1],
            gazing_ratio=gazing_ratio,
            task_loss_requirement=task_loss_requirement,
            max_gaze_tokens_each_frame=max_gaze_tokens_each_frame,
        )
        frames = [
            step_frames(self._model, [(self, frame[None], budget.of_frame(t))])[0]
            for t, frame in enumerate(clip[0])
        ]
        return assemble(self._model.spec, [frames])

    def reset(self) -> None:
        """Forgets everything: the next frame is the first of a new stream."""
        if self._closed:
            raise InvalidInputError("the stream is closed; open a new one")
        self._release()
        engine = self._model.engine
        window = FrameSpans(self.horizon) if is_resident(engine) else FrameWindow(self.horizon)
        self._progress = _Progress(RowState(engine.open_slot()), window)

    def close(self) -> None:
        """Frees the cache; the stream cannot be used any more. Closing twice is harmless."""
        self._closed = True
        self._release()

    def _release(self) -> None:
        if self._progress is not None:
            self._model.engine.close_slot(self._progress.row.slot)
        self._progress = self._encoder_state = None

    def __enter__(self) -> GazeStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the stream."""
        self.close()

    def _require(self) -> _Progress:
        if self._closed:
            raise InvalidInputError("the stream is closed; open a new one")
        if self._progress is None:
            raise InvalidInputError("the stream lost its state when an earlier frame failed; call reset()")
        return self._progress


def step_frames(
    model: GazeModel, items: Sequence[tuple[GazeStream, NDArray[Any], Budget]]
) -> list[FrameTokens]:
    """Runs one frame of each of several streams, in batches of as many as the engine prefers.

    Args:
        model: of every stream.
        items: a stream, its frame float32 ``[1, 3, H, W]`` (any size) or as ``GazeModel.stream_input`` gives it,
            and the budget of that frame.

    Returns:
        The tokens of each, in order.

    Raises:
        InvalidInputError: a stream is closed, lost, of another model, or named twice. Nothing has run then.
    """
    engine = model.engine
    progress = [stream._require() for stream, _, _ in items]
    if len({id(stream) for stream, _, _ in items}) != len(items):
        raise InvalidInputError(
            "a stream is named twice; its frames depend on each other, so send one at a time"
        )
    if any(stream._model is not model for stream, _, _ in items):
        raise InvalidInputError("a stream belongs to another model; step it with the model that opened it")
    if is_resident(engine):
        return _step_resident(model, engine, items, progress)
    frames = np.stack([resize_to_input(frame, model.spec.input_size) for _, frame, _ in items])
    state_shape = engine.encoder_state_shape
    states = [
        np.zeros((1, *state_shape), np.float32) if stream._encoder_state is None else stream._encoder_state
        for stream, _, _ in items
    ]
    padding = model.spec.tokens_per_frame
    try:
        vision, new_states = engine.encode(frames, np.concatenate(states))
        windows = [item.window for item in progress if isinstance(item.window, FrameWindow)]
        for item, window in zip(progress, windows, strict=True):
            window.make_room(engine, item.row)
        leftovers = [len(item.row.pending(padding)) for item in progress]
        limits = [FrameLimits(int(budget.max_tokens[0]), budget.requirement) for _, _, budget in items]
        results: list[FrameTokens] = []
        for start in range(0, len(items), engine.preferred_rows):
            part = slice(start, start + engine.preferred_rows)
            rows = [item.row for item in progress[part]]
            results += generate_frames(engine, rows, vision[part, 0], limits[part])
        for index, (item, window) in enumerate(zip(progress, windows, strict=True)):
            window.add_frame(leftovers[index], item.row)
            items[index][0]._encoder_state = new_states[index : index + 1]
    except BaseException:
        # Nobody knows what the caches hold now: the streams must be reset.
        for stream, _, _ in items:
            stream._release()
        raise
    return results


def _step_resident(
    model: GazeModel,
    engine: ResidentEngine,
    items: Sequence[tuple[GazeStream, NDArray[Any], Budget]],
    progress: Sequence[_Progress],
) -> list[FrameTokens]:
    """``step_frames`` on an engine that keeps the rows on its device."""
    spec, size = model.spec, model.spec.group_size
    windows = [item.window for item in progress if isinstance(item.window, FrameSpans)]
    limits = [FrameLimits(int(budget.max_tokens[0]), budget.requirement) for _, _, budget in items]
    frames = [
        frame if frame.dtype == np.uint8 else resize_to_input(frame, spec.input_size) for _, frame, _ in items
    ]
    try:
        for item, window, limit in zip(progress, windows, limits, strict=True):
            engine.reserve(item.row.slot, window.end + frame_positions(spec, limit.max_tokens))
        dropped = [window.drop_oldest() for window in windows]
        results = engine.run_frames(
            np.array([item.row.slot for item in progress]),
            frames,
            np.array([window.processed == 0 for window in windows]),
            limits,
            np.array(dropped),
        )
        for item, window, tokens in zip(progress, windows, results, strict=True):
            chosen = tokens.ids[0]
            groups = -(-len(chosen) // size)
            window.add_frame(
                len(item.row.pending(spec.tokens_per_frame)), spec.vision_tokens + (groups - 1) * size
            )
            item.row.group = chosen[(groups - 1) * size :]
    except BaseException:
        for stream, _, _ in items:
            stream._release()
        raise
    return results
