"""Torch operators that stand for one ONNX opset-24 operator each, with a plain eager definition.

The eager bodies are the reference that an exported graph is compared with; the translation table turns
each call into the ONNX operator that runtimes have fused kernels for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_DOMAIN = "autogaze"


@torch.library.custom_op(f"{_DOMAIN}::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm over the last axis (ONNX RMSNormalization)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


@torch.library.custom_op(f"{_DOMAIN}::rotate", mutates_args=())
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of ``[B, H, S, D]`` by ``[B, S, D/2]`` (ONNX RotaryEmbedding)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@torch.library.custom_op(f"{_DOMAIN}::scatter_cache", mutates_args=())
def scatter_cache(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """Writes ``[B, H, S, D]`` into ``[B, H, L, D]`` from each row's index on (ONNX TensorScatter)."""
    out = cache.clone()
    for row, start in enumerate(write_index.tolist()):
        out[row, :, start : start + update.shape[2]] = update[row]
    return out


@torch.library.custom_op(f"{_DOMAIN}::cached_attention", mutates_args=())
def cached_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, causal: bool) -> Tensor:
    """Attention of the last S of ``lengths`` keys (ONNX Attention with nonpad_kv_seqlen).

    Query i of S sees keys below ``length - S + i + 1`` when causal, else below ``length``.
    """
    steps = torch.arange(query.shape[2])
    visible = lengths[:, None] + (steps - query.shape[2] + 1 if causal else torch.zeros_like(steps))
    mask = torch.arange(key.shape[2]) < visible[:, :, None]
    # Positions beyond the length may hold anything, NaN included: a zero weight alone would not hide it.
    value = torch.where((torch.arange(key.shape[2]) < lengths[:, None])[:, None, :, None], value, 0.0)
    scores = (query @ key.transpose(2, 3)) * query.shape[3] ** -0.5
    return scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1) @ value


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x)


@rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty_like(x)


@scatter_cache.register_fake
def _(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    return torch.empty_like(cache)


@cached_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, causal: bool) -> Tensor:
    return torch.empty_like(query)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``torch.onnx.export(custom_translation_table=…)``."""
    from onnxscript.onnx_opset import opset24 as op

    def onnx_rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
        return op.RMSNormalization(x, weight, axis=-1, epsilon=epsilon)

    def onnx_rotate(x: Any, cos: Any, sin: Any) -> Any:
        return op.RotaryEmbedding(x, cos, sin, interleaved=0)

    def onnx_scatter_cache(cache: Any, update: Any, write_index: Any) -> Any:
        return op.TensorScatter(cache, update, write_index, axis=2, mode="linear")

    def onnx_cached_attention(query: Any, key: Any, value: Any, lengths: Any, causal: bool) -> Any:
        return op.Attention(query, key, value, None, None, None, lengths, is_causal=int(causal))[0]

    ops = torch.ops.autogaze
    return {
        ops.rms_norm.default: onnx_rms_norm,
        ops.rotate.default: onnx_rotate,
        ops.scatter_cache.default: onnx_scatter_cache,
        ops.cached_attention.default: onnx_cached_attention,
    }
