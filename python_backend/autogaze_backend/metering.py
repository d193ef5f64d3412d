"""A model whose engine calls, preprocessing and slots are counted; everything else is the model's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_backend.engine import Engine, Floats, GroupResult, Integers, Limits
from autogaze_backend.generation import FrameLimits, FrameTokens
from autogaze_backend.metrics import Meters
from autogaze_backend.model import GazeModel
from autogaze_backend.resident import is_resident
from autogaze_backend.spec import ModelSpec
from autogaze_backend.stream_pool import StreamPool


class MeteredModel(GazeModel):
    """The same model, counted in ``meters``.

    Example:
        >>> meters = Meters()
        >>> model = MeteredModel(GazeModel.load("bundle"), meters)  # doctest: +SKIP
        >>> model.gaze(frames); print(meters.text())  # doctest: +SKIP
    """

    def __init__(self, model: GazeModel, meters: Meters) -> None:
        engine = model.engine
        metered = MeteredResidentEngine if is_resident(engine) else MeteredEngine
        super().__init__(model.bundle, metered(engine, meters), model.info)
        self._meters = meters
        if model.info is not None:
            meters.set("autogaze_engine_info", 1, **model.info.labels)

    def preprocess(self, frames: NDArray[np.uint8]) -> Floats:
        """As ``GazeModel.preprocess``, timed as stage ``preprocess``."""
        with self._meters.stage("preprocess"):
            return super().preprocess(frames)

    def preprocess_exact(self, frames: NDArray[np.uint8], size: int) -> Floats:
        """As ``GazeModel.preprocess_exact``, timed as stage ``preprocess``."""
        with self._meters.stage("preprocess"):
            return super().preprocess_exact(frames, size)


class _Phase:
    """Counts the calls of one phase; an engine is called many times a clip, so what is known is worked out once."""

    def __init__(self, meters: Meters, phase: str) -> None:
        self.took = meters.recorder("autogaze_stage_milliseconds", stage=phase)
        self.steps = meters.recorder("autogaze_steps_total", phase=phase)
        self.rows = meters.recorder("autogaze_batch_rows", phase=phase)

    def call(self, rows: int, calls: int = 1) -> _Call:
        """Times what runs inside, also where it fails; what does not fail is so many calls of so many rows."""
        return _Call(self, rows, calls)


class _Call:
    __slots__ = ("_began", "_calls", "_phase", "_rows")

    def __init__(self, phase: _Phase, rows: int, calls: int) -> None:
        self._phase, self._rows, self._calls = phase, rows, calls

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._phase.took((time.perf_counter() - self._began) * 1e3)
        if kind is None:
            self._phase.steps(self._calls)
            self._phase.rows(self._rows, self._calls)


class MeteredEngine:
    """An engine whose calls are counted: their number, rows, milliseconds, and the slots that are open."""

    def __init__(self, engine: Engine, meters: Meters) -> None:
        self._engine, self._meters = engine, meters
        self._encode, self._prefill, self._step = (
            _Phase(meters, phase) for phase in ("encode", "prefill", "step")
        )
        self._frame = _Phase(meters, "frame")
        self._open = 0
        meters.set("autogaze_slots_in_use", 0)

    def __getattr__(self, name: str) -> Any:
        """What only this kind of engine has."""
        return getattr(self._engine, name)

    @property
    def uncounted(self) -> Engine:
        """The engine itself."""
        return self._engine

    @property
    def spec(self) -> ModelSpec:
        """The architecture it runs."""
        return self._engine.spec

    @property
    def preferred_rows(self) -> int:
        """Rows a call at which it is fastest."""
        return self._engine.preferred_rows

    @property
    def max_slots(self) -> int | None:
        """Slots that can be open at once; None where only memory limits them."""
        return self._engine.max_slots

    @property
    def encoder_state_shape(self) -> tuple[int, ...]:
        """Shape of one row's encoder state."""
        return self._engine.encoder_state_shape

    def encode(self, frames: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        """As ``Engine.encode``, stage and phase ``encode``."""
        with self._encode.call(len(frames)):
            return self._engine.encode(frames, state)

    def open_slot(self) -> int:
        """As ``Engine.open_slot``."""
        slot = self._engine.open_slot()
        self._open += 1
        self._meters.set("autogaze_slots_in_use", self._open)
        return slot

    def close_slot(self, slot: int) -> None:
        """As ``Engine.close_slot``."""
        self._engine.close_slot(slot)
        self._open -= 1
        self._meters.set("autogaze_slots_in_use", self._open)

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
        """As ``Engine.prefill``, stage and phase ``prefill``."""
        with self._prefill.call(len(slots)):
            return self._engine.prefill(slots, vision, pending, pending_count, positions, lengths, limits)

    def step(
        self, slots: Integers, group: Integers, positions: Integers, lengths: Integers, limits: Limits
    ) -> GroupResult:
        """As ``Engine.step``, stage and phase ``step``."""
        with self._step.call(len(slots)):
            return self._engine.step(slots, group, positions, lengths, limits)

    def move(self, slot: int, source: Integers, destination: Integers) -> None:
        """As ``Engine.move``."""
        self._engine.move(slot, source, destination)

    def close(self) -> None:
        """As ``Engine.close``."""
        self._engine.close()


class MeteredResidentEngine(MeteredEngine):
    """An engine that keeps rows on its device: its calls are counted as they are enqueued.

    Stage milliseconds are the host's, so they are small while the device is ahead of nothing; ``frame`` is the whole
    of a frame of streams, which is waited for.
    """

    def encode_frames(
        self, slots: Integers, frames: Sequence[Any], fresh: NDArray[np.bool_], plans: NDArray[np.int32]
    ) -> None:
        """As ``ResidentEngine.encode_frames``, stage and phase ``encode``."""
        with self._encode.call(len(slots)):
            self._engine.encode_frames(slots, frames, fresh, plans)  # type: ignore[attr-defined]

    def open_rows(self, slots: Integers, calls: int = 1) -> None:
        """As ``ResidentEngine.open_rows``, stage and phase ``prefill``."""
        with self._prefill.call(len(slots), calls):
            self._engine.open_rows(slots, calls)  # type: ignore[attr-defined]

    def continue_rows(self, slots: Integers, calls: int = 1) -> None:
        """As ``ResidentEngine.continue_rows``, stage and phase ``step``."""
        with self._step.call(len(slots), calls):
            self._engine.continue_rows(slots, calls)  # type: ignore[attr-defined]

    def run_frames(
        self,
        slots: Integers,
        frames: Sequence[Any],
        fresh: NDArray[np.bool_],
        limits: Sequence[FrameLimits],
        dropped: Integers,
    ) -> list[FrameTokens]:
        """As ``ResidentEngine.run_frames``, stage and phase ``frame``."""
        engine: Any = self._engine
        with self._frame.call(len(slots)):
            tokens: list[FrameTokens] = engine.run_frames(slots, frames, fresh, limits, dropped)
        return tokens


def count_streams(pool: StreamPool, meters: Meters) -> None:
    """Has the streams of ``pool``, and those that it gave up, read with the other samples."""

    def collect() -> None:
        meters.set("autogaze_streams_open", len(pool))
        meters.total("autogaze_stream_evictions_total", pool.evicted, reason="evicted")
        meters.total("autogaze_stream_evictions_total", pool.expired, reason="expired")

    meters.on_collect(collect)
