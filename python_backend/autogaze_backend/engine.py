"""What an engine does: one encoder, slots of cached rows, and the two phases of generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autogaze_backend.spec import ModelSpec

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What may still be chosen, a row.

    Attributes:
        budget: int64 ``[B]``, tokens that the frame may still take; 0 lets a row rest.
        requirement: float32 ``[B]``, the loss at which the frame stops; NaN never stops it.
    """

    budget: Integers
    requirement: Floats


@dataclass(frozen=True)
class GroupResult:
    """One group of every row: the small record that the host reads a step.

    Attributes:
        ids: int64 ``[B, K]``, the padding id where the stop took a token or no slot exists.
        count: int64 ``[B]``, slots of the group, at most K.
        finished: bool ``[B]``, whether the frame ends with this group.
        confidences: float32 ``[B, K]``, 0 for padding.
        losses: float32 ``[B, K]``, predicted loss before each token.
        logits: float32 ``[B, K, V]``, before any mask.
    """

    ids: Integers
    count: Integers
    finished: NDArray[np.bool_]
    confidences: Floats
    losses: Floats
    logits: Floats

    @classmethod
    def concatenate(cls, parts: Sequence[GroupResult]) -> GroupResult:
        """The rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


class Engine(Protocol):
    """Runs the graphs of one bundle. Not thread-safe: one engine, one caller.

    A row's keys and values, and the ids it has chosen in the running frame, live in a *slot*. A call names
    the slots it is for, in any order and each once, so rows join and leave between calls; the slots that it
    does not name keep what they hold.
    """

    @property
    def spec(self) -> ModelSpec:
        """The architecture it runs."""

    @property
    def preferred_rows(self) -> int:
        """Rows a call at which it is fastest."""

    @property
    def max_slots(self) -> int | None:
        """Slots that can be open at once; None where only memory limits them."""

    @property
    def encoder_state_shape(self) -> tuple[int, ...]:
        """Shape of one row's encoder state; zeros start a stream."""

    def encode(self, frames: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        """Encodes ``[B, T, 3, side, side]``; see ``autogaze_export.modeling.Encoder``. None starts a stream."""

    def open_slot(self) -> int:
        """An empty cache for one row.

        Raises:
            ServerUnavailableError: all slots are open.
        """

    def close_slot(self, slot: int) -> None:
        """Takes a slot back, so that its memory may serve another row."""

    def prefill(
        self,
        slots: Integers,
        vision: Floats,
        pending: Integers,
        pending_count: Integers,
        positions: Integers,
        lengths: Integers,
        limits: Limits,
    ) -> GroupResult:
        """Opens a frame on the rows of ``slots`` and selects its first group.

        Args:
            slots: int64 ``[B]``; row i of every other argument belongs to ``slots[i]``.
            vision: float32 ``[B, grid², C]``.
            pending: int64 ``[B, P]``, ids left over from the frame before.
            pending_count: int64 ``[B]``, how many of them are real; they come first.
            positions: int64 ``[B]``, position of each row's first new token.
            lengths: int64 ``[B]``, cached tokens of each row.
            limits: of the frame.
        """

    def step(
        self, slots: Integers, group: Integers, positions: Integers, lengths: Integers, limits: Limits
    ) -> GroupResult:
        """Feeds ``group`` int64 ``[B, K]`` at ``positions`` int64 ``[B, K]`` and selects the next group."""

    def move(self, slot: int, source: Integers, destination: Integers) -> None:
        """Copies cached positions ``source`` over positions ``destination`` of a slot, in every layer.

        Attention does not depend on the order of the keys, whose rotation is stored with them, so a
        dropped token's place may be taken by any other.
        """

    def close(self) -> None:
        """Frees what it holds; it cannot be used any more."""
