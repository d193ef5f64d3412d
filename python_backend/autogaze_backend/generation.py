"""The generation loop of a frame: open it, then group after group until every row has stopped.

A row's tokens depend on that row alone. Padding never enters the cache: a row's cache is its valid
tokens, in order. Two accidents of the published model are kept, because its tokens depend on them
(pipeline §4): after a frame's first group, every later group is rotated with the positions of the last K
vision tokens, although it is stored at its own place; and a frame's last group is not fed until the next
frame opens, where it takes its natural positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np

from autogaze_backend.engine import Engine, Floats, GroupResult, Integers, Limits


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


class RowTokens(Sequence[FrameTokens]):
    """The frames of a row, cut out of the windows' records only when somebody looks.

    Args:
        windows: of each window the frames' entries, and its ids, confidences and losses, frames in order.
    """

    def __init__(self, windows: Sequence[tuple[Integers, Integers, Floats, Floats]]) -> None:
        # The arrays are made when somebody asks: the engine's caller has more rows to see to.
        self._windows = windows

    @cached_property
    def counts(self) -> Integers:
        """Entries of each frame."""
        counts: Integers = np.concatenate([counts for counts, _, _, _ in self._windows])
        return counts

    @cached_property
    def ids(self) -> Integers:
        """Of all frames, one after another; ``confidences`` and ``losses`` likewise."""
        ids: Integers = self._joined(1)
        return ids

    @cached_property
    def confidences(self) -> Floats:
        """See ``ids``."""
        confidences: Floats = self._joined(2)
        return confidences

    @cached_property
    def losses(self) -> Floats:
        """See ``ids``."""
        losses: Floats = self._joined(3)
        return losses

    def _joined(self, part: int) -> Any:
        # A copy, so that a row does not keep the record of its whole batch.
        return np.concatenate([window[part][: int(window[0].sum())] for window in self._windows])

    def __len__(self) -> int:
        """Frames."""
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> FrameTokens: ...
    @overload
    def __getitem__(self, index: slice) -> list[FrameTokens]: ...
    def __getitem__(self, index: int | slice) -> FrameTokens | list[FrameTokens]:
        """A frame's tokens."""
        if isinstance(index, slice):
            return [self[frame] for frame in range(*index.indices(len(self)))]
        frame = range(len(self))[index]
        start = int(self.counts[:frame].sum())
        part = slice(start, start + int(self.counts[frame]))
        return FrameTokens([self.ids[part]], [self.confidences[part]], [self.losses[part]])


@dataclass
class RowState:
    """Where one row stands, between frames and within one.

    Attributes:
        slot: the engine's, which holds the row's cache.
        length: cached tokens.
        position: valid tokens since the stream began, those of the last group not counted while it is not fed.
        group: int64 ``[K]``, the ids chosen last, padding included; they are fed by the next call.
        tokens: what the running frame has chosen so far.
        budget: tokens that the running frame may still take.
        requirement: the loss that stops the running frame; NaN for none.
        running: whether a frame is open and not finished.
    """

    slot: int
    length: int = 0
    position: int = 0
    group: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    tokens: FrameTokens = field(default_factory=FrameTokens)
    budget: int = 0
    requirement: float = float("nan")
    running: bool = False

    def pending(self, padding: int) -> Integers:
        """The valid ids of the last group."""
        valid: Integers = self.group[self.group != padding]
        return valid


@dataclass(frozen=True)
class FrameLimits:
    """A frame's budget of tokens, and the predicted loss that stops it (None for none)."""

    max_tokens: int
    requirement: float | None


def open_frames(
    engine: Engine, rows: Sequence[RowState], vision: Floats, limits: Sequence[FrameLimits]
) -> None:
    """Opens the next frame of each row and chooses its first group.

    Args:
        engine: of every row's slot.
        rows: none of them in a frame; changed in place.
        vision: float32 ``[B, grid², C]``, each row's frame.
        limits: of each row's frame.
    """
    spec = engine.spec
    leftovers = [row.pending(spec.tokens_per_frame) for row in rows]
    counts = np.array([len(ids) for ids in leftovers], np.int64)
    pending = np.full((len(rows), int(counts.max())), spec.tokens_per_frame, np.int64)
    for ids, place in zip(leftovers, pending, strict=True):
        place[: len(ids)] = ids
    for row, limit in zip(rows, limits, strict=True):
        row.tokens, row.budget, row.running = FrameTokens(), limit.max_tokens, True
        row.requirement = float("nan") if limit.requirement is None else limit.requirement
    positions = np.array([row.position for row in rows], np.int64)
    group = engine.prefill(_slots(rows), vision, pending, counts, positions, _lengths(rows), _limits(rows))
    _take(rows, group, counts + vision.shape[1])


def continue_frames(engine: Engine, rows: Sequence[RowState]) -> None:
    """Feeds the last group of each row, all of them in a frame, and chooses the next; in place."""
    size = engine.spec.group_size
    # Every later group of a frame reuses the positions of its last K vision tokens. Those are the row's
    # newest when the frame has opened, and each group that is fed since moves the row on by K.
    fed = np.array([(len(row.tokens.ids) - 1) * size for row in rows], np.int64)
    positions = np.array([row.position for row in rows], np.int64) - fed
    group = engine.step(
        _slots(rows),
        np.stack([row.group for row in rows]),
        positions[:, None] + np.arange(-size, 0),
        _lengths(rows),
        _limits(rows),
    )
    _take(rows, group, np.full(len(rows), size, np.int64))


def generate_frames(
    engine: Engine, rows: Sequence[RowState], vision: Floats, limits: Sequence[FrameLimits]
) -> list[FrameTokens]:
    """Chooses one frame's tokens for every row; the arguments are those of ``open_frames``."""
    open_frames(engine, rows, vision, limits)
    while running := [row for row in rows if row.running]:
        continue_frames(engine, running)
    return [row.tokens for row in rows]


def _take(rows: Sequence[RowState], group: GroupResult, fed: Integers) -> None:
    for index, row in enumerate(rows):
        row.length += int(fed[index])
        row.position += int(fed[index])
        row.group = group.ids[index]
        row.tokens.append(group, index)
        row.budget -= int(group.count[index])
        row.running = not bool(group.finished[index])


def _slots(rows: Sequence[RowState]) -> Integers:
    return np.array([row.slot for row in rows], np.int64)


def _lengths(rows: Sequence[RowState]) -> Integers:
    return np.array([row.length for row in rows], np.int64)


def _limits(rows: Sequence[RowState]) -> Limits:
    return Limits(
        np.array([row.budget for row in rows], np.int64),
        np.array([row.requirement for row in rows], np.float32),
    )
