"""Target scales: tokens for a downstream encoder of another input size and patch (pipeline §3).

The clip is cut into tiles of the finest model grid × the target patch; every tile is a row of its own, and
the chosen cells are stitched back into the target's grids. Every tile comes out as the published model
would give it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from autogaze_client._errors import InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.layouts import AutoGazeScaleTokenLayout, layouts_from_grids
from numpy.typing import NDArray

from autogaze_backend.spec import ModelSpec


@dataclass(frozen=True)
class TargetScales:
    """The scales of a downstream encoder.

    Attributes:
        scales: side of each scale in pixels, ascending, as many as the model has.
        patch_size: side of the encoder's patch in pixels.
        tiles: tiles a side that the last scale is cut into.
        tile_size: side of a tile in pixels, before it is resized to the model's input.
    """

    scales: tuple[int, ...]
    patch_size: int
    tiles: int
    tile_size: int

    @property
    def grids(self) -> tuple[int, ...]:
        """Cells per side of each scale."""
        return tuple(scale // self.patch_size for scale in self.scales)

    @property
    def layouts(self) -> tuple[AutoGazeScaleTokenLayout, ...]:
        """The scales of the adapted ids, in id order."""
        return layouts_from_grids(self.grids)

    @property
    def size(self) -> int:
        """Side of the input clip in pixels."""
        return self.scales[-1]

    def cut(self, video: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cuts square clips into tiles; what lies past the right and lower edge is 0, in normalised space.

        Args:
            video: float32 ``[B, T, 3, size, size]``.

        Returns:
            float32 ``[B·tiles², T, 3, tile_size, tile_size]``, tiles row-major within a clip.
        """
        rows, frames = video.shape[:2]
        canvas = np.zeros(
            (rows, frames, 3, self.tiles * self.tile_size, self.tiles * self.tile_size), np.float32
        )
        canvas[..., : self.size, : self.size] = video
        cut = canvas.reshape(rows, frames, 3, self.tiles, self.tile_size, self.tiles, self.tile_size)
        return cut.transpose(0, 3, 5, 1, 2, 4, 6).reshape(-1, frames, 3, self.tile_size, self.tile_size)

    def stitch(self, tiles: AutoGazeGenerateOutput) -> AutoGazeGenerateOutput:
        """Joins the tiles' tokens into the tokens of their clips.

        Cells beyond a target's grid are dropped, since they lie in padding. Ids ascend within a frame, so the
        order of choice is lost; confidences and predicted losses follow their cells. A padded slot holds
        N'·t − 1, as upstream has it, and a predicted loss of NaN.

        Args:
            tiles: rows in the order of ``cut``.

        Returns:
            One row a clip; a frame has as many slots as its fullest row needs.
        """
        per_clip = self.tiles**2
        clips, frames = len(tiles.gazing_pos) // per_clip, len(tiles.num_gazing_each_frame)
        offsets = np.cumsum([0, *(grid**2 for grid in self.grids)])
        count = int(offsets[-1])
        slot_of_cell = np.full((clips, frames, count), -1, np.int64)
        row, slot = np.nonzero(~tiles.if_padded_gazing)
        frame = tiles.frame_of_slot[slot]
        local = tiles.gazing_pos[row, slot] - frame * tiles.num_vision_tokens_each_frame
        starts = np.cumsum([0, *(layout.token_count for layout in tiles.scale_layouts)])
        scale = np.searchsorted(starts, local, side="right") - 1
        grid = np.array([layout.grid for layout in tiles.scale_layouts])[scale]
        cell, tile = local - starts[scale], row % per_clip
        down = tile // self.tiles * grid + cell // grid
        across = tile % self.tiles * grid + cell % grid
        target = np.array(self.grids)[scale]
        inside = (down < target) & (across < target)
        cells = offsets[scale] + down * target + across
        # The slot that filled a cell, counted over all tiles; −1 where the cell was not chosen.
        flat = row * tiles.gazing_pos.shape[1] + slot
        slot_of_cell[row[inside] // per_clip, frame[inside], cells[inside]] = flat[inside]
        return self._collect(tiles, slot_of_cell)

    def _collect(
        self, tiles: AutoGazeGenerateOutput, slot_of_cell: NDArray[np.int64]
    ) -> AutoGazeGenerateOutput:
        clips, frames, count = slot_of_cell.shape
        chosen = slot_of_cell >= 0
        lengths = chosen.sum(axis=2).max(axis=0)
        starts = np.cumsum(lengths) - lengths
        shape = (clips, int(lengths.sum()))
        positions = np.full(shape, -1, np.int64)
        confidences = np.zeros(shape, np.float32)
        losses = np.full(shape, np.nan, np.float32)
        clip, frame, cell = np.nonzero(chosen)
        rank = (np.cumsum(chosen, axis=2) - 1)[clip, frame, cell]
        slots = starts[frame] + rank
        source = slot_of_cell[clip, frame, cell]
        positions[clip, slots] = cell
        confidences[clip, slots] = tiles.confidences.ravel()[source]
        losses[clip, slots] = tiles.task_loss_predictions.ravel()[source]
        return AutoGazeGenerateOutput(
            gazing_pos=positions + np.repeat(np.arange(frames) * count, lengths),
            if_padded_gazing=positions < 0,
            num_gazing_each_frame=lengths.astype(np.int64),
            confidences=confidences,
            task_loss_predictions=losses,
            scale_layouts=self.layouts,
        )


def resolve_target_scales(
    spec: ModelSpec, target_scales: Sequence[int] | None, target_patch_size: int | None
) -> TargetScales | None:
    """Checks the two knobs.

    Returns:
        The adaptation, or None where none is asked for or the target is the model's own geometry.

    Raises:
        InvalidInputError: only one of the two is given, the number of scales differs from the model's, a
            scale is not ascending or smaller than a patch, or the tiles would not hold a coarser grid.
    """
    if target_scales is None and target_patch_size is None:
        return None
    if target_scales is None or target_patch_size is None:
        raise InvalidInputError(
            f"target_scales is {target_scales} and target_patch_size is {target_patch_size}; pass both or neither"
        )
    scales, patch = tuple(int(scale) for scale in target_scales), int(target_patch_size)
    if len(scales) != len(spec.scales):
        raise InvalidInputError(
            f"target_scales is {list(scales)}; the model has {len(spec.scales)} scales, so pass as many"
        )
    if patch < 1 or scales[0] < patch or any(a >= b for a, b in pairwise(scales)):
        raise InvalidInputError(
            f"target_scales is {list(scales)} with target_patch_size {patch}; the scales must ascend from at least "
            "one patch"
        )
    grids = tuple(scale // patch for scale in scales)
    model_grids = tuple(layout.grid for layout in spec.scale_layouts)
    if scales == spec.scales and grids == model_grids:
        return None
    finest = model_grids[-1]
    tiles = -(-grids[-1] // finest)
    if tiles * finest * patch < scales[-1]:
        raise InvalidInputError(
            f"target_scales is {list(scales)} with target_patch_size {patch}; the last scale must be a multiple of the "
            f"patch (its {grids[-1]} patches cover {grids[-1] * patch} pixels)"
        )
    if any(tiles * own < grid for own, grid in zip(model_grids, grids, strict=True)):
        raise InvalidInputError(
            f"target_scales is {list(scales)} with target_patch_size {patch}; its grids {list(grids)} do not fit "
            f"{tiles}×{tiles} tiles of the model's grids {list(model_grids)}; make the coarser scales smaller"
        )
    return TargetScales(scales, patch, tiles, finest * patch)
