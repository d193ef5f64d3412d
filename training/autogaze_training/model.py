"""The network, with the published tensor names, for teacher-forced passes over whole clips.

A state dict of ``GazeNetwork`` is a checkpoint: its 49 tensors carry the names and shapes that
``autogaze_export.binding.checkpoint_shapes`` lists.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from autogaze_training.cells import GRIDS, GROUP, TOKENS

WIDTH, FFN, LAYERS, HEADS = 192, 384, 4, 6
HEAD_DIM = WIDTH // HEADS
PATCH, GRID, VISION = 16, 14, 196
VOCABULARY = TOKENS + 1
ROPE_THETA = 500000.0
ROPE_FACTOR, ROPE_LOW, ROPE_HIGH, ROPE_ORIGINAL = 8.0, 1.0, 4.0, 8192
RMS_EPS = 1e-5


class VisionModel(nn.Module):
    """Patch convolution, layer norm, one causal 3×3×3 block, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.temporal_conv = nn.Conv3d(3, WIDTH, (1, PATCH, PATCH), stride=(1, PATCH, PATCH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-5)
        self.blocks = nn.ModuleList([nn.Module()])
        self.blocks[0].conv3d = nn.Conv3d(WIDTH, WIDTH, 3)
        self.out_proj = nn.Conv3d(WIDTH, WIDTH, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """``[B, T, 3, 224, 224]`` to ``[B, T, 196, WIDTH]``; the clip starts a stream."""
        batch, time = frames.shape[:2]
        weight = self.temporal_conv.weight[:, :, 0]
        x = functional.conv2d(frames.flatten(0, 1), weight, self.temporal_conv.bias, stride=PATCH)
        x = self.norm(x.flatten(2).transpose(1, 2)).to(x.dtype)
        x = x.transpose(1, 2).reshape(batch, time, WIDTH, GRID, GRID)
        past = functional.pad(x, (0, 0, 0, 0, 0, 0, 2, 0))
        # A causal temporal convolution is a plane convolution over the taps stacked as channels.
        taps = torch.cat([past[:, tap : tap + time] for tap in range(3)], dim=2).flatten(0, 1)
        kernel = self.blocks[0].conv3d.weight.transpose(1, 2).flatten(1, 2)
        x = functional.conv2d(taps, kernel, self.blocks[0].conv3d.bias, padding=1).relu()
        x = functional.linear(
            x.flatten(2).transpose(1, 2), self.out_proj.weight.flatten(1), self.out_proj.bias
        )
        return x.view(batch, time, VISION, WIDTH)


class Attention(nn.Module):
    """Projections of a layer's attention."""

    def __init__(self) -> None:
        super().__init__()
        for name in "qkvo":
            setattr(self, f"{name}_proj", nn.Linear(WIDTH, WIDTH, bias=False))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, FFN, bias=False)
        self.up_proj = nn.Linear(WIDTH, FFN, bias=False)
        self.down_proj = nn.Linear(FFN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., WIDTH]`` to the same."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A decoder layer; ``attend`` gets rotated queries and keys, so that callers choose the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = Mlp()
        self.input_layernorm = nn.RMSNorm(WIDTH, eps=RMS_EPS)
        self.post_attention_layernorm = nn.RMSNorm(WIDTH, eps=RMS_EPS)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, HEADS, S, HEAD_DIM]``."""
        normed = self.input_layernorm(x)
        attention = self.self_attn
        query, key, value = (
            projection(normed).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return rotate(query, cos, sin), rotate(key, cos, sin), value

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Adds attention's output and the feed-forward network to the residual stream."""
        x = x + self.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """A causal pass over ``[B, S, WIDTH]``."""
        query, key, value = self.project(x, cos, sin)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.finish(x, mixed)


