"""What a receiver of the tokens sees, and how far it is from the frame.

A token of scale s shows its cell at 16×16 pixels: the frame shrunk to s×s by averaging, every pixel shown
as a block. Within a frame the finest token wins, whatever the order. A region that no token of this frame
covers keeps what earlier frames left there; at the start that is mean grey, 0 in normalised pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autogaze_training.cells import LOSS_SCALE, SCALES, SIDE, UNIT, UNITS


def views(frames: Tensor) -> list[Tensor]:
    """The frame as each scale shows it, coarse to fine; ``[B, 3, 224, 224]`` each."""
    shown = []
    for scale in SCALES[:-1]:
        small = functional.adaptive_avg_pool2d(frames, scale)
        shown.append(functional.interpolate(small, size=SIDE, mode="nearest"))
    return [*shown, frames]


def unit_errors(frames: Tensor, canvas: Tensor, shown: list[Tensor]) -> Tensor:
    """Mean absolute error a unit under each level: the canvas, then each scale; ``[B, 5, UNITS²]``."""
    errors = [_pool(frames - picture) for picture in (canvas, *shown)]
    return torch.stack(errors, dim=1)


def paint(canvas: Tensor, shown: list[Tensor], levels: Tensor) -> Tensor:
    """The canvas after a frame whose units ended at ``levels`` uint8 ``[B, UNITS²]``."""
    mask = levels.view(-1, 1, UNITS, UNITS).repeat_interleave(UNIT, 2).repeat_interleave(UNIT, 3)
    for level, picture in enumerate(shown, start=1):
        canvas = torch.where(mask == level, picture, canvas)
    return canvas


def state_errors(errors: Tensor, levels: Tensor) -> Tensor:
    """The error of each unit at its level; ``errors`` ``[B, 5, U]``, ``levels`` ``[B, ..., U]``."""
    index = levels.long()
    if index.dim() == 2:
        return errors.gather(1, index[:, None])[:, 0]
    return errors.gather(1, index)


def loss_of(unit_error: Tensor) -> Tensor:
    """The loss of unit errors ``[..., UNITS²]``."""
    return LOSS_SCALE * unit_error.mean(-1)


def _pool(difference: Tensor) -> Tensor:
    batch = difference.shape[0]
    blocks = difference.abs().mean(1).view(batch, UNITS, UNIT, UNITS, UNIT)
    return blocks.mean((2, 4)).flatten(1)


def blank_canvas(frames: Tensor) -> Tensor:
    """Mean grey, before any token."""
    return torch.zeros_like(frames)
