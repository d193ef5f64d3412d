"""A bundle's weights on the device, arranged for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from autogaze_client._errors import InvalidInputError
from numpy.typing import NDArray
from torch import Tensor

from autogaze_backend.rotary import ROUNDED_POSITIONS, rotary_cos_sin, rotary_frequencies
from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.halves import split_halves

# Columns of one program of the heads.
HEAD_COLUMNS = 32


@dataclass(frozen=True)
class LayerWeights:
    """A decoder layer.

    The norms' weights are folded into the matrices that follow them, but not for the kernels in float16: a checkpoint
    in float16 or bfloat16 has matrices that are exact there, and their product with a norm is not.

    Attributes:
        input_norm: float32 ``[C]``, of the norm before ``qkv``, where it is not folded; else ones.
        post_norm: likewise, before ``gate_up``.
    """

    input_norm: Tensor
    post_norm: Tensor
    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class DecoderWeights:
    """The decoder. Matrices are ``[in, out]``, or for the kernels float16 ``[parts, in, out]`` (``halves.py``).

    Attributes:
        embed: ``[V, C]``.
        layers: one entry a layer.
        heads: ``[C, stride]`` in float32, or two parts: K·V logits, K losses, then zeros.
        frequency: float64 ``[head_dim / 2]``.
        angles: float32 ``[2, ROUNDED_POSITIONS, head_dim / 2]``, cosines and sines of the first positions.
    """

    embed: Tensor
    layers: tuple[LayerWeights, ...]
    heads: Tensor
    frequency: Tensor
    angles: Tensor


@dataclass(frozen=True)
class EncoderWeights:
    """The encoder; the patch convolution as a matrix ``[3·p², C]``.

    Attributes:
        blocks: kernel ``[C, taps·C, k, k]`` and bias of each block.
        taps: each block's kernel for ``convolution_kernel``, ``[parts, taps·k·k·C, C]``; the next two, too, are for
            kernels, and all three None or empty without.
        patch_parts: ``[parts, 3·p², C]``, with zeros up to a power of two of columns, so that a program has whole rows.
        proj_parts: ``[parts, C, C]``.
    """

    patch: Tensor
    patch_bias: Tensor
    norm: Tensor
    norm_bias: Tensor
    blocks: tuple[tuple[Tensor, Tensor], ...]
    taps: tuple[Tensor, ...]
    patch_parts: Tensor | None
    proj_parts: Tensor | None
    proj: Tensor
    proj_bias: Tensor
    position: Tensor


def precision_dtype(precision: str) -> torch.dtype:
    """float32 for "exact", float16 for "fast".

    Raises:
        InvalidInputError: another name.
    """
    if precision not in ("exact", "fast"):
        raise InvalidInputError(
            f"precision is {precision!r}; the torch engine runs bundles built as 'exact' or 'fast'"
        )
    return torch.float32 if precision == "exact" else torch.float16


def decoder_weights(
    spec: ModelSpec,
    weights: Mapping[str, NDArray[Any]],
    device: torch.device,
    dtype: torch.dtype,
    *,
    halves: bool,
) -> DecoderWeights:
    """Arranges the decoder; a norm that is folded into the next matrix is so in float64, which costs one rounding.

    Args:
        spec: the architecture.
        weights: a bundle's, by name.
        device: where they go.
        dtype: the engine's, float32 or float16.
        halves: whether the matrices are for the kernels.
    """

    def folded(matrix: str, norm: str) -> NDArray[np.float64]:
        product: NDArray[np.float64] = weights[norm].astype(np.float64)[:, None] * weights[matrix].astype(
            np.float64
        )
        return product

    def place(array: NDArray[Any], kind: torch.dtype = dtype) -> Tensor:
        return torch.tensor(array).to(kind).to(device)

    def matrix(array: NDArray[Any], kind: torch.dtype = dtype) -> Tensor:
        if not halves:
            return place(array, kind)
        parts = split_halves(array.astype(np.float64))
        return place(parts if kind == torch.float32 else parts[:1], torch.float16)

    fold = not halves or dtype == torch.float32

    def normed(name: str, norm: str) -> Tensor:
        return matrix(folded(name, norm) if fold else weights[name])

    def norm(name: str) -> Tensor:
        return place(np.ones_like(weights[name]) if fold else weights[name], torch.float32)

    layers = []
    for index in range(spec.num_layers):
        name = f"decoder.layers.{index}."
        layers.append(
            LayerWeights(
                input_norm=norm(name + "input_norm"),
                post_norm=norm(name + "post_norm"),
                qkv=normed(name + "qkv", name + "input_norm"),
                out=matrix(weights[name + "out"]),
                gate_up=normed(name + "gate_up", name + "post_norm"),
                down=matrix(weights[name + "down"]),
            )
        )
    heads = np.concatenate(
        [folded("decoder.lm_head", "decoder.norm"), folded("decoder.task_loss_head", "decoder.norm")], axis=1
    )
    # A stride of whole tiles keeps the rows' loads aligned and without a mask.
    heads = np.pad(heads, ((0, 0), (0, -heads.shape[1] % HEAD_COLUMNS)))
    return DecoderWeights(
        embed=place(weights["decoder.embed"].astype(np.float64)),
        layers=tuple(layers),
        heads=matrix(heads, torch.float32),
        frequency=place(rotary_frequencies(spec), torch.float64),
        angles=place(np.stack(rotary_cos_sin(spec, np.arange(ROUNDED_POSITIONS))), torch.float32),
    )


def encoder_weights(
    spec: ModelSpec,
    weights: Mapping[str, NDArray[Any]],
    device: torch.device,
    dtype: torch.dtype,
    *,
    halves: bool,
) -> EncoderWeights:
    """The encoder's weights; the arguments are those of ``decoder_weights``."""

    def halved(matrix: NDArray[np.float64]) -> Tensor:
        # A transposed matrix would keep its strides through everything, and kernels go by the shape.
        parts = split_halves(np.ascontiguousarray(matrix))
        return torch.tensor(parts if dtype == torch.float32 else parts[:1], device=device)

    def taps(index: int) -> Tensor:
        kernel = weights[f"encoder.blocks.{index}.weight"].astype(np.float64)
        width, space = spec.hidden_size, spec.spatial_kernel
        # [out, taps·in, y, x] → [taps, y, x, in, out].
        kernel = kernel.reshape(width, spec.temporal_kernel, width, space, space).transpose(1, 3, 4, 2, 0)
        return halved(kernel.reshape(-1, width))

    def place(name: str, kind: torch.dtype = dtype) -> Tensor:
        array = np.ascontiguousarray(weights[f"encoder.{name}"].astype(np.float32))
        return torch.from_numpy(array).to(kind).to(device)

    def patch_parts() -> Tensor:
        matrix = weights["encoder.patch.weight"].astype(np.float64).reshape(spec.hidden_size, -1).T
        columns = 1 << (spec.hidden_size - 1).bit_length()
        return halved(np.pad(matrix, ((0, 0), (0, columns - spec.hidden_size))))

    patch = place("patch.weight")
    return EncoderWeights(
        patch=patch.reshape(spec.hidden_size, -1).t().contiguous(),
        patch_bias=place("patch.bias", torch.float32),
        norm=place("norm.weight", torch.float32),
        norm_bias=place("norm.bias", torch.float32),
        blocks=tuple(
            (
                place(f"blocks.{index}.weight").contiguous(memory_format=torch.channels_last),
                place(f"blocks.{index}.bias"),
            )
            for index in range(spec.encoder_depth)
        ),
        taps=tuple(taps(index) for index in range(spec.encoder_depth)) if halves else (),
        patch_parts=patch_parts() if halves else None,
        proj_parts=halved(weights["encoder.proj.weight"].astype(np.float64)) if halves else None,
        proj=place("proj.weight"),
        proj_bias=place("proj.bias", torch.float32),
        position=place("position", torch.float32),
    )
