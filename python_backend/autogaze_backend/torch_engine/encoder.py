"""The encoder: frames to vision tokens. Its three steps in torch operators, in the type of the weights."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.weights import EncoderWeights


class EncoderSteps(Protocol):
    """What the encoder computes; ``TorchSteps`` with torch operators, ``TritonSteps`` with kernels."""

    def patches(self, frames: Tensor) -> Tensor:
        """The normed patch embedding ``[B, T, grid², C]`` of frames ``[B, T, 3, side, side]``."""

    def convolution(self, index: int, x: Tensor, states: Tensor, rows: Tensor, fresh: Tensor) -> Tensor:
        """A block: causal convolution in time and space, and a rectifier.

        Args:
            index: of the block.
            x: frames' tokens ``[B, T, grid², C]``.
            states: ``[rows, depth, kernel_t - 1, grid², C]``, each block's inputs of the frames before.
            rows: int64 ``[B]``, each row's entry in ``states``.
            fresh: bool ``[B]``, rows whose entry counts as zeros.
        """

    def project(self, x: Tensor, vision: Tensor, rows: Tensor) -> None:
        """Writes the projection of ``x``, with position embedding, to the first T frames of ``vision[rows]``."""


def encode(
    spec: ModelSpec,
    steps: EncoderSteps,
    frames: Tensor,
    states: Tensor,
    rows: Tensor,
    fresh: Tensor,
    vision: Tensor,
) -> Tensor:
    """Encodes consecutive frames (pipeline §4).

    Args:
        spec: the architecture.
        steps: do the work.
        frames: ``[B, T, 3, side, side]``, normalised, in any float type.
        states: ``[rows, depth, kernel_t - 1, grid², C]``, each block's inputs of the frames before.
        rows: int64 ``[B]``, each row's entry in ``states`` and ``vision``.
        fresh: bool ``[B]``, rows whose entry counts as zeros.
        vision: ``[rows, at least T, grid², C]``, contiguous; where the tokens are written.

    Returns:
        The rows' states after the last frame.
    """
    time, reach = frames.shape[1], spec.temporal_kernel - 1
    x = steps.patches(frames)
    after = []
    for index in range(spec.encoder_depth):
        if time >= reach:
            after.append(x[:, time - reach :])
        else:
            past = states[:, index].index_select(0, rows)
            past = torch.where(fresh[:, None, None, None], torch.zeros_like(past), past)
            after.append(torch.cat((past[:, time:], x), dim=1))
        x = steps.convolution(index, x, states, rows, fresh)
    steps.project(x, vision, rows)
    return torch.stack(after, dim=1)


class TorchSteps:
    """``EncoderSteps`` with torch operators; the oracle of the kernels."""

    def __init__(self, spec: ModelSpec, weights: EncoderWeights) -> None:
        self._spec, self._weights = spec, weights

    def patches(self, frames: Tensor) -> Tensor:
        """See ``EncoderSteps.patches``."""
        spec, weights = self._spec, self._weights
        batch, time = frames.shape[:2]
        grid, width, patch = spec.vision_grid, spec.hidden_size, spec.patch_size
        kind = weights.patch.dtype
        # A patch convolution is a product over the pixels of each patch.
        pixels = frames.to(kind).reshape(batch * time, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        x = pixels.reshape(-1, 3 * patch * patch) @ weights.patch
        x = torch.nn.functional.layer_norm(
            x.float() + weights.patch_bias, (width,), weights.norm, weights.norm_bias, NORM_EPSILON
        )
        return x.to(kind).view(batch, time, grid * grid, width)

    def convolution(self, index: int, x: Tensor, states: Tensor, rows: Tensor, fresh: Tensor) -> Tensor:
        """See ``EncoderSteps.convolution``."""
        spec = self._spec
        batch, time, _, width = x.shape
        grid, reach = spec.vision_grid, spec.temporal_kernel - 1
        kernel, bias = self._weights.blocks[index]
        past = states[:, index].index_select(0, rows)
        past = torch.where(fresh[:, None, None, None], torch.zeros_like(past), past)
        past = torch.cat((past, x), dim=1)
        # A causal temporal convolution is a plane convolution over the taps stacked as channels.
        taps = torch.cat([past[:, tap : tap + time] for tap in range(reach + 1)], dim=3)
        planes = taps.reshape(batch * time, grid, grid, (reach + 1) * width).permute(0, 3, 1, 2)
        x = torch.nn.functional.conv2d(planes, kernel, bias, padding=spec.spatial_kernel // 2)
        return x.relu().permute(0, 2, 3, 1).reshape(batch, time, grid * grid, width)

    def project(self, x: Tensor, vision: Tensor, rows: Tensor) -> None:
        """See ``EncoderSteps.project``."""
        weights = self._weights
        tokens = (x @ weights.proj).float() + weights.proj_bias + weights.position
        vision[:, : x.shape[1]].index_copy_(0, rows, tokens.to(vision.dtype))


NORM_EPSILON = 1e-5
"""Of the norm after the patch embedding (pipeline §4)."""
