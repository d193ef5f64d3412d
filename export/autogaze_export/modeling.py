"""The model in torch, one module a phase: encoder, prefill, generation step.

Weights are held as the bundle stores them (``binding.py``), so that a parameter's name is the name of
the graph's initialiser. Nothing here is upstream's code; the rules are those of the specification.
"""

from __future__ import annotations

import torch
from autogaze_backend.spec import ModelSpec
from torch import Tensor, nn

from autogaze_export.binding import weight_shapes
from autogaze_export.torch_ops import cached_attention, rms_norm, rotate, scatter_cache

Caches = tuple[list[Tensor], list[Tensor]]


def _register(module: nn.Module, spec: ModelSpec, prefix: str) -> None:
    """Gives ``module`` a parameter tree with the bundle's names and shapes under ``prefix``."""
    for name, shape in weight_shapes(spec).items():
        if not name.startswith(prefix):
            continue
        owner = module
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(leaf, nn.Parameter(torch.empty(shape), requires_grad=False))


class Encoder(nn.Module):
    """Frames to vision tokens: patch convolution, layer norm, causal blocks, projection (pipeline §4)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        _register(self, spec, "encoder.")

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes consecutive frames.

        Args:
            frames: float ``[B, T, 3, side, side]``, normalised.
            state: float ``[B, depth, kernel_t - 1, C, grid, grid]``, each block's inputs of the frames
                before; zeros at the start of a stream.

        Returns:
            Tokens ``[B, T, grid², C]`` with position embedding, and the state after the last frame.
        """
        spec, weights = self.spec, self.encoder
        batch, time = frames.shape[:2]
        grid, width, reach = spec.vision_grid, spec.hidden_size, spec.temporal_kernel - 1
        x = nn.functional.conv2d(
            frames.reshape(-1, 3, spec.input_size, spec.input_size),
            weights.patch.weight,
            weights.patch.bias,
            stride=spec.patch_size,
        )
        x = x.flatten(2).transpose(1, 2)
        x = nn.functional.layer_norm(x, (width,), weights.norm.weight, weights.norm.bias, 1e-5)
        x = x.transpose(1, 2).reshape(batch, time, width, grid, grid)
        states = []
        for index in range(spec.encoder_depth):
            block = getattr(weights.blocks, str(index))
            past = torch.cat((state[:, index], x), dim=1)
            states.append(past[:, time:])
            # A causal temporal convolution is a plane convolution over the taps stacked as channels.
            taps = torch.cat([past[:, tap : tap + time] for tap in range(reach + 1)], dim=2)
            x = nn.functional.conv2d(
                taps.reshape(-1, (reach + 1) * width, grid, grid),
                block.weight,
                block.bias,
                padding=spec.spatial_kernel // 2,
            )
            x = x.relu().reshape(batch, time, width, grid, grid)
        tokens = x.flatten(3).transpose(2, 3) @ weights.proj.weight + weights.proj.bias
        return tokens + weights.position, torch.stack(states, dim=1)


