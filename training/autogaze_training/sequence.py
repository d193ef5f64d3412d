"""Clips as the sequences that serving feeds: compact rows, stale positions, read-out tokens.

The inference rule (docs: the published model's generation loop): within a frame the first group is read at
the last vision token, each later group at the last token of the group before. Groups that are followed by
another group of their frame are rotated with the positions of the frame's last ``GROUP`` vision tokens. A
frame's last group enters with the next frame, at its natural positions. Attention is plain causal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze_training.cells import GROUP
from autogaze_training.model import VISION


@dataclass(frozen=True)
class Layout:
    """Where everything sits in the compact rows.

    Attributes:
        source: int64 ``[B, S]``, index into the flat slots ``T · (VISION + L)`` of each sequence token.
        positions: int64 ``[B, S]``, for the rotation.
        vision: int64 ``[B, T]``, index in S of each frame's first vision token.
        readout: int64 ``[B, T, L / GROUP]``, index in S of the token that reads out each group.
        readout_valid: bool, likewise: the group was generated and its read-out lies within S.
    """

    source: Tensor
    positions: Tensor
    vision: Tensor
    readout: Tensor
    readout_valid: Tensor


def pending_count(counts: Tensor, capped: Tensor) -> Tensor:
    """Tokens of a frame's last group, not fed within the frame.

    A frame that stops by its loss after a multiple of GROUP tokens had one more group, all padding; one
    that stops at its cap had not.
    """
    return torch.where(capped, (counts - 1) % GROUP + 1, counts % GROUP)


def layout(counts: Tensor, capped: Tensor, slots: int, length: int) -> Layout:
    """Lays out clips.

    Args:
        counts: int64 ``[B, T]``, valid tokens of each frame, at least 1.
        capped: bool ``[B, T]``, the frame stopped at its cap rather than by its loss.
        slots: L, token slots a frame, a multiple of GROUP.
        length: S; what does not fit is cut off.
    """
    device = counts.device
    batch = len(counts)
    fed = counts - pending_count(counts, capped)
    sizes = counts + VISION
    starts = sizes.cumsum(1) - sizes
    index = torch.arange(VISION + slots, device=device)
    slot = index - VISION
    valid = slot < counts[..., None]
    natural = starts[..., None] + index
    stale = (starts + VISION - GROUP)[..., None] + slot % GROUP
    is_fed = (slot >= 0) & (slot < fed[..., None])
    positions = torch.where(is_fed, stale, natural)
    target = torch.where(valid, natural, length).clamp(max=length).flatten(1)
    flat = torch.arange(target.shape[1], device=device).expand(batch, -1)
    source = torch.zeros(batch, length + 1, dtype=torch.int64, device=device).scatter(1, target, flat)
    rotary_positions = torch.zeros_like(source).scatter(1, target, positions.flatten(1))
    group = torch.arange(slots // GROUP, device=device)
    readout = starts[..., None] + VISION - 1 + group * GROUP
    groups = torch.where(capped, (counts + GROUP - 1) // GROUP, counts // GROUP + 1)
    readout_valid = (group < groups[..., None]) & (readout < length)
    return Layout(
        source=source[:, :length],
        positions=rotary_positions[:, :length],
        vision=starts,
        readout=readout.clamp(max=length - 1),
        readout_valid=readout_valid,
    )


def assemble(vision: Tensor, tokens: Tensor, source: Tensor) -> Tensor:
    """The sequence ``[B, S, C]`` of vision ``[B, T, VISION, C]`` and embedded tokens ``[B, T, L, C]``."""
    slots = torch.cat((vision, tokens.to(vision.dtype)), dim=2).flatten(1, 2)
    return slots.gather(1, source[..., None].expand(-1, -1, slots.shape[-1]))
