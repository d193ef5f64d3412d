"""Lets the network choose, by the rules of serving, in batches on the training device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autogaze_training.cells import GROUP, PADDING
from autogaze_training.lessons import Limits, Path
from autogaze_training.model import HEAD_DIM, HEADS, LAYERS, VISION, VOCABULARY, GazeNetwork, rotary


class _Cache:
    """Keys and values of compact rows; what is not valid goes to a last slot that no query sees."""

    def __init__(self, batch: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (LAYERS, batch, HEADS, length + 1, HEAD_DIM)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = length

    def run(self, network: GazeNetwork, x: Tensor, positions: Tensor, where: Tensor, seen: int) -> Tensor:
        """Runs the layers on ``[B, S, C]`` written at ``where``; no row is longer than ``seen`` after it."""
        cos, sin = rotary(positions)
        mask = (torch.arange(seen, device=x.device) <= where[..., None])[:, None]
        index = where[:, None, :, None].expand(-1, HEADS, -1, HEAD_DIM)
        for number, layer in enumerate(network.layers):
            query, key, value = layer.project(x, cos, sin)
            self.keys[number].scatter_(2, index, key.to(self.keys.dtype))
            self.values[number].scatter_(2, index, value.to(self.values.dtype))
            mixed = functional.scaled_dot_product_attention(
                query.to(self.keys.dtype),
                self.keys[number, :, :, :seen],
                self.values[number, :, :, :seen],
                attn_mask=mask,
            )
            x = layer.finish(x, mixed)
        return x


@torch.no_grad()
def choose(network: GazeNetwork, frames: Tensor, limits: Limits, slots: int) -> tuple[Path, Tensor, Tensor]:
    """Generates greedily.

    Args:
        network: in the precision to run in.
        frames: ``[B, T, 3, 224, 224]``.
        limits: of each clip.
        slots: L, a multiple of GROUP, at least the caps.

    Returns:
        The path; every pick ``[B, T, L]`` (padding where no group was chosen); predicted losses likewise.
    """
    batch, time = frames.shape[:2]
    device = frames.device
    vision = network.encode(frames)
    cache = _Cache(batch, time * (VISION + slots), device, vision.dtype)
    lengths = torch.zeros(batch, dtype=torch.int64, device=device)
    pending = torch.full((batch, GROUP), PADDING, device=device)
    left = torch.zeros_like(lengths)
    paths, picked, predicted = [], [], []
    for number in range(time):
        slot = torch.arange(GROUP, device=device)
        waiting = slot < left[:, None]
        after = lengths + left
        natural = torch.cat(
            (lengths[:, None] + slot, after[:, None] + torch.arange(VISION, device=device)), dim=1
        )
        where = natural.clone()
        where[:, :GROUP] = torch.where(waiting, natural[:, :GROUP], cache.length)
        tokens = torch.cat((network.embed(pending).to(vision.dtype), vision[:, number]), dim=1)
        seen = min(cache.length, number * (VISION + slots) + VISION)
        hidden = cache.run(network, tokens, natural, where, seen)
        lengths = after + VISION
        stale = lengths[:, None] + torch.arange(-GROUP, 0, device=device)
        frame = _Frame(limits, batch, slots, device)
        readout = hidden[:, -1]
        while frame.select(network, readout):
            group = frame.last_picks()
            going = frame.running
            where = torch.where(going[:, None], lengths[:, None] + slot, cache.length)
            seen = min(cache.length, seen + GROUP)
            hidden = cache.run(network, network.embed(group).to(vision.dtype), stale, where, seen)
            readout = hidden[:, -1]
            lengths = lengths + torch.where(going, GROUP, 0)
        path, pending, left = frame.finish()
        paths.append(path)
        picked.append(frame.picks)
        predicted.append(frame.losses)
    return (
        Path(
            torch.stack([p.ids for p in paths], 1),
            torch.stack([p.counts for p in paths], 1),
            torch.stack([p.capped for p in paths], 1),
        ),
        torch.stack(picked, 1),
        torch.stack(predicted, 1),
    )


class _Frame:
    """The choice of one frame's groups, a row a clip."""

    def __init__(self, limits: Limits, batch: int, slots: int, device: torch.device) -> None:
        self.limits, self.slots, self.groups = limits, slots, 0
        self.picks = torch.full((batch, slots), PADDING, device=device)
        self.valid = torch.zeros(batch, slots, dtype=torch.bool, device=device)
        self.losses = torch.zeros(batch, slots, device=device)
        self.running = torch.ones(batch, dtype=torch.bool, device=device)
        self.stopped = torch.zeros(batch, dtype=torch.bool, device=device)
        self.last = torch.zeros(batch, dtype=torch.int64, device=device)
        self.chosen = torch.zeros(batch, VOCABULARY, dtype=torch.bool, device=device)
        self.chosen[:, PADDING] = True

    def select(self, network: GazeNetwork, readout: Tensor) -> bool:
        """Chooses a group of the running rows; False when no row goes on."""
        logits, losses = network.heads(readout)
        start = self.groups * GROUP
        picks = []
        for head in range(GROUP):
            pick = logits[:, head].float().masked_fill(self.chosen, float("-inf")).argmax(-1, keepdim=True)
            self.chosen = self.chosen.scatter(1, pick, True)
            picks.append(pick)
        slot = start + torch.arange(GROUP, device=readout.device)
        exists = slot < self.limits.caps[:, None]
        stops = exists & (losses.float() <= self.limits.requirement[:, None]) & (slot > 0)
        here = self.running[:, None]
        block = slice(start, start + GROUP)
        self.picks[:, block] = torch.where(here, torch.cat(picks, 1), PADDING)
        self.valid[:, block] = here & exists & ~stops
        self.losses[:, block] = losses.float()
        self.last = torch.where(self.running, self.groups, self.last)
        stopped = self.running & stops.any(1)
        self.stopped |= stopped
        self.groups += 1
        self.running = self.running & ~stopped & (self.limits.caps > self.groups * GROUP)
        return self.groups * GROUP < self.slots and bool(self.running.any())

    def last_picks(self) -> Tensor:
        """The group to feed next."""
        return self.picks[:, (self.groups - 1) * GROUP : self.groups * GROUP]

    def finish(self) -> tuple[Path, Tensor, Tensor]:
        """The frame's path, and each row's last group as (pending ids, their number)."""
        order = (~self.valid).to(torch.int8).argsort(dim=1, stable=True)
        ids = torch.where(self.valid, self.picks, PADDING).gather(1, order)
        counts = self.valid.sum(1)
        fed = self.last * GROUP
        left = counts - fed
        index = (fed[:, None] + torch.arange(GROUP, device=ids.device)).clamp(max=self.slots - 1)
        pending = ids.gather(1, index)
        return Path(ids, counts, ~self.stopped), pending, left
