"""The generation loop: frames in order, groups within a frame, until every row has stopped.

A row's tokens depend on that row alone. Padding never enters the cache: a row's cache is its valid
tokens, in order. Two accidents of the published model are kept, because its tokens depend on them
(pipeline §4): after a frame's first group, every later group is rotated with the positions of the last K
vision tokens, although it is stored at its own place; and a frame's last group is not fed until the next
frame opens, where it takes its natural positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autogaze_backend.engine import Engine, Floats, GroupResult, Integers, Limits


@dataclass
class RowState:
    """Where one batch of rows stands between frames.

    Attributes:
        cache: the engine's.
        lengths: int64 ``[B]``, cached tokens.
        positions: int64 ``[B]``, valid tokens since the stream began, those of ``pending`` not counted.
        pending: the valid ids of each row's last group, not fed yet.
    """

    cache: Any
    lengths: Integers
    positions: Integers
    pending: list[Integers]

    @classmethod
    def start(cls, engine: Engine, rows: int) -> RowState:
        """Rows at the start of a stream."""
        return cls(
            cache=engine.new_cache(rows),
            lengths=np.zeros(rows, np.int64),
            positions=np.zeros(rows, np.int64),
            pending=[np.zeros(0, np.int64) for _ in range(rows)],
        )


@dataclass
class FrameTokens:
    """What one row chose in one frame; every array has a slot's entry, padding included.

    Attributes:
        ids: ids within the frame, N where the slot is padding.
        confidences: 0 for padding.
        losses: predicted loss before each slot's token.
    """

    ids: list[Integers] = field(default_factory=list)
    confidences: list[Floats] = field(default_factory=list)
    losses: list[Floats] = field(default_factory=list)

    def append(self, group: GroupResult, row: int) -> None:
        """Adds the row's slots of a group."""
        count = int(group.count[row])
        self.ids.append(group.ids[row, :count])
        self.confidences.append(group.confidences[row, :count])
        self.losses.append(group.losses[row, :count])

    def arrays(self) -> tuple[Integers, Floats, Floats]:
        """``ids``, ``confidences`` and ``losses`` of the whole frame."""
        return np.concatenate(self.ids), np.concatenate(self.confidences), np.concatenate(self.losses)


def generate_frame(
    engine: Engine, state: RowState, vision: Floats, max_tokens: Integers, requirement: Floats
) -> list[FrameTokens]:
    """Chooses one frame's tokens for every row and moves ``state`` on.

    Args:
        engine: runs the phases.
        state: of these rows; changed in place.
        vision: float32 ``[B, grid², C]``, the frame's encoding.
        max_tokens: int64 ``[B]``, budget of the frame.
        requirement: float32 ``[B]``, the loss that stops it; NaN for none.

    Returns:
        One ``FrameTokens`` a row.
    """
    spec = engine.spec
    padding, size = spec.tokens_per_frame, spec.group_size
    rows = len(vision)
    counts = np.array([len(ids) for ids in state.pending], np.int64)
    pending = np.full((rows, int(counts.max())), padding, np.int64)
    for row, ids in enumerate(state.pending):
        pending[row, : len(ids)] = ids
    budget = max_tokens.astype(np.int64)
    group = engine.prefill(
        state.cache, vision, pending, counts, state.positions, state.lengths, Limits(budget, requirement)
    )
    fed = counts + vision.shape[1]
    state.lengths = state.lengths + fed
    state.positions = state.positions + fed
    # Every later group of the frame reuses the positions of its last K vision tokens.
    reused = state.positions[:, None] + np.arange(-size, 0)
    frames = [FrameTokens() for _ in range(rows)]
    running = np.ones(rows, np.bool_)
    ids = np.full((rows, size), padding, np.int64)
    while True:
        for row in np.flatnonzero(running):
            frames[row].append(group, row)
        ids[running] = group.ids[running]
        budget = np.where(running, budget - group.count, 0)
        running &= ~group.finished
        if not running.any():
            break
        budget = np.where(running, budget, 0)
        group = engine.step(state.cache, ids, reused, state.lengths, Limits(budget, requirement))
        # A resting row was fed too, beyond its length, where the next frame overwrites it.
        state.lengths = state.lengths + np.where(running, size, 0)
        state.positions = state.positions + np.where(running, size, 0)
    state.pending = [ids[row][ids[row] != padding] for row in range(rows)]
    return frames
