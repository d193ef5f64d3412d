"""What the network learns from: a sequence to read, and at each read-out the teacher's next tokens.

Two sources: the teacher's own path (``demonstrate``), and paths that the network chose, corrected by the
teacher from every state that they visit (``correct``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze_training.cells import GRIDS, GROUP, PADDING, TOKENS, UNITS, cover_levels
from autogaze_training.graphs import Graphed
from autogaze_training.oracle import greedy, levels_of
from autogaze_training.reconstruction import (
    blank_canvas,
    loss_of,
    paint,
    state_errors,
    unit_errors,
    views,
)
from autogaze_training.sequence import Layout, layout

_greedy = Graphed(lambda errors, steps: _fresh_greedy(errors, steps))


@dataclass(frozen=True)
class Limits:
    """Where the frames of each clip stop.

    Attributes:
        requirement: float32 ``[B]``, the loss that stops a frame; −1 for none.
        caps: int64 ``[B]``, the most tokens of a frame, 1 to L.
    """

    requirement: Tensor
    caps: Tensor


@dataclass(frozen=True)
class Path:
    """The tokens of clips.

    Attributes:
        ids: int64 ``[B, T, L]``, valid tokens first, then padding.
        counts: int64 ``[B, T]`` of valid tokens.
        capped: bool ``[B, T]``, the frame ended at its cap.
    """

    ids: Tensor
    counts: Tensor
    capped: Tensor


@dataclass(frozen=True)
class Lesson:
    """A batch to train on; M read-outs of all clips.

    Attributes:
        path: the tokens that the network reads.
        layout: their places in the sequence.
        row: int64 ``[M]``, clip of each read-out.
        readout: int64 ``[M]``, its index in the sequence.
        gains: float16 ``[M, GROUP, TOKENS]``, as in ``oracle.Continuation``.
        losses: float32 ``[M, GROUP]``, the loss before each token of the group.
        weight: float32 ``[M, GROUP]``: 1 for tokens within the limits, less beyond.
        errors: float32 ``[B, T, 196, 4]``, a patch's error on the canvas when its frame opens, and under each
            scale but the finest.
    """

    path: Path
    layout: Layout
    row: Tensor
    readout: Tensor
    gains: Tensor
    losses: Tensor
    weight: Tensor
    errors: Tensor


_BEYOND = 0.3


def demonstrate(frames: Tensor, limits: Limits, slots: int, length: int) -> Lesson:
    """The teacher's own path through clips ``[B, T, 3, 224, 224]``; ``slots`` and ``length`` as in ``layout``."""
    canvas = blank_canvas(frames[:, 0])
    ids, counts, gains, losses, patches = [], [], [], [], []
    slot = torch.arange(slots, device=frames.device)
    for frame in frames.unbind(1):
        shown = views(frame)
        errors = unit_errors(frame, canvas, shown)
        steps = _greedy(errors, slots)
        count = (steps[2] > limits.requirement[:, None]).sum(1).clamp(min=1)
        count = torch.minimum(count, limits.caps)
        chosen = torch.where(slot < count[:, None], steps[0], PADDING)
        canvas = paint(canvas, shown, levels_of(chosen))
        ids.append(chosen)
        counts.append(count)
        gains.append(steps[1])
        losses.append(steps[2])
        patches.append(_patch_errors(errors))
    path = Path(torch.stack(ids, 1), torch.stack(counts, 1), torch.stack(counts, 1) == limits.caps[:, None])
    places = layout(path.counts, path.capped, slots, length)
    where = places.readout_valid.nonzero(as_tuple=True)
    within = slot.view(-1, GROUP)[where[2]] < path.counts[where[0], where[1]][:, None]
    return Lesson(
        path=path,
        layout=places,
        row=where[0],
        readout=places.readout[where],
        gains=torch.stack(gains, 1).unflatten(2, (-1, GROUP))[where],
        losses=torch.stack(losses, 1).unflatten(2, (-1, GROUP))[where],
        weight=torch.where(within, 1.0, _BEYOND),
        errors=torch.stack(patches, 1),
    )


def correct(frames: Tensor, path: Path, picks: Tensor, length: int) -> Lesson:
    """The teacher's next tokens from every state on the network's path.

    Args:
        frames: ``[B, T, 3, 224, 224]``.
        path: what the network chose.
        picks: int64 ``[B, T, L]``, every pick of its heads, those included that a stop turned into padding.
        length: S.
    """
    slots = path.ids.shape[-1]
    places = layout(path.counts, path.capped, slots, length)
    canvas = blank_canvas(frames[:, 0])
    all_errors = []
    for time, frame in enumerate(frames.unbind(1)):
        shown = views(frame)
        all_errors.append(unit_errors(frame, canvas, shown))
        canvas = paint(canvas, shown, levels_of(path.ids[:, time]))
    row, time, group = places.readout_valid.nonzero(as_tuple=True)
    errors = torch.stack(all_errors, 1)
    slot = torch.arange(slots, device=frames.device)
    before = torch.where(slot < (group * GROUP)[:, None], path.ids[row, time], PADDING)
    levels = levels_of_long(before)
    chosen = torch.zeros(len(row), TOKENS + 1, dtype=torch.bool, device=frames.device)
    chosen = chosen.scatter(1, before, True)[:, :TOKENS]
    here = errors[row, time]
    steps = greedy(here, levels, chosen, GROUP)
    own = picks.unflatten(2, (-1, GROUP))[row, time, group]
    losses = []
    for index in range(GROUP):
        losses.append(loss_of(state_errors(here, levels)))
        levels = torch.maximum(levels, cover_levels(levels.device)[own[:, index]])
    within = slot.view(-1, GROUP)[group] < path.counts[row, time][:, None]
    return Lesson(
        path=path,
        layout=places,
        row=row,
        readout=places.readout[row, time, group],
        gains=steps.gains,
        losses=torch.stack(losses, 1),
        weight=torch.where(within, 1.0, _BEYOND),
        errors=torch.stack([_patch_errors(e) for e in all_errors], 1),
    )


def levels_of_long(ids: Tensor) -> Tensor:
    """``levels_of`` a column at a time, for many states: the table's rows never exist all at once."""
    cover = cover_levels(ids.device)
    levels = cover[ids[:, 0]]
    for index in range(1, ids.shape[1]):
        levels = torch.maximum(levels, cover[ids[:, index]])
    return levels


def _fresh_greedy(errors: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, device = errors.shape[0], errors.device
    levels = torch.zeros(batch, UNITS * UNITS, dtype=torch.uint8, device=device)
    chosen = torch.zeros(batch, TOKENS, dtype=torch.bool, device=device)
    found = greedy(errors, levels, chosen, steps)
    return found.ids, found.gains, found.losses


def _patch_errors(errors: Tensor) -> Tensor:
    """``[B, 5, UNITS²]`` to ``[B, 196, 4]``: 2×2 units make a patch; the finest scale's error is 0."""
    grid = GRIDS[-1]
    planes = errors[:, : len(GRIDS)].reshape(errors.shape[0], len(GRIDS), grid, 2, grid, 2)
    return planes.mean((3, 5)).flatten(2).transpose(1, 2)