class GazeNetwork(nn.Module):
    """Vision model, position embedding, decoder and heads."""

    def __init__(self) -> None:
        super().__init__()
        model = self.gazing_model = nn.Module()
        model.vision_model = VisionModel()
        model.connector = nn.Module()
        model.connector.pos_embed = nn.Parameter(torch.zeros(VISION, WIDTH))
        decoder = model.gaze_decoder = nn.Module()
        decoder.model = nn.Module()
        decoder.model.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        decoder.model.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])
        decoder.model.norm = nn.RMSNorm(WIDTH, eps=RMS_EPS)
        decoder.lm_head = nn.Linear(WIDTH, VOCABULARY * GROUP, bias=False)
        decoder.task_loss_prediction_head = nn.Linear(WIDTH, GROUP, bias=False)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        return self.gazing_model.gaze_decoder.model.layers

    def encode(self, frames: Tensor) -> Tensor:
        """``[B, T, 3, 224, 224]`` to vision tokens ``[B, T, 196, WIDTH]`` with position embedding."""
        return self.gazing_model.vision_model(frames) + self.gazing_model.connector.pos_embed

    def embed(self, ids: Tensor) -> Tensor:
        """Ids ``[...]`` to ``[..., WIDTH]``."""
        embedded: Tensor = self.gazing_model.gaze_decoder.model.embed_tokens(ids)
        return embedded

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[..., GROUP, VOCABULARY]`` and predicted losses ``[..., GROUP]`` at read-out tokens."""
        decoder = self.gazing_model.gaze_decoder
        hidden = decoder.model.norm(hidden)
        logits = decoder.lm_head(hidden).unflatten(-1, (GROUP, VOCABULARY))
        return logits, decoder.task_loss_prediction_head(hidden)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draws the weights; a cell's id starts with the position code of its centre, as patches do."""
        generator = torch.Generator().manual_seed(seed)

        def normal(parameter: Tensor, std: float) -> None:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            fan_in = parameter[0].numel()
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            gain = 1.4 if "conv3d" in name else (0.35 if residual else 1.0)
            normal(parameter, gain / math.sqrt(fan_in))
        scale_codes = torch.randn(len(GRIDS), WIDTH, generator=generator)
        cells = [position_code(grid) * 0.8 + scale_codes[level] * 0.35 for level, grid in enumerate(GRIDS)]
        ids = torch.cat([*cells, torch.zeros(1, WIDTH)])
        self.gazing_model.connector.pos_embed.copy_(position_code(GRID))
        self.gazing_model.gaze_decoder.model.embed_tokens.weight.copy_(ids)
        head = self.gazing_model.gaze_decoder.lm_head.weight.view(GROUP, VOCABULARY, WIDTH)
        head.mul_(0.3).add_(ids * 0.1)
        self.gazing_model.gaze_decoder.task_loss_prediction_head.weight.mul_(0.1)


def position_code(grid: int) -> Tensor:
    """Sine codes ``[grid², WIDTH]`` of the centres of a grid's cells, of unit variance."""
    centres = (torch.arange(grid) + 0.5) / grid
    count = WIDTH // 4
    frequencies = torch.pi * 0.5 * (28.0 ** (torch.arange(count) / (count - 1)))
    phases = centres[:, None] * frequencies
    axis = torch.cat((phases.sin(), phases.cos()), dim=1)
    rows, columns = axis.repeat_interleave(grid, 0), axis.repeat(grid, 1)
    return torch.cat((rows, columns), dim=1) * math.sqrt(2.0)


def rotary(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[B, 1, S, HEAD_DIM / 2]`` of integer positions, with the llama3 scaling."""
    exponents = torch.arange(0, HEAD_DIM, 2, dtype=torch.float64, device=positions.device) / HEAD_DIM
    frequency = ROPE_THETA**-exponents
    wavelength = 2 * math.pi / frequency
    blend = ((ROPE_ORIGINAL / wavelength - ROPE_LOW) / (ROPE_HIGH - ROPE_LOW)).clamp(0, 1)
    frequency = blend * frequency + (1 - blend) * frequency / ROPE_FACTOR
    phases = (positions.double()[:, None, :, None] * frequency) % (2 * math.pi)
    return phases.cos().float(), phases.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation; the result has ``x``'s type."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
