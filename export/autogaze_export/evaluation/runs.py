"""Plays policies and recorded tokens over a clip, frame by frame, with a canvas that persists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from autogaze_backend.model import GazeModel
from autogaze_client.fixations import FrameFixationTrace

from autogaze_export.evaluation.policies import Policy
from autogaze_export.evaluation.reconstruction import CellTables, Floats, FrameState, Integers, blank_canvas


@dataclass(frozen=True)
class PolicyRun:
    """What a policy needed.

    Attributes:
        counts: int64 ``[T]``, tokens of each frame.
        losses: float32 ``[T]``, the loss each frame ended at.
    """

    counts: Integers
    losses: Floats


@dataclass(frozen=True)
class ModelRun:
    """What the model chose.

    Attributes:
        counts: int64 ``[T]``, valid tokens of each frame.
        losses: float32 ``[T]``, the true loss each frame ended at.
        stop_predictions: float32 ``[T]``, the predicted loss that stopped the frame; NaN where a cap did.
        stop_losses: float32 ``[T]``, the true loss at that point.
        ids: the valid ids of each frame, in order.
        trace: their cells.
    """

    counts: Integers
    losses: Floats
    stop_predictions: Floats
    stop_losses: Floats
    ids: tuple[Integers, ...]
    trace: FrameFixationTrace

    @property
    def stop_errors(self) -> Floats:
        """Relative error of the predictions that stopped a frame after more than its first token."""
        kept = ~np.isnan(self.stop_predictions) & (self.counts > 1)
        truth = self.stop_losses[kept]
        errors: Floats = np.abs(self.stop_predictions[kept] - truth) / np.maximum(truth, 1e-6)
        return errors


def run_policy(
    tables: CellTables,
    policy: Policy,
    frames: Floats,
    *,
    until: Floats | None = None,
    tokens: int | None = None,
) -> PolicyRun:
    """Shows each frame's tokens until it reaches a loss, or a fixed number of them.

    Args:
        tables: of the architecture.
        policy: names the tokens.
        frames: normalised ``[T, 3, side, side]``.
        until: ``[T]``, the loss at which each frame stops; at least one token is shown.
        tokens: of every frame; both limits hold where both are given.
    """
    canvas = blank_canvas(tables.spec)
    counts, losses = [], []
    previous = None
    for time, frame in enumerate(frames):
        state = FrameState(tables, frame, canvas)
        count = 0
        for token in policy.order(tables, state, frame, previous):
            if count >= 1 and until is not None and state.loss <= until[time] + 1e-6:
                break
            if tokens is not None and count >= tokens:
                break
            state.show(token)
            count += 1
        counts.append(count)
        losses.append(state.loss)
        canvas, previous = state.canvas(), frame
    return PolicyRun(np.array(counts, np.int64), np.array(losses, np.float32))


def run_model(
    model: GazeModel,
    tables: CellTables,
    frames: Floats,
    *,
    requirement: float | None = None,
    tokens: int | None = None,
) -> ModelRun:
    """Generates for a clip ``[T, 3, side, side]`` and measures what the tokens show."""
    gaze = model.generate(frames[None], task_loss_requirement=requirement, max_gaze_tokens_each_frame=tokens)
    ends = np.cumsum(gaze.num_gazing_each_frame)
    canvas = blank_canvas(tables.spec)
    rows = []
    for time, (frame, end) in enumerate(zip(frames, ends, strict=True)):
        block = slice(int(end - gaze.num_gazing_each_frame[time]), int(end))
        padded = gaze.if_padded_gazing[0, block]
        ids = gaze.gazing_pos[0, block] - time * model.spec.tokens_per_frame
        state = FrameState(tables, frame, canvas)
        said, truth = np.nan, np.nan
        for slot, token in enumerate(ids):
            if not padded[slot]:
                state.show(int(token))
            elif np.isnan(said):
                said, truth = float(gaze.task_loss_predictions[0, block][slot]), state.loss
        rows.append((ids[~padded], state.loss, said, truth))
        canvas = state.canvas()
    return ModelRun(
        counts=np.array([len(row[0]) for row in rows], np.int64),
        losses=np.array([row[1] for row in rows], np.float32),
        stop_predictions=np.array([row[2] for row in rows], np.float32),
        stop_losses=np.array([row[3] for row in rows], np.float32),
        ids=tuple(row[0] for row in rows),
        trace=gaze.traces()[0],
    )


def spaced_starts(total: int, length: int, clips: int) -> Sequence[int]:
    """First frames of up to ``clips`` clips, evenly spaced and not overlapping."""
    fitting = max(1, min(clips, total // length))
    return [round(index * (total - length) / max(1, fitting - 1)) for index in range(fitting)]
