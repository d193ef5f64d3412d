"""An engine that answers at once: it takes the frames' bytes, computes nothing, and names plausible tokens.

What a request then takes is the server's: Triton, the python stubs, copies, and our service code. With
``AUTOGAZE_NULL_MS`` it pretends to have a device that takes so many milliseconds for a clip, one after another, to see
how clips are spread over instances that have work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from autogaze_backend.bundle import Bundle
from autogaze_backend.devices import Device
from autogaze_backend.engine import Floats, GroupResult, Integers, Limits
from autogaze_backend.engines import ENGINES, EngineInfo, Opened
from autogaze_backend.generation import FrameLimits, FrameTokens
from autogaze_backend.resident import groups_of
from autogaze_backend.spec import ModelSpec
from numpy.typing import NDArray

NAME = "null"


class NullEngine:
    """A ``ResidentEngine`` without a device. A frame always takes its whole budget: ids 0, 1, 2 and so on."""

    window = 16
    max_rows = 256
    preferred_rows = 256
    max_slots = 512
    encoder_state_shape = (1,)

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._free = list(range(self.max_slots))
        self._budgets: dict[int, list[int]] = {}
        # Stands in for the pinned memory through which frames go to a device.
        self._staging = np.empty(0, np.uint8)
        self._clip_seconds = float(os.environ.get("AUTOGAZE_NULL_MS", "0")) / 1e3
        self._free_at = 0.0

    @property
    def preprocessing(self) -> Any:
        """None: tiled modes are not for this engine."""
        raise NotImplementedError("the null engine knows the resize mode only")

    def open_slot(self) -> int:
        """A free slot."""
        slot = self._free.pop()
        self._budgets[slot] = []
        return slot

    def close_slot(self, slot: int) -> None:
        """Gives it back."""
        self._free.append(slot)

    def can_hold(self, positions: int) -> bool:
        """Always."""
        return True

    def reserve(self, slot: int, end: int) -> None:
        """Nothing."""

    def forget(self, slot: int, first: int) -> None:
        """Nothing."""

    def encode_frames(
        self, slots: Integers, frames: Sequence[Any], fresh: NDArray[np.bool_], plans: NDArray[np.int32]
    ) -> None:
        """Copies the bytes, as an upload does, and notes the budgets."""
        for slot, window, plan in zip(slots.tolist(), frames, plans, strict=True):
            data = np.ascontiguousarray(window).view(np.uint8).reshape(-1)
            if data.size > self._staging.size:
                self._staging = np.empty(data.size, np.uint8)
            self._staging[: data.size] = data
            self._budgets[slot] = plan[:, 0].tolist()

    def open_rows(self, slots: Integers, calls: int = 1) -> None:
        """Nothing."""

    def continue_rows(self, slots: Integers, calls: int = 1) -> None:
        """Nothing."""

    def run_frames(
        self,
        slots: Integers,
        frames: Sequence[Any],
        fresh: NDArray[np.bool_],
        limits: Sequence[FrameLimits],
        dropped: Integers,
    ) -> list[FrameTokens]:
        """The tokens of a frame of each stream; views of one record, as they come from a device."""
        self.encode_frames(slots, frames, fresh, np.zeros((len(slots), 1, 3), np.int32))
        most = max(groups_of(self.spec, limit.max_tokens) for limit in limits) * self.spec.group_size
        ids, confidences, losses = _record(len(slots), most)
        return [
            FrameTokens(
                [ids[row, : limit.max_tokens]],
                [confidences[row, : limit.max_tokens]],
                [losses[row, : limit.max_tokens]],
            )
            for row, limit in enumerate(limits)
        ]

    def flags(self, rows: int) -> _Flags:
        """Every frame goes on."""
        return _Flags(rows)

    def collect(self, slots: Integers, entries: int) -> _Record:
        """The windows' tokens."""
        counts = np.zeros((len(slots), self.window), np.int64)
        for row, slot in enumerate(slots.tolist()):
            counts[row, : len(self._budgets[slot])] = self._budgets[slot]
        if self._clip_seconds:
            self._free_at = max(self._free_at, time.monotonic()) + self._clip_seconds * len(slots)
        return _Record(counts, entries, self._free_at)

    def encode(self, frames: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        """Not for this engine."""
        raise NotImplementedError("the null engine is resident")

    def prefill(self, *arguments: Any) -> GroupResult:
        """Not for this engine."""
        raise NotImplementedError("the null engine is resident")

    def step(
        self, slots: Integers, group: Integers, positions: Integers, lengths: Integers, limits: Limits
    ) -> GroupResult:
        """Not for this engine."""
        raise NotImplementedError("the null engine is resident")

    def move(self, slot: int, source: Integers, destination: Integers) -> None:
        """Not for this engine."""
        raise NotImplementedError("the null engine is resident")

    def close(self) -> None:
        """Nothing."""


class _Flags:
    def __init__(self, rows: int) -> None:
        self._rows = rows

    def ready(self) -> bool:
        return True

    def wait(self) -> NDArray[np.bool_]:
        return np.ones(self._rows, np.bool_)


class _Record:
    def __init__(self, counts: Integers, entries: int, due: float) -> None:
        self._counts, self._entries, self._due = counts, entries, due

    def ready(self) -> bool:
        return time.monotonic() >= self._due

    def wait(self) -> tuple[Integers, Integers, Floats, Floats]:
        if self._due:
            time.sleep(max(0.0, self._due - time.monotonic()))
        ids, confidences, losses = _record(len(self._counts), self._entries)
        # An id may occur once a frame.
        for row, counts in enumerate(self._counts):
            ends = np.cumsum(counts)
            starts = np.repeat(ends - counts, counts)
            ids[row, : len(starts)] -= starts
        return self._counts, ids, confidences, losses


def _record(rows: int, entries: int) -> tuple[Integers, Floats, Floats]:
    ids = np.tile(np.arange(entries, dtype=np.int64), (rows, 1))
    return ids, np.full((rows, entries), 0.5, np.float32), np.full((rows, entries), 0.25, np.float32)


class _Entry:
    """The engine's entry of the registry."""

    def fits(self, bundle: Bundle, device: Device) -> None:
        """Always."""

    def open(self, bundle: Bundle, device: Device, threads: int | None) -> Opened:
        """Opens it."""
        return Opened(NullEngine(bundle.spec), EngineInfo(NAME, bundle.precision, "0", "cpu"))


def register() -> None:
    """Makes it known under ``NAME``, in this process."""
    ENGINES[NAME] = _Entry()
