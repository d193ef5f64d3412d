"""What a run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from autogaze_training.objective import ObjectiveConfig

# Coprime to the number of turns in a cycle, so that each shape's turns are spread over it.
_STRIDE = 7


@dataclass(frozen=True)
class Shape:
    """The static shape of a batch.

    Attributes:
        clips: in a batch.
        frames: of a clip.
        slots: most tokens of a frame, a multiple of 10.
        tokens: most chosen tokens of a clip that are learnt from; the rest is cut off.
    """

    clips: int
    frames: int
    slots: int
    tokens: int

    @property
    def length(self) -> int:
        """Tokens of a sequence, vision included."""
        return self.frames * 196 + self.tokens


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        seed: of weights and clips.
        steps: of the whole run; the learning rate falls to zero over the last ``decay`` of them.
        warmup: steps over which the learning rate rises.
        decay: share of the steps.
        matrix_rate: learning rate of the decoder's matrices (Muon).
        other_rate: learning rate of everything else (AdamW).
        weight_decay: of both.
        own_path_from: step from which some batches follow the network's own choices.
        own_path_share: their share.
        lessons: batches that are made at once.
        passes: steps on each of them.
        own_passes: likewise, where the batch follows the network's own choices and costs more to make.
        average: decay of the averaged weights, which are the ones exported.
        shapes: drawn in turn, as often as their weight.
        objective: weights of the loss.
    """

    seed: int = 0
    steps: int = 6500
    warmup: int = 100
    decay: float = 0.4
    matrix_rate: float = 2e-3
    other_rate: float = 2e-3
    weight_decay: float = 0.01
    own_path_from: int = 1500
    own_path_share: float = 0.5
    lessons: int = 5
    passes: int = 2
    own_passes: int = 3
    average: float = 0.998
    shapes: tuple[tuple[int, Shape], ...] = (
        (5, Shape(clips=176, frames=8, slots=50, tokens=240)),
        (4, Shape(clips=80, frames=16, slots=40, tokens=300)),
        (1, Shape(clips=256, frames=2, slots=200, tokens=300)),
    )
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def shape_at(self, lesson: int) -> Shape:
        """The shape of the n-th batch."""
        cycle = [shape for weight, shape in self.shapes for _ in range(weight)]
        return cycle[lesson * _STRIDE % len(cycle)]

    def rate_at(self, step: int) -> float:
        """The factor on the learning rates: a rise, a plateau, a linear fall."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = (self.steps - step) / max(1.0, self.steps * self.decay)
        return max(0.0, min(rise, fall))


TINY = TrainConfig(
    steps=4,
    warmup=2,
    own_path_from=2,
    own_path_share=1.0,
    shapes=((1, Shape(clips=2, frames=2, slots=20, tokens=30)),),
)
