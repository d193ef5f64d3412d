"""The encoder's steps as launches of Triton kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.encoder import NORM_EPSILON, TorchSteps
from autogaze_backend.torch_engine.encoder_kernels import convolution_kernel, patch_kernel, project_kernel
from autogaze_backend.torch_engine.weights import EncoderWeights

# Up to so many frames a call has small programs, so that all multiprocessors have work.
_FEW_FRAMES = 32


class TritonSteps(TorchSteps):
    """``EncoderSteps`` with kernels; in float16 but the convolution, where the library's is faster than ours."""

    def __init__(self, spec: ModelSpec, weights: EncoderWeights) -> None:
        super().__init__(spec, weights)
        if weights.patch_parts is None:
            raise TypeError("the kernels need weights that were made with halves=True")
        self._patch: Tensor = weights.patch_parts
        self._exact = weights.patch.dtype == torch.float32
        self._parts = 2 if self._exact else 1

    def patches(self, frames: Tensor) -> Tensor:
        """See ``EncoderSteps.patches``."""
        spec, weights = self._spec, self._weights
        batch, time = frames.shape[:2]
        x = torch.empty(
            (batch, time, spec.vision_tokens, spec.hidden_size),
            dtype=weights.patch.dtype,
            device=frames.device,
        )
        few = batch * time <= _FEW_FRAMES
        tokens = 32 if few else 64
        patch_kernel[(triton.cdiv(batch * time * spec.vision_tokens, tokens),)](
            frames.float().contiguous(),
            self._patch,
            weights.patch_bias,
            weights.norm,
            weights.norm_bias,
            x,
            batch * time,
            GRID=spec.vision_grid,
            PATCH=spec.patch_size,
            WIDTH=spec.hidden_size,
            WIDTH_PAD=self._patch.shape[2],
            EPSILON=NORM_EPSILON,
            TOKENS=tokens,
            SHARED=32 if self._exact else 64,
            PARTS=self._parts,
            num_warps=4 if few else 8,
            num_stages=3,
        )
        return x

    def convolution(self, index: int, x: Tensor, states: Tensor, rows: Tensor, fresh: Tensor) -> Tensor:
        """See ``EncoderSteps.convolution``."""
        if not self._exact:
            return super().convolution(index, x, states, rows, fresh)
        spec, weights = self._spec, self._weights
        batch, frames = x.shape[:2]
        y = torch.empty_like(x)
        grid, tiling = self._tiling(batch * frames)
        convolution_kernel[grid](
            x,
            states[:, index],
            rows,
            fresh.to(torch.int32),
            weights.taps[index],
            weights.blocks[index][1],
            y,
            batch,
            frames,
            states.stride(0),
            GRID=spec.vision_grid,
            WIDTH=spec.hidden_size,
            TIME=spec.temporal_kernel,
            SPACE=spec.spatial_kernel,
            **tiling,
        )
        return y

    def project(self, x: Tensor, vision: Tensor, rows: Tensor) -> None:
        """See ``EncoderSteps.project``."""
        spec, weights = self._spec, self._weights
        batch, frames = x.shape[:2]
        grid, tiling = self._tiling(batch * frames)
        project_kernel[grid](
            x,
            weights.proj_parts,
            weights.proj_bias,
            weights.position,
            rows,
            vision,
            batch,
            frames,
            vision.shape[1],
            GRID=spec.vision_grid,
            WIDTH=spec.hidden_size,
            **tiling,
        )

    def _tiling(self, frames: int) -> tuple[tuple[int, int], dict[str, int]]:
        """The grid over tokens and columns of so many frames, and the options of its programs."""
        tokens, columns = (32 if frames <= _FEW_FRAMES else 64), 64
        grid = (
            triton.cdiv(frames * self._spec.vision_tokens, tokens),
            self._spec.hidden_size // columns,
        )
        return grid, {
            "TOKENS": tokens,
            "SHARED": 64,
            "COLUMNS": columns,
            "PARTS": self._parts,
            "num_warps": 4,
            "num_stages": 3,
        }
