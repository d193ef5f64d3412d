"""The training loss: choose what the teacher would, predict the loss, and know each patch's errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from autogaze_training.cells import TOKENS
from autogaze_training.lessons import Lesson
from autogaze_training.model import VISION, WIDTH, GazeNetwork, rotary
from autogaze_training.sequence import assemble


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the parts.

    Attributes:
        temperature: of the soft labels: a token with (1 − temperature) of the best gain weighs 1/e of it.
        stop_weight: of the loss prediction.
        patch_weight: of the patch errors, an auxiliary head that is not exported.
        patch_layer: decoder layers below the auxiliary head.
    """

    temperature: float = 0.08
    stop_weight: float = 2.0
    patch_weight: float = 3.0
    patch_layer: int = 2


class Learner(nn.Module):
    """The network and its auxiliary head."""

    def __init__(self, network: GazeNetwork, config: ObjectiveConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.patch_head = nn.Linear(WIDTH, 4)
        nn.init.zeros_(self.patch_head.weight)
        nn.init.zeros_(self.patch_head.bias)

    def forward(self, frames: Tensor, lesson: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts."""
        network, config = self.network, self.config
        vision = network.encode(frames)
        x = assemble(vision, network.embed(lesson.path.ids), lesson.layout.source).float()
        cos, sin = rotary(lesson.layout.positions)
        patch_loss = x.new_zeros(())
        for index, layer in enumerate(network.layers):
            x = layer(x, cos, sin)
            if index + 1 == config.patch_layer:
                patch_loss = self._patch_loss(x, lesson)
        logits, predicted = network.heads(x[lesson.row, lesson.readout])
        choice, regret = choice_loss(logits.float(), lesson, config.temperature)
        stop, error = stop_loss(predicted.float(), lesson)
        total = choice + config.stop_weight * stop + config.patch_weight * patch_loss
        parts = {"choice": choice, "regret": regret, "stop": stop, "error": error, "patch": patch_loss}
        return total, {name: value.detach() for name, value in parts.items()}

    def _patch_loss(self, x: Tensor, lesson: Lesson) -> Tensor:
        """Squared error of the roots of the patches' errors, at their vision tokens."""
        index = lesson.layout.vision[..., None] + torch.arange(VISION, device=x.device)
        kept = (index < x.shape[1]).flatten(1)
        index = index.clamp(max=x.shape[1] - 1).flatten(1)
        hidden = x.gather(1, index[..., None].expand(-1, -1, WIDTH))
        hidden = functional.rms_norm(hidden, (WIDTH,))
        miss = (self.patch_head(hidden) - lesson.errors.sqrt().flatten(1, 2)).square().mean(-1)
        return (miss * kept).sum() / kept.sum()


def choice_loss(logits: Tensor, lesson: Lesson, temperature: float) -> tuple[Tensor, Tensor]:
    """Divergence from the teacher's soft choice, and the share of gain that the heads' choices miss."""
    gains = lesson.gains.float()
    free = gains > -0.5
    best = gains.amax(-1, keepdim=True)
    useful = (best[..., 0] > 1e-3) * lesson.weight
    scores = (gains / best.clamp(min=1e-3) - 1) / temperature
    target = scores.masked_fill(~free, float("-inf")).softmax(-1)
    log_policy = logits[..., :TOKENS].masked_fill(~free, -1e4).log_softmax(-1)
    divergence = (target * (target.clamp(min=1e-9).log() - log_policy)).sum(-1)
    with torch.no_grad():
        pick = log_policy.argmax(-1, keepdim=True)
        regret = 1 - gains.gather(-1, pick)[..., 0] / best[..., 0].clamp(min=1e-3)
        missed = (regret * useful).sum() / useful.sum()
    return (divergence * useful).sum() / useful.sum(), missed


def stop_loss(predicted: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Huber loss of the relative error of the predicted loss, and that error's mean."""
    relative = (predicted - lesson.losses) / (lesson.losses + 0.1)
    loss = functional.smooth_l1_loss(relative, torch.zeros_like(relative), beta=0.1, reduction="none")
    scale = lesson.weight.sum()
    return (loss * lesson.weight).sum() / scale, (relative.abs() * lesson.weight).sum() / scale
