"""A call of the engine in plain torch: what the kernels are compared with, and the engine on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze_backend.rotary import ROUNDED_POSITIONS
from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.pages import PAGE
from autogaze_backend.torch_engine.state import SlotState, Work
from autogaze_backend.torch_engine.weights import DecoderWeights


class ReferenceOps:
    """The two phases on the shared buffers, a row at a time, in the types of the weights."""

    def __init__(self, spec: ModelSpec, weights: DecoderWeights, state: SlotState, work: Work) -> None:
        self._spec, self._weights, self._state, self._work = spec, weights, state, work

    def prefill(self, rows: int) -> None:
        """Opens a frame on the rows of ``Work.slots`` and chooses its first group."""
        for row in range(int(self._work.active)):
            slot = int(self._work.slots[row])
            window = int(self._state.frame[slot]) + 1
            self._state.first[slot] += int(self._state.plan[slot, window, 2])
            ids = self._state.group[slot]
            pending = ids[ids != self._spec.tokens_per_frame].long()
            vision = self._state.vision[slot, window]
            tokens = torch.cat((self._weights.embed[pending].float(), vision.float()))
            positions = self._state.position[slot] + torch.arange(len(tokens), device=tokens.device)
            self._work.count[row] = len(tokens)
            self._run(row, slot, tokens, positions, first=True)

    def step(self, rows: int) -> None:
        """Feeds the last group of the rows of ``Work.slots`` whose frame goes on, and chooses the next."""
        size = self._spec.group_size
        for row in range(int(self._work.active)):
            slot = int(self._work.slots[row])
            if not int(self._state.running[slot]):
                self._work.flags[row] = 0
                continue
            tokens = self._weights.embed[self._state.group[slot].long()].float()
            positions = self._state.anchor[slot] - size + torch.arange(size, device=tokens.device)
            self._work.count[row] = size
            self._run(row, slot, tokens, positions, first=False)

    def _run(self, row: int, slot: int, x: Tensor, positions: Tensor, *, first: bool) -> None:
        spec, weights, state = self._spec, self._weights, self._state
        angles = positions.double()[:, None] * weights.frequency
        rounded = positions.float()[:, None] * weights.frequency.float()
        angles = torch.where(positions[:, None] < ROUNDED_POSITIONS, rounded.double(), angles)
        cos, sin = angles.cos().float(), angles.sin().float()
        begin, stored = int(state.first[slot]), int(state.length[slot])
        end = stored + len(x)
        places = torch.arange(begin, end, device=x.device)
        pages = state.table[slot][(places // PAGE) % state.table.shape[1]].long()
        causal = (
            torch.arange(end - begin, device=x.device)
            <= (torch.arange(stored - begin, end - begin, device=x.device)[:, None])
        )
        for index, layer in enumerate(weights.layers):
            kind = layer.qkv.dtype
            query, key, value = (self._normed(x) @ layer.qkv.float()).split(spec.hidden_size, dim=-1)
            query, key = (_rotate(self._heads(t), cos, sin).to(kind) for t in (query, key))
            cache = state.cache[index, :, 0]
            for part, new in enumerate((key, self._heads(value).to(kind))):
                cache[part, pages[stored - begin :], :, places[stored - begin :] % PAGE] = new.transpose(0, 1)
            keys, values = (cache[part, pages, :, places % PAGE].transpose(0, 1).float() for part in (0, 1))
            scores = (query.float() @ keys.transpose(1, 2)) * spec.head_dim**-0.5
            shares = scores.masked_fill(~causal, float("-inf")).softmax(-1)
            mixed = (shares @ values).transpose(0, 1).flatten(1)
            x = x + mixed @ layer.out.float()
            gate, up = (self._normed(x) @ layer.gate_up.float()).split(spec.intermediate_size, dim=-1)
            x = x + (torch.nn.functional.silu(gate) * up).to(kind).float() @ layer.down.float()
        self._work.logits[row] = self._normed(x[-1:])[0] @ weights.heads
        self._select(row, slot, len(x), first=first)

    def _normed(self, x: Tensor) -> Tensor:
        """Without the norm's weight, which lies in the matrix after it."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._spec.rms_norm_eps)

    def _heads(self, x: Tensor) -> Tensor:
        """``[S, C]`` to ``[heads, S, head_dim]``."""
        return x.unflatten(-1, (self._spec.num_heads, self._spec.head_dim)).transpose(0, 1)

    def _select(self, row: int, slot: int, fed: int, *, first: bool) -> None:
        spec, state, work = self._spec, self._state, self._work
        size, vocabulary, padding = spec.group_size, spec.vocab_size, spec.tokens_per_frame
        logits = work.logits[row, : size * vocabulary].view(size, vocabulary)
        losses = work.logits[row, size * vocabulary : size * (vocabulary + 1)]
        if first:
            window = int(state.frame[slot]) + 1
            left = int(state.plan[slot, window, 0])
            state.requirement[slot] = state.plan[slot, window, 1].view(torch.float32)
            state.chosen[slot] = 0
            state.chosen[slot, padding] = 1
            state.frame[slot] = window
            state.frame_counts[slot, window] = 0
            if window == 0:
                state.cursor[slot] = 0
        else:
            window, left = int(state.frame[slot]), int(state.budget[slot])
        taken = state.chosen[slot].bool()
        free = int((~taken).sum())
        picks, confidences = [], []
        for scores in logits:
            scores = scores.masked_fill(taken, float("-inf"))
            pick = int(scores.argmax())
            confidences.append((scores - scores.max()).exp().sum().reciprocal())
            taken[pick] = True
            picks.append(pick)
        count = min(left, free, size)
        exists = torch.arange(size, device=logits.device) < count
        stopped = exists & (losses <= state.requirement[slot])
        if first:
            stopped[0] = False
        valid = exists & ~stopped
        finished = bool(stopped.any()) or count >= left or count < size
        ids = torch.where(valid, torch.tensor(picks, device=logits.device), padding).int()
        confidence = torch.where(valid, torch.stack(confidences), 0.0)
        at = int(state.cursor[slot])
        entry = torch.stack((ids, confidence.view(torch.int32), losses.contiguous().view(torch.int32)))
        state.record[slot, :, at : at + count] = entry[:, :count]
        state.cursor[slot] += count
        state.frame_counts[slot, window] += count
        state.group[slot] = ids
        state.chosen[slot] = taken.to(torch.int8)
        state.budget[slot] = left - count
        state.length[slot] += fed
        state.position[slot] += fed
        if first:
            state.anchor[slot] = state.position[slot]
        state.running[slot] = work.flags[row] = int(not finished)
        work.call[row, : 3 * size] = entry.flatten()
        work.call[row, 3 * size] = count


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of ``[heads, S, D]`` by ``[S, D/2]``."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
