"""The encoder in torch operators: frames to vision tokens, in the type of its weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.weights import EncoderWeights

# From (block index, frames' tokens [B, T, grid², C], the states [rows, depth, kernel_t - 1, grid², C], the row of
# the states that belongs to each row of the batch, which rows start a stream) to the block's output.
Convolution = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]


def encode(
    spec: ModelSpec,
    weights: EncoderWeights,
    frames: Tensor,
    states: Tensor,
    rows: Tensor,
    fresh: Tensor,
    convolution: Convolution | None = None,
) -> tuple[Tensor, Tensor]:
    """Encodes consecutive frames (pipeline §4).

    Args:
        spec: the architecture.
        weights: on the frames' device.
        frames: ``[B, T, 3, side, side]``, normalised, in any float type.
        states: ``[rows, depth, kernel_t - 1, grid², C]``, each block's inputs of the frames before.
        rows: int64 ``[B]``, each row's entry in ``states``.
        fresh: bool ``[B]``, rows whose entry counts as zeros.
        convolution: computes a block; None does it with torch.

    Returns:
        Tokens ``[B, T, grid², C]`` with position embedding, and the rows' states after the last frame.
    """
    batch, time = frames.shape[:2]
    grid, width, patch = spec.vision_grid, spec.hidden_size, spec.patch_size
    reach = spec.temporal_kernel - 1
    kind = weights.patch.dtype
    # A patch convolution is a product over the pixels of each patch.
    pixels = frames.to(kind).reshape(batch * time, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    x = pixels.reshape(-1, 3 * patch * patch) @ weights.patch
    x = torch.nn.functional.layer_norm(
        x.float() + weights.patch_bias, (width,), weights.norm, weights.norm_bias, 1e-5
    )
    x = x.to(kind).view(batch, time, grid * grid, width)
    after = []
    for index in range(spec.encoder_depth):
        if time >= reach:
            after.append(x[:, time - reach :])
        else:
            past = states[:, index].index_select(0, rows)
            past = torch.where(fresh[:, None, None, None], torch.zeros_like(past), past)
            after.append(torch.cat((past[:, time:], x), dim=1))
        if convolution is None:
            x = _convolution(spec, weights, index, x, states, rows, fresh)
        else:
            x = convolution(index, x, states, rows, fresh)
    tokens = x.reshape(batch, time, grid * grid, width) @ weights.proj
    tokens = tokens.float() + weights.proj_bias + weights.position
    return tokens.to(kind), torch.stack(after, dim=1)


def _convolution(
    spec: ModelSpec,
    weights: EncoderWeights,
    index: int,
    x: Tensor,
    states: Tensor,
    rows: Tensor,
    fresh: Tensor,
) -> Tensor:
    batch, time, _, width = x.shape
    grid, reach = spec.vision_grid, spec.temporal_kernel - 1
    kernel, bias = weights.blocks[index]
    past = states[:, index].index_select(0, rows)
    past = torch.where(fresh[:, None, None, None], torch.zeros_like(past), past)
    past = torch.cat((past, x), dim=1)
    # A causal temporal convolution is a plane convolution over the taps stacked as channels.
    taps = torch.cat([past[:, tap : tap + time] for tap in range(reach + 1)], dim=3)
    planes = taps.reshape(batch * time, grid, grid, (reach + 1) * width).permute(0, 3, 1, 2)
    x = torch.nn.functional.conv2d(planes, kernel, bias, padding=spec.spatial_kernel // 2)
    return x.relu().permute(0, 2, 3, 1).reshape(batch, time, grid * grid, width)
