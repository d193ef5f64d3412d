"""Proves that an engine works: a tiny generation between two of its calls, in a slot that it takes and gives back.

A loaded model, or a process that lives, does not show that the engine answers: it may hang in a driver, fail every
call, or compute NaN. So readiness asks the engine itself, on the thread that calls it anyway.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from autogaze_client._errors import InferenceError, ServerUnavailableError

from autogaze_backend.engine import Engine
from autogaze_backend.generation import FrameLimits, RowState, continue_frames, open_frames
from autogaze_backend.metering import MeteredEngine
from autogaze_backend.resident import frame_positions, is_resident

_LOG = logging.getLogger("autogaze")


@dataclass(frozen=True)
class CanaryLimits:
    """Limits of a canary.

    Attributes:
        canary_seconds: an engine that has not come to the canary after so long is not ready. Triton itself waits 5 s
            for a model's ``is_ready``.
        canary_fresh_seconds: a passed canary this young answers again, so that many probes cost one.
    """

    canary_seconds: float = 4.0
    canary_fresh_seconds: float = 1.0


class EngineCanary:
    """Asked by any thread, answered by the one that calls the engine.

    Questions that are open at once get one answer.

    Args:
        engine: what to prove. A counted one is asked past its counters: canaries are no load.
        limits: how long to wait.
        wake: called after a question was asked, to have the engine's thread come to ``answer``.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        engine: Engine,
        limits: CanaryLimits | None = None,
        *,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine.uncounted if isinstance(engine, MeteredEngine) else engine
        self._limits = limits or CanaryLimits()
        self._wake, self._clock = wake, clock
        self._changed = threading.Condition()
        self._asked = False
        self._answers = 0
        self._passed_at: float | None = None

    @property
    def asked(self) -> bool:
        """Whether a question is open."""
        return self._asked

    def is_ready(self) -> bool:
        """Whether the engine generates; False where it fails, computes nonsense, or does not come in time."""
        with self._changed:
            if self._is_fresh():
                return True
            self._asked = True
            wanted = self._answers + 1
        self._wake()
        with self._changed:
            if not self._changed.wait_for(lambda: self._answers >= wanted, self._limits.canary_seconds):
                _LOG.warning(
                    "not ready: the engine has not come to its canary within %g s",
                    self._limits.canary_seconds,
                )
                return False
            return self._passed_at is not None

    def answer(self, *, at_work: bool = False) -> None:
        """Answers an open question; to be called between two calls of the engine, by whoever calls it.

        Args:
            at_work: whether rows are under way. On an engine that keeps rows on its device they may be under way there
                too, and are not disturbed: that they were waited for in vain would have kept this thread from coming.
        """
        if not self._asked:
            return
        try:
            if not (at_work and is_resident(self._engine)):
                self._generate()
            passed = True
        except Exception:
            _LOG.exception("not ready: the engine failed its canary")
            passed = False
        with self._changed:
            self._asked = False
            self._answers += 1
            self._passed_at = self._clock() if passed else None
            self._changed.notify_all()

    def _is_fresh(self) -> bool:
        age = None if self._passed_at is None else self._clock() - self._passed_at
        return age is not None and age < self._limits.canary_fresh_seconds

    def _generate(self) -> None:
        """One black frame through every graph: encoder, the frame's first group, and a token of the next."""
        engine, spec = self._engine, self._engine.spec
        frame = np.zeros((1, 1, 3, spec.input_size, spec.input_size), np.float32)
        budget = min(spec.group_size + 1, spec.tokens_per_frame)
        if is_resident(engine) and not engine.can_hold(frame_positions(spec, budget)):
            return
        vision = None if is_resident(engine) else engine.encode(frame, None)[0]
        try:
            row = RowState(engine.open_slot())
        except ServerUnavailableError:
            # Every slot is at work; that this thread came here is proof enough of the steps.
            return
        limits = [FrameLimits(budget, None)]
        try:
            if is_resident(engine):
                engine.reserve(row.slot, frame_positions(spec, budget))
                slots, fresh, dropped = np.array([row.slot]), np.ones(1, np.bool_), np.zeros(1, np.int64)
                (row.tokens,) = engine.run_frames(slots, [frame[0]], fresh, limits, dropped)
            else:
                assert vision is not None
                open_frames(engine, [row], vision[:, 0], limits)
                while row.running:
                    continue_frames(engine, [row])
        finally:
            engine.close_slot(row.slot)
        ids, confidences, _ = row.tokens.arrays()
        chosen = len(ids) == budget and bool(((ids >= 0) & (ids < spec.tokens_per_frame)).all())
        # A comparison with NaN is false.
        if not (chosen and bool(((confidences > 0) & (confidences <= 1.0001)).all())):
            raise InferenceError(
                f"the canary wants {budget} tokens below {spec.tokens_per_frame} with confidences in (0, 1], but got "
                f"{ids.tolist()} with {confidences.tolist()}: restart the server; if it happens again, build the "
                "bundle again on this machine"
            )
