"""The greedy teacher: always the token that lowers the loss most, over all cells at once.

With an L1 loss the gain of a token is a sum over the units of its cell, so the gains of all 265 tokens are
one matrix product, batched over clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze_training.cells import LOSS_SCALE, UNITS, cover_levels, gain_matrix
from autogaze_training.reconstruction import loss_of, state_errors


@dataclass(frozen=True)
class Continuation:
    """The teacher's next tokens from a state.

    Attributes:
        ids: int64 ``[B, L]``.
        gains: float16 ``[B, L, TOKENS]``, loss reduction of every token before each choice; −1 for the ids
            that may not be chosen any more.
        losses: float32 ``[B, L]``, the loss before each choice.
    """

    ids: Tensor
    gains: Tensor
    losses: Tensor


def levels_of(ids: Tensor) -> Tensor:
    """uint8 ``[..., UNITS²]``: the finest level that the tokens ``[..., L]`` reveal; padding reveals nothing."""
    return cover_levels(ids.device)[ids].amax(-2)


def token_gains(errors: Tensor, levels: Tensor, current: Tensor) -> Tensor:
    """float32 ``[B, TOKENS]``, by how much the loss falls when each token is added to the state."""
    level = torch.arange(1, errors.shape[1], device=errors.device)[:, None]
    better = torch.where(levels[:, None] < level, current[:, None] - errors[:, 1:], 0.0)
    return better.flatten(1) @ gain_matrix(errors.device) * (LOSS_SCALE / UNITS**2)


def greedy(errors: Tensor, levels: Tensor, chosen: Tensor, steps: int) -> Continuation:
    """Continues states for ``steps`` tokens.

    Args:
        errors: float32 ``[B, 5, UNITS²]`` from ``unit_errors``.
        levels: uint8 ``[B, UNITS²]``, what this frame's tokens revealed so far.
        chosen: bool ``[B, TOKENS]``, ids that may not be chosen.
        steps: tokens to choose; at most the free ids.
    """
    cover = cover_levels(errors.device)
    current = state_errors(errors, levels)
    ids, gains, losses = [], [], []
    for _ in range(steps):
        gain = token_gains(errors, levels, current).masked_fill(chosen, -1.0)
        pick = gain.argmax(-1)
        ids.append(pick)
        gains.append(gain.half())
        losses.append(loss_of(current))
        chosen = chosen.scatter(1, pick[:, None], True)
        levels = torch.maximum(levels, cover[pick])
        current = state_errors(errors, levels)
    return Continuation(torch.stack(ids, 1), torch.stack(gains, 1), torch.stack(losses, 1))
