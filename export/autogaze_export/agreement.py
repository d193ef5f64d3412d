"""How often ``fast`` chooses what float32 chooses, the float32 history fed to both.

A greedy decoder amplifies any rounding, so two free runs say little after their first difference. Here both engines
get the float32 run's tokens and ids, each keeps its own cache and vision tokens, and every choice is compared on
its own: the candidate's best id among those that the float32 run could still choose.
"""

from __future__ import annotations

import numpy as np
from autogaze_backend.bundle import Bundle
from autogaze_backend.engine import Engine, Floats, GroupResult, Integers, Limits
from autogaze_backend.model import GazeModel
from autogaze_backend.plans import Agreement
from autogaze_backend.spec import ModelSpec
from numpy.typing import NDArray


class ShadowedEngine:
    """The reference engine, with a candidate that is given the same calls and compared.

    What passes through the caller's hands (vision tokens, encoder state) carries both engines' values side by side.
    """

    def __init__(self, reference: Engine, candidate: Engine) -> None:
        self._reference, self._candidate = reference, candidate
        self._slots: dict[int, int] = {}
        self._chosen: dict[int, NDArray[np.bool_]] = {}
        self.choices = 0
        self.equal = 0
        self.max_task_loss_difference = 0.0

    def agreement(self, runs_on: str) -> Agreement:
        """What was found so far; ``runs_on`` names what computed the candidate."""
        share = self.equal / self.choices if self.choices else 0.0
        return Agreement(self.choices, share, self.max_task_loss_difference, runs_on)

    @property
    def spec(self) -> ModelSpec:
        """The architecture it runs."""
        return self._reference.spec

    @property
    def preferred_rows(self) -> int:
        """See ``Engine.preferred_rows``."""
        return self._reference.preferred_rows

    @property
    def max_slots(self) -> int | None:
        """See ``Engine.max_slots``."""
        limits = [m for m in (self._reference.max_slots, self._candidate.max_slots) if m is not None]
        return min(limits, default=None)

    @property
    def encoder_state_shape(self) -> tuple[int, ...]:
        """Two states, the reference's first."""
        return (2, *self._reference.encoder_state_shape)

    def encode(self, frames: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        """See ``Engine.encode``; the widths of both engines' tokens are joined."""
        states = (None, None) if state is None else (state[:, 0], state[:, 1])
        tokens, new_state = self._reference.encode(frames, states[0])
        others, other_state = self._candidate.encode(frames, states[1])
        return np.concatenate((tokens, others), axis=-1), np.stack((new_state, other_state), axis=1)

    def open_slot(self) -> int:
        """See ``Engine.open_slot``."""
        slot = self._reference.open_slot()
        self._slots[slot] = self._candidate.open_slot()
        return slot

    def close_slot(self, slot: int) -> None:
        """See ``Engine.close_slot``."""
        self._reference.close_slot(slot)
        self._candidate.close_slot(self._slots.pop(slot))
        self._chosen.pop(slot, None)

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
        """See ``Engine.prefill``."""
        own, other = np.split(vision, 2, axis=-1)
        rest = (pending, pending_count, positions, lengths, limits)
        expected = self._reference.prefill(slots, own, *rest)
        found = self._candidate.prefill(self._others(slots), other, *rest)
        for slot in slots:
            free = np.ones(self.spec.vocab_size, np.bool_)
            free[self.spec.tokens_per_frame] = False
            self._chosen[int(slot)] = ~free
        self._compare(slots, expected, found)
        return expected

    def step(
        self, slots: Integers, group: Integers, positions: Integers, lengths: Integers, limits: Limits
    ) -> GroupResult:
        """See ``Engine.step``."""
        expected = self._reference.step(slots, group, positions, lengths, limits)
        found = self._candidate.step(self._others(slots), group, positions, lengths, limits)
        self._compare(slots, expected, found)
        return expected

    def move(self, slot: int, source: Integers, destination: Integers) -> None:
        """See ``Engine.move``."""
        self._reference.move(slot, source, destination)
        self._candidate.move(self._slots[slot], source, destination)

    def close(self) -> None:
        """Closes both."""
        self._reference.close()
        self._candidate.close()

    def _others(self, slots: Integers) -> Integers:
        return np.array([self._slots[int(slot)] for slot in slots], np.int64)

    def _compare(self, slots: Integers, expected: GroupResult, found: GroupResult) -> None:
        for row, slot in enumerate(slots):
            chosen = self._chosen[int(slot)]
            for head in range(int(expected.count[row])):
                # The float32 pick behind a stop is padding in ``ids``, but the logits still hold it.
                pick, other = (
                    int(np.where(chosen, -np.inf, result.logits[row, head]).argmax())
                    for result in (expected, found)
                )
                self.choices += 1
                self.equal += pick == other
                chosen[pick] = True
            slots_used = int(expected.count[row])
            difference = np.abs(expected.losses[row, :slots_used] - found.losses[row, :slots_used])
            self.max_task_loss_difference = max(
                self.max_task_loss_difference, float(difference.max(initial=0.0))
            )


def measure_agreement(
    reference: Bundle,
    candidate: Bundle,
    video: NDArray[np.float32],
    *,
    gazing_ratio: float = 0.75,
    task_loss_requirement: float | None = None,
) -> Agreement:
    """Runs two ONNX Runtime bundles over clips, on the CPU.

    Args:
        reference: precision ``exact``.
        candidate: the same checkpoint at another precision.
        video: float32 ``[B, T, 3, side, side]``, normalised.
        gazing_ratio: share of a frame's tokens that may be chosen.
        task_loss_requirement: predicted loss that stops a frame, in the float32 run; None compares all of them.
    """
    import onnxruntime as ort
    from autogaze_backend.onnxruntime_engine import OnnxRuntimeEngine

    engine = ShadowedEngine(OnnxRuntimeEngine(reference), OnnxRuntimeEngine(candidate))
    try:
        GazeModel(reference, engine).generate(
            video, gazing_ratio=gazing_ratio, task_loss_requirement=task_loss_requirement
        )
        return engine.agreement(f"onnxruntime {ort.__version__} CPU")
    finally:
        engine.close()


def sample_clips(bundle: Bundle, *, clips: int = 4, frames: int = 4) -> NDArray[np.float32]:
    """Clips for a measurement where no video is at hand: coarse noise that pans, seeded, normalised."""
    from autogaze_backend.preprocessing import normalise

    random = np.random.default_rng(0)
    side = bundle.spec.input_size
    rows = []
    for _ in range(clips):
        coarse = random.integers(0, 256, (28, 28, 3), np.uint8).repeat(side // 14, 0).repeat(side // 14, 1)
        shift = random.integers(1, 12, 2)
        pictures = [np.roll(coarse, shift * time, (0, 1))[:side, :side] for time in range(frames)]
        noise = random.integers(0, 32, (frames, side, side, 3), np.uint8)
        rows.append(normalise(np.stack(pictures) // 8 * 7 + noise, bundle.preprocessing))
    return np.stack(rows)
