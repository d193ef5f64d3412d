"""Tiled modes: a frame of any size as rows of model-sized tiles, and their cells back in the source.

Geometry is exact (integer arithmetic): a cell known by its tile, grid, row and column covers, from its
tile's origin and clipped to the source, the pixels it touches, and is dropped only when it lies wholly in
padding. The reference floors the edge cells of full-resolution tiling away; that is not reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from autogaze_client._errors import InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.geometry import cell_pixel_rects
from autogaze_client.modes import AutoGazeInferenceMode
from numpy.typing import NDArray

from autogaze_backend.preprocessing import Frames, PreprocessingConfig, Video, normalise
from autogaze_backend.resampling import Taps, bilinear_taps


@dataclass(frozen=True)
class TileLayout:
    """How a frame is cut, tiles row-major.

    Attributes:
        mode: ``TILED_RESIZE_TO_GRID`` stretches the frame to whole tiles; ``TILED_FULL_RESOLUTION`` keeps
            its pixels and pads the right and lower edge with 0 in normalised space.
        height: of the source frame in pixels.
        width: likewise.
        size: side of a tile, the model's input.
    """

    mode: AutoGazeInferenceMode
    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        if not self.mode.is_tiled:
            raise InvalidInputError(f"mode {self.mode.value} has no tiles")

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.height // self.size)

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.width // self.size)

    @property
    def count(self) -> int:
        """Tiles of a frame."""
        return self.rows * self.columns

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the tiled canvas in pixels."""
        return self.rows * self.size, self.columns * self.size

    def tile(self, frames: Frames, index: int, config: PreprocessingConfig) -> Video:
        """One tile of some frames as model input.

        Args:
            frames: uint8 ``[t, H, W, 3 or 4]``.
            index: of the tile, row-major.
            config: the normalisation.

        Returns:
            float32 ``[t, 3, size, size]``.
        """
        row, column = divmod(index, self.columns)
        if self.mode is AutoGazeInferenceMode.TILED_RESIZE_TO_GRID:
            down, top, bottom = _axis_of_tile(self.height, self.canvas[0], row, self.size)
            across, left, right = _axis_of_tile(self.width, self.canvas[1], column, self.size)
            touched = normalise(frames[:, top:bottom, left:right, :3], config)
            return down.resize(across.resize(touched, axis=-1), axis=-2)
        top, left = row * self.size, column * self.size
        region = frames[:, top : top + self.size, left : left + self.size, :3]
        out = np.zeros((len(frames), 3, self.size, self.size), np.float32)
        normalise(region, config, out[:, :, : region.shape[1], : region.shape[2]])
        return out

    def fixations(self, tiles: AutoGazeGenerateOutput) -> NDArray[np.float32]:
        """The tiles' chosen cells in source coordinates.

        Args:
            tiles: rows in tile order.

        Returns:
            float32 ``[n, 7]``: frame, centre x, centre y, width, height (fractions of the source frame),
            confidence, and cells per side of the token's scale within its tile. By frame, then by
            confidence, highest first, ties in tile and generation order (pipeline §3).
        """
        cells, kept = self.cells(tiles)
        found = cells[kept]
        ordered: NDArray[np.float32] = found[np.lexsort((-found[:, 5], found[:, 0]))].astype(np.float32)
        return ordered

    def cells(self, tiles: AutoGazeGenerateOutput) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Every chosen cell, in tile and generation order, and which of them show any of the source.

        Args:
            tiles: rows in tile order.

        Returns:
            float64 ``[n, 7]`` with the columns of ``fixations``, and bool ``[n]``: False where the cell lies
            wholly in padding.
        """
        row, slot = np.nonzero(~tiles.if_padded_gazing)
        frame = tiles.frame_of_slot[slot]
        local = tiles.gazing_pos[row, slot] - frame * tiles.num_vision_tokens_each_frame
        starts = np.cumsum([0, *(layout.token_count for layout in tiles.scale_layouts)])
        scale = np.searchsorted(starts, local, side="right") - 1
        grid = np.array([layout.grid for layout in tiles.scale_layouts])[scale]
        cell = local - starts[scale]
        down, across = cell // grid, cell % grid
        tile_row, tile_column = row // self.columns, row % self.columns
        confidence = tiles.confidences[row, slot]
        if self.mode is AutoGazeInferenceMode.TILED_RESIZE_TO_GRID:
            # The tiles' grids join into one over the frame.
            cells_down, cells_across = self.rows * grid, self.columns * grid
            box = np.stack(
                [
                    (tile_column * grid + across + 0.5) / cells_across,
                    (tile_row * grid + down + 0.5) / cells_down,
                    1 / cells_across,
                    1 / cells_down,
                ]
            )
            kept = np.ones(len(row), np.bool_)
        else:
            x0, x1, y0, y1 = cell_pixel_rects(
                grid,
                down,
                across,
                width=self.width,
                height=self.height,
                tile_size=(self.size, self.size),
                tile_origin=(tile_column * self.size, tile_row * self.size),
            ).T
            kept = (x1 > x0) & (y1 > y0)
            box = np.stack(
                [
                    (x0 + x1) / (2 * self.width),
                    (y0 + y1) / (2 * self.height),
                    (x1 - x0) / self.width,
                    (y1 - y0) / self.height,
                ]
            )
        return np.concatenate([frame[None], box, confidence[None], grid[None]]).T, kept


def _axis_of_tile(size: int, canvas: int, tile: int, side: int) -> tuple[Taps, int, int]:
    """The taps of one tile along an axis of the stretched canvas, and the source pixels that they touch."""
    taps = bilinear_taps(size, canvas).part(tile * side, (tile + 1) * side)
    first, last = int(taps.index.min()), int(taps.index.max())
    return Taps(taps.index - first, taps.weight), first, last + 1
