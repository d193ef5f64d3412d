"""A Qwen-VL-style patch merger that keeps only the gazed merged patches.

    python examples/integrations/qwen_vl.py

Two frames share a temporal patch, spatial patches are 14 px, and a merger joins 2 x 2 of them into one token
of the language model: 28 x 28 px. A 1280x720 video is resized to 1288x728, which divides. The four patches of a
merged one lie side by side in the model's order, so whole merged patches are kept or dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from autogaze_client import (
    FrameFixationTrace,
    SparseVideoPatchGeometry,
    SparseVideoReadoutGrid,
    trace_to_video_readout_tokens,
    video_readout_tokens_to_coord_tensor,
)
from autogaze_client import SparseVideoReadoutOptions as VideoOptions
from demo_gaze import Saving, demo_clips
from torch import nn

PATCH, MERGE, TEMPORAL_PATCH = 14, 2, 2


def merged_grid(frames: int, height: int, width: int) -> SparseVideoReadoutGrid:
    """The merged patches of a clip whose sides were resized to multiples of 28."""
    return SparseVideoPatchGeometry.square_patch(
        frames, height, width, TEMPORAL_PATCH, PATCH * MERGE
    ).readout_grid()


@dataclass(frozen=True)
class KeptPatches:
    """What stays of a clip.

    Attributes:
        merged: int64 ``[n]``, ascending, the tokens of the language model.
        patches: int64 ``[4n]``, the vision patches that they are made of, in the model's order.
        positions: int64 ``[n, 3]``, time, row and column of each token, for the model's rotary positions.
    """

    merged: torch.Tensor
    patches: torch.Tensor
    positions: torch.Tensor


def kept_patches(trace: FrameFixationTrace, grid: SparseVideoReadoutGrid) -> KeptPatches:
    """The merged patches that the clip's fixations touch, in reading order as the language model expects."""
    tokens = trace_to_video_readout_tokens(
        trace, None, grid, video_options=VideoOptions(tubelet_size=TEMPORAL_PATCH)
    )
    merged = torch.from_numpy(tokens).sort().values
    places = video_readout_tokens_to_coord_tensor(merged, grid, 0, like=merged)
    patches = (merged[:, None] * MERGE**2 + torch.arange(MERGE**2)).flatten()
    return KeptPatches(merged, patches, places[:, 1:])


class PatchMerger(nn.Module):
    """Normalises patches and joins each four of them, as Qwen-VL's merger does."""

    def __init__(self, width: int = 16, out: int = 24) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        joined = width * MERGE**2
        self.mlp = nn.Sequential(nn.Linear(joined, joined), nn.GELU(), nn.Linear(joined, out))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Float ``[4n, width]`` to ``[n, out]``."""
        return self.mlp(self.norm(patches).unflatten(0, (-1, MERGE**2)).flatten(1))


def savings() -> dict[str, Saving]:
    """The demo's tokens of the language model against all merged patches."""
    grid = merged_grid(16, 728, 1288)
    clips = demo_clips()
    kept = sum(len(kept_patches(clip, grid).merged) for clip in clips)
    return {"all merged patches": Saving(kept, len(clips) * grid.token_count)}


def main() -> None:
    """Runs a tiny random merger on random patches, and says what gaze saves on the demo."""
    torch.manual_seed(0)
    grid = merged_grid(16, 728, 1288)
    kept = kept_patches(demo_clips()[0], grid)
    features = torch.rand(grid.token_count * MERGE**2, 16)
    print(f"tokens {tuple(PatchMerger()(features[kept.patches]).shape)}")
    for baseline, saving in savings().items():
        print(f"against {baseline}: {saving}")


if __name__ == "__main__":
    main()