class Decoder(nn.Module):
    """The transformer over a compact cache, its heads, and the selection of one group of tokens."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        _register(self, spec, "decoder.")

    def _layers(
        self, x: Tensor, cos: Tensor, sin: Tensor, write_index: Tensor, caches: Caches, last: Tensor | None
    ) -> tuple[Tensor, Caches]:
        """Runs the layers on ``[B, S, C]``; ``last`` names each row's read-out token, None the final one.

        Only the read-out token leaves the last layer, so that layer computes keys and values for all
        tokens and everything else for that one.
        """
        spec, model = self.spec, self.decoder
        lengths = write_index + x.shape[1]
        keys, values = [], []
        for index in range(spec.num_layers):
            layer = getattr(model.layers, str(index))
            normed = rms_norm(x, layer.input_norm, spec.rms_norm_eps)
            query, key, value = (normed @ layer.qkv).split(spec.hidden_size, dim=-1)
            keys.append(scatter_cache(caches[0][index], rotate(self._heads(key), cos, sin), write_index))
            values.append(scatter_cache(caches[1][index], self._heads(value), write_index))
            final = index == spec.num_layers - 1
            if final:
                x, query, cos, sin = (_take(t, last) for t in (x, query, cos, sin))
                if last is not None:
                    lengths = write_index + last + 1
            query = rotate(self._heads(query), cos, sin)
            mixed = cached_attention(query, keys[-1], values[-1], lengths, not final)
            x = x + mixed.transpose(1, 2).flatten(2) @ layer.out
            normed = rms_norm(x, layer.post_norm, spec.rms_norm_eps)
            gate, up = (normed @ layer.gate_up).split(spec.intermediate_size, dim=-1)
            x = x + (nn.functional.silu(gate) * up) @ layer.down
        return rms_norm(x, model.norm, spec.rms_norm_eps)[:, 0], (keys, values)

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, S, C]`` to ``[B, heads, S, head_dim]``."""
        return x.unflatten(-1, (self.spec.num_heads, self.spec.head_dim)).transpose(1, 2)

    def _select(
        self, hidden: Tensor, chosen: Tensor, budget: Tensor, requirement: Tensor, first_group: bool
    ) -> tuple[Tensor, ...]:
        """Chooses a group greedily (pipeline §5).

        Args:
            hidden: ``[B, C]`` of the read-out token.
            chosen: bool ``[B, V]``, ids of this frame that may not be chosen again.
            budget: int64 ``[B]``, tokens that the frame may still take.
            requirement: float ``[B]``; a predicted loss at or below it stops the frame; NaN never does.
            first_group: whether this group opens the frame, whose very first token no stop may take.

        Returns:
            ids int64 ``[B, K]`` (the padding id where nothing was chosen), count int64 ``[B]`` of slots,
            finished bool ``[B]``, confidences and predicted losses float ``[B, K]``, chosen bool
            ``[B, V]``, logits ``[B, K, V]``.
        """
        spec = self.spec
        size, padding = spec.group_size, spec.tokens_per_frame
        logits = (hidden @ self.decoder.lm_head).unflatten(-1, (size, spec.vocab_size))
        losses = hidden @ self.decoder.task_loss_head
        vocabulary = torch.arange(spec.vocab_size)
        free = spec.vocab_size - chosen.to(torch.int64).sum(-1)
        picks, masked = [], []
        for head in range(size):
            scores = logits[:, head].masked_fill(chosen, float("-inf"))
            pick = scores.argmax(-1, keepdim=True)
            chosen = chosen | (vocabulary == pick)
            picks.append(pick)
            masked.append(scores)
        ids, scores = torch.cat(picks, dim=1), torch.stack(masked, dim=1)
        confidences = (scores - scores.amax(-1, keepdim=True)).exp().sum(-1).reciprocal()
        count = torch.minimum(budget, free).clamp(max=size)
        slot = torch.arange(size)
        exists = slot < count[:, None]
        stopped = exists & (losses <= requirement[:, None])
        if first_group:
            stopped = stopped & (slot > 0)
        valid = exists & ~stopped
        finished = stopped.any(-1) | (count >= budget) | (count < size)
        ids = torch.where(valid, ids, padding)
        confidences = torch.where(valid, confidences, 0.0)
        return ids, count, finished, confidences, losses, chosen, logits


class Prefill(Decoder):
    """Opens a frame: the last group of the frame before, then the frame's vision tokens."""

    def forward(
        self,
        vision: Tensor,
        pending: Tensor,
        order: Tensor,
        last: Tensor,
        cos: Tensor,
        sin: Tensor,
        write_index: Tensor,
        budget: Tensor,
        requirement: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Feeds ``[pending, vision]`` and selects the frame's first group.

        Args:
            vision: float ``[B, grid², C]``.
            pending: int64 ``[B, P]``, the group left over from the frame before, padded with any id.
            order: int64 ``[B, S]``, S = P + grid²: token s is entry ``order[s]`` of ``[pending, vision]``.
                A row's real tokens come first, so that its padding lies beyond its length.
            last: int64 ``[B]``, index in S of the row's last vision token.
            cos: float ``[B, S, head_dim / 2]``.
            sin: likewise.
            write_index: int64 ``[B]``, the row's cache length before this call.
            budget: see ``_select``.
            requirement: see ``_select``.
            keys: a cache ``[B, heads, L, head_dim]`` a layer.
            values: likewise.

        Returns:
            What ``_select`` gives, then the keys and the values of every layer.
        """
        tokens = torch.cat((nn.functional.embedding(pending, self.decoder.embed), vision), dim=1)
        tokens = tokens.gather(1, order[:, :, None].expand(-1, -1, self.spec.hidden_size))
        hidden, caches = self._layers(tokens, cos, sin, write_index, (keys, values), last)
        padding = torch.arange(self.spec.vocab_size) == self.spec.tokens_per_frame
        chosen = padding.expand(vision.shape[0], -1)
        return (*self._select(hidden, chosen, budget, requirement, True), *caches[0], *caches[1])


class Step(Decoder):
    """Continues a frame: feeds the group just chosen and selects the next."""

    def forward(
        self,
        group: Tensor,
        chosen: Tensor,
        cos: Tensor,
        sin: Tensor,
        write_index: Tensor,
        budget: Tensor,
        requirement: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Feeds ``group`` int64 ``[B, K]``; the other arguments as in ``Prefill`` and ``_select``."""
        tokens = nn.functional.embedding(group, self.decoder.embed)
        hidden, caches = self._layers(tokens, cos, sin, write_index, (keys, values), None)
        return (*self._select(hidden, chosen, budget, requirement, False), *caches[0], *caches[1])


def _take(x: Tensor, last: Tensor | None) -> Tensor:
    """The read-out token of ``[B, S, C]`` as ``[B, 1, C]``."""
    if last is None:
        return x[:, -1:]
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[-1]))
