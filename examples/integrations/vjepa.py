"""A V-JEPA-style encoder that takes only the gazed tubelets of a clip.

    python examples/integrations/vjepa.py

16 frames of 256 px, tubelets of 2 frames and patches of 16 px make 8 x 16 x 16 tokens. The library gives the
gazed ones as rows ``[batch, bin, row, col]``: to gather embeddings, and to place them in space and time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from autogaze_client import (
    FrameFixationTrace,
    SparseVideoPatchGeometry,
    SparseVideoReadoutProjection,
    trace_to_video_readout_coord_tensor,
)
from demo_gaze import Saving, demo_clips
from torch import nn

GEOMETRY = SparseVideoPatchGeometry.square_patch(frames=16, height=256, width=256, tubelet=2, patch=16)
# No image grid between: AutoGaze's 14x14 cells go straight onto the 16x16 tokens.
PROJECTION = SparseVideoReadoutProjection.from_patch_geometry(None, GEOMETRY)


def gazed_tubelets(traces: Sequence[FrameFixationTrace], tokens: int | None = None) -> torch.Tensor:
    """int64 ``[n, 4]``: batch, bin, row, col of each clip's gazed tubelets, clip after clip.

    Args:
        traces: one clip each.
        tokens: exactly so many of each clip, for a model that wants a rectangular batch; None = all gazed.
    """
    projection = PROJECTION
    if tokens is not None:
        projection = projection.with_video_options(projection.video_options.with_exact_tokens(tokens))
    like = torch.zeros(0)
    rows = [
        trace_to_video_readout_coord_tensor(trace, projection, batch, like=like)
        for batch, trace in enumerate(traces)
    ]
    return torch.cat(rows)


class TubeletEncoder(nn.Module):
    """A 3D patch embedding, fixed positions of time, row and column, and a transformer."""

    def __init__(self, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        size = (GEOMETRY.tubelet_size, GEOMETRY.patch_h, GEOMETRY.patch_w)
        self.embed = nn.Conv3d(3, width, size, stride=size)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def tokens(self, video: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        """Embeddings with positions, float ``[n, width]``, of ``coords`` in ``video`` ``[B, 3, T, H, W]``."""
        batch, temporal_bin, row, col = coords.to(video.device).unbind(1)
        embedded = self.embed(video)[batch, :, temporal_bin, row, col]
        return embedded + positions(coords[:, 1:].to(video.device), embedded.shape[1])

    def forward(self, video: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        """Encodes the same number of tubelets of each clip: float ``[B, n, width]``."""
        return self.encoder(self.tokens(video, coords).unflatten(0, (len(video), -1)))


def positions(places: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of bin, row and column, a third of ``width`` each."""
    frequency = 100.0 ** -torch.linspace(0, 1, width // 6, device=places.device)
    angles = places[:, :, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)


def savings() -> dict[str, Saving]:
    """The demo's tubelets against all of them."""
    clips = demo_clips()
    dense = len(clips) * GEOMETRY.readout_grid().token_count
    return {"all tubelets": Saving(len(gazed_tubelets(clips)), dense)}


def main() -> None:
    """Runs a tiny random model on random pixels, and says what gaze saves on the demo."""
    torch.manual_seed(0)
    clips = demo_clips()[:2]
    features = TubeletEncoder()(torch.rand(2, 3, 16, 256, 256), gazed_tubelets(clips, tokens=512))
    print(f"features {tuple(features.shape)}")
    for baseline, saving in savings().items():
        print(f"against {baseline}: {saving}")


if __name__ == "__main__":
    main()
