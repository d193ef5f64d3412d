"""Held-out figures on rendered clips: tokens against the teacher's, and the loss that a frame stopped at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from autogaze_training.cells import GROUP, TOKENS, UNITS
from autogaze_training.checkpoint import REQUIREMENT
from autogaze_training.lessons import Limits, Path
from autogaze_training.model import GazeNetwork
from autogaze_training.oracle import greedy, levels_of
from autogaze_training.reconstruction import blank_canvas, loss_of, paint, state_errors, unit_errors, views
from autogaze_training.render import Atlas, Renderer
from autogaze_training.rollout import choose

_SLOTS = 150


@torch.no_grad()
def validate(
    network: GazeNetwork,
    atlas: Atlas,
    *,
    autocast: Callable[[], AbstractContextManager[None]],
    clips: int = 96,
    frames: int = 8,
) -> dict[str, float]:
    """Runs the network at the default requirement on clips of held-out pictures.

    Returns:
        Means over frames: tokens of first and later frames, the teacher's for the same losses, the loss
        reached, and the relative error of the prediction that stopped the frame.
    """
    device = atlas.pictures.device
    generator = torch.Generator(device).manual_seed(99)
    batch = Renderer(atlas, generator).clips(clips, frames)
    limits = Limits(
        torch.full((clips,), REQUIREMENT, device=device), torch.full((clips,), _SLOTS, device=device)
    )
    with autocast():
        path, _, predicted = choose(network, batch, limits, _SLOTS)
    reached = losses_after(batch, path)
    teacher = teacher_counts(batch, reached)
    stop = path.counts.clamp(max=_SLOTS - 1)
    said = predicted.gather(2, stop[..., None])[..., 0]
    stopped = (~path.capped) & (path.counts > 1)
    error = ((said - reached).abs() / reached.clamp(min=1e-3))[stopped]
    counts, best = path.counts.float(), teacher.float()
    return {
        "first frame: tokens": counts[:, 0].mean().item(),
        "first frame: teacher": best[:, 0].mean().item(),
        "later frames: tokens": counts[:, 1:].mean().item(),
        "later frames: teacher": best[:, 1:].mean().item(),
        "ratio": (counts.sum() / best.sum()).item(),
        "loss reached, first": reached[:, 0].mean().item(),
        "loss reached, later": reached[:, 1:].mean().item(),
        "prediction error at stops": error.mean().item(),
        "prediction error at stops, median": error.median().item(),
        "capped share": path.capped.float().mean().item(),
        "groups a frame": ((counts + GROUP - 1) / GROUP).floor().mean().item(),
    }


def losses_after(frames: Tensor, path: Path) -> Tensor:
    """float32 ``[B, T]``, the loss of each frame once its tokens are shown."""
    canvas = blank_canvas(frames[:, 0])
    losses = []
    for time, frame in enumerate(frames.unbind(1)):
        shown = views(frame)
        errors = unit_errors(frame, canvas, shown)
        levels = levels_of(path.ids[:, time])
        losses.append(loss_of(state_errors(errors, levels)))
        canvas = paint(canvas, shown, levels)
    return torch.stack(losses, 1)


def teacher_counts(frames: Tensor, losses: Tensor) -> Tensor:
    """int64 ``[B, T]``, the tokens with which the teacher, on its own canvas, reaches each frame's loss."""
    canvas = blank_canvas(frames[:, 0])
    counts = []
    for time, frame in enumerate(frames.unbind(1)):
        shown = views(frame)
        errors = unit_errors(frame, canvas, shown)
        batch, device = len(frame), frame.device
        levels = torch.zeros(batch, UNITS * UNITS, dtype=torch.uint8, device=device)
        chosen = torch.zeros(batch, TOKENS, dtype=torch.bool, device=device)
        steps = greedy(errors, levels, chosen, _SLOTS)
        count = (steps.losses > losses[:, time, None] + 1e-6).sum(1).clamp(min=1)
        kept = torch.arange(_SLOTS, device=device) < count[:, None]
        canvas = paint(canvas, shown, levels_of(torch.where(kept, steps.ids, TOKENS)))
        counts.append(count)
    return torch.stack(counts, 1)
