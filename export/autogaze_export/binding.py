"""From a checkpoint's tensors to the weights that the graphs name.

The graphs fuse what shares an input (query, key and value; gate and up), store matrices as
``[in, out]`` and the temporal taps of a 3-D convolution as channels. Done once, when a bundle is
written, so that graphs hold no transposes and any checkpoint of the architecture fits them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from autogaze_backend.spec import ModelSpec
from numpy.typing import NDArray

Array = NDArray[Any]

_DECODER = "gazing_model.gaze_decoder."
_VISION = "gazing_model.vision_model."


def checkpoint_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that ``model.safetensors`` must hold (pipeline §1)."""
    width, ffn, vocab = spec.hidden_size, spec.intermediate_size, spec.vocab_size
    kernel = (spec.temporal_kernel, spec.spatial_kernel, spec.spatial_kernel)
    shapes: dict[str, tuple[int, ...]] = {
        f"{_VISION}temporal_conv.weight": (width, 3, 1, spec.patch_size, spec.patch_size),
        f"{_VISION}temporal_conv.bias": (width,),
        f"{_VISION}norm.weight": (width,),
        f"{_VISION}norm.bias": (width,),
        f"{_VISION}out_proj.weight": (width, width, 1, 1, 1),
        f"{_VISION}out_proj.bias": (width,),
        "gazing_model.connector.pos_embed": (spec.vision_tokens, width),
        f"{_DECODER}model.embed_tokens.weight": (vocab, width),
        f"{_DECODER}model.norm.weight": (width,),
        f"{_DECODER}lm_head.weight": (vocab * spec.group_size, width),
        f"{_DECODER}task_loss_prediction_head.weight": (spec.group_size, width),
    }
    for index in range(spec.encoder_depth):
        shapes[f"{_VISION}blocks.{index}.conv3d.weight"] = (width, width, *kernel)
        shapes[f"{_VISION}blocks.{index}.conv3d.bias"] = (width,)
    for index in range(spec.num_layers):
        layer = f"{_DECODER}model.layers.{index}."
        for name in "qkvo":
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (width, width)
        shapes[f"{layer}mlp.gate_proj.weight"] = shapes[f"{layer}mlp.up_proj.weight"] = (ffn, width)
        shapes[f"{layer}mlp.down_proj.weight"] = (width, ffn)
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (
            width,
        )
    return shapes


def weight_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every initialiser of the graphs."""
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in checkpoint_shapes(spec).items()}
    return {name: weight.shape for name, weight in bind_weights(spec, zeros).items()}


def bind_weights(spec: ModelSpec, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Arranges a checkpoint's tensors as the graphs' initialisers; types are kept."""

    def vision(name: str) -> Array:
        return tensors[_VISION + name]

    def matrix(name: str) -> Array:
        return tensors[_DECODER + name].T

    width = spec.hidden_size
    weights: dict[str, Array] = {
        "encoder.patch.weight": vision("temporal_conv.weight")[:, :, 0],
        "encoder.patch.bias": vision("temporal_conv.bias"),
        "encoder.norm.weight": vision("norm.weight"),
        "encoder.norm.bias": vision("norm.bias"),
        "encoder.proj.weight": vision("out_proj.weight").reshape(width, width).T,
        "encoder.proj.bias": vision("out_proj.bias"),
        "encoder.position": tensors["gazing_model.connector.pos_embed"],
        "decoder.embed": tensors[_DECODER + "model.embed_tokens.weight"],
        "decoder.norm": tensors[_DECODER + "model.norm.weight"],
        "decoder.lm_head": matrix("lm_head.weight"),
        "decoder.task_loss_head": matrix("task_loss_prediction_head.weight"),
    }
    for index in range(spec.encoder_depth):
        kernel = vision(f"blocks.{index}.conv3d.weight")
        # [out, in, time, y, x] → [out, time·in, y, x]: the taps' channels in time order.
        taps = np.moveaxis(kernel, 2, 1)
        weights[f"encoder.blocks.{index}.weight"] = taps.reshape(width, -1, *kernel.shape[3:])
        weights[f"encoder.blocks.{index}.bias"] = vision(f"blocks.{index}.conv3d.bias")
    for index in range(spec.num_layers):
        source, target = f"model.layers.{index}.", f"decoder.layers.{index}."
        weights[target + "input_norm"] = tensors[f"{_DECODER}{source}input_layernorm.weight"]
        weights[target + "post_norm"] = tensors[f"{_DECODER}{source}post_attention_layernorm.weight"]
        weights[target + "qkv"] = np.concatenate(
            [matrix(f"{source}self_attn.{name}_proj.weight") for name in "qkv"], axis=1
        )
        weights[target + "out"] = matrix(f"{source}self_attn.o_proj.weight")
        weights[target + "gate_up"] = np.concatenate(
            [matrix(f"{source}mlp.{name}_proj.weight") for name in ("gate", "up")], axis=1
        )
        weights[target + "down"] = matrix(f"{source}mlp.down_proj.weight")
    return {name: np.ascontiguousarray(weight) for name, weight in weights.items()}
