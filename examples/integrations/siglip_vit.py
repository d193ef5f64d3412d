"""A SigLIP-style ViT that embeds only the gazed patches of every scale.

    python examples/integrations/siglip_vit.py

Each frame is resized to every scale (32, 64, 112 and 224 px at patch 16 are grids of 2, 4, 7 and 14). Gazed
patches are gathered with the positions of their scale, and a block-causal mask lets a frame see itself and
earlier frames only, as upstream's sparse ViT does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from autogaze_client import FrameFixationTrace, SparseReadoutGrid, fixation_points_to_readout_tokens
from demo_gaze import Saving, demo_clips
from torch import nn
from torch.nn import functional

GRIDS = (2, 4, 7, 14)
PATCH = 16


@dataclass(frozen=True)
class GazedPatches:
    """Which patches of a clip to embed, in order of frames, then scales; int64 ``[n]`` each."""

    frame: np.ndarray
    scale: np.ndarray
    patch: np.ndarray

    def block_causal_mask(self) -> np.ndarray:
        """Bool ``[n, n]``: True where a query (row) may see a key: of its own frame or an earlier one."""
        return self.frame[:, None] >= self.frame[None, :]


def gazed_patches(trace: FrameFixationTrace) -> GazedPatches:
    """The patches of a clip's fixations: the cells of each scale, on the patch grid of that scale."""
    parts = [np.zeros((3, 0), np.int64)]
    for frame, fixations in enumerate(trace.frames):
        for scale, grid in enumerate(GRIDS):
            cells = fixations.rows[fixations.rows[:, 5] == grid]
            patches = fixation_points_to_readout_tokens(cells, SparseReadoutGrid(grid, grid))
            parts.append(np.stack([np.full_like(patches, frame), np.full_like(patches, scale), patches]))
    return GazedPatches(*np.concatenate(parts, axis=1))


class MultiScaleViT(nn.Module):
    """A ViT with one patch embedding for all scales and positions interpolated from the finest grid."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * PATCH * PATCH, width)
        self.position = nn.Parameter(torch.randn(1, width, GRIDS[-1], GRIDS[-1]))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, video: torch.Tensor, gazed: GazedPatches) -> torch.Tensor:
        """Encodes the gazed patches of one clip.

        Args:
            video: float ``[T, 3, H, W]``.
            gazed: which patches.

        Returns:
            float ``[n, width]``, in the order of ``gazed``.
        """
        frame, scale, patch = (
            torch.from_numpy(part).to(video.device) for part in (gazed.frame, gazed.scale, gazed.patch)
        )
        tokens = self.position.new_zeros(len(frame), self.position.shape[1])
        for index, grid in enumerate(GRIDS):
            mine = (scale == index).nonzero()[:, 0]
            resized = functional.interpolate(video, size=(grid * PATCH, grid * PATCH), mode="bilinear")
            patches = functional.unfold(resized, PATCH, stride=PATCH)[frame[mine], :, patch[mine]]
            positions = functional.interpolate(self.position, size=(grid, grid), mode="bilinear").flatten(2)[
                0
            ]
            tokens[mine] = self.embed(patches) + positions[:, patch[mine]].T
        hidden = ~torch.from_numpy(gazed.block_causal_mask()).to(video.device)
        return self.encoder(tokens[None], mask=hidden)[0]


def savings() -> dict[str, Saving]:
    """The demo's tokens against all patches of all scales, and against the finest scale alone."""
    kept = sum(len(gazed_patches(clip).patch) for clip in demo_clips())
    frames = sum(len(clip) for clip in demo_clips())
    return {
        "all four scales": Saving(kept, frames * sum(grid * grid for grid in GRIDS)),
        "14x14 patches only": Saving(kept, frames * GRIDS[-1] ** 2),
    }


def main() -> None:
    """Runs a tiny random model on random pixels, and says what gaze saves on the demo."""
    torch.manual_seed(0)
    clip = demo_clips()[0]
    features = MultiScaleViT()(torch.rand(len(clip), 3, 224, 224), gazed_patches(clip))
    print(f"features {tuple(features.shape)}")
    for baseline, saving in savings().items():
        print(f"against {baseline}: {saving}")


if __name__ == "__main__":
    main()
