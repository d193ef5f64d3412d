"""Tiled modes: a frame of any size as rows of model-sized tiles, and their cells back in the source.

Geometry is exact (integer arithmetic): a cell known by its tile, grid, row and column covers, from its
tile's origin and clipped to the source, the pixels it touches, and is dropped only when it lies wholly in
padding. The reference floors the edge cells of full-resolution tiling away; that is not reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from autogaze_client._errors import InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.geometry import cell_pixel_rects
from autogaze_client.modes import AutoGazeInferenceMode
from numpy.typing import NDArray

from autogaze_backend.preprocessing import Frames, PreprocessingConfig, Video, normalise


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
            # Only the source pixels that the tile's bilinear taps touch are read.
            top, down = _bilinear_taps(self.height, self.canvas[0], row * self.size, self.size)
            left, across = _bilinear_taps(self.width, self.canvas[1], column * self.size, self.size)
            region = frames[:, top : top + down.shape[1], left : left + across.shape[1], :3]
            return np.ascontiguousarray(down @ (normalise(region, config) @ across.T))
        top, left = row * self.size, column * self.size
        region = frames[:, top : top + self.size, left : left + self.size, :3]
        out = np.zeros((len(frames), 3, self.size, self.size), np.float32)
        out[:, :, : region.shape[1], : region.shape[2]] = normalise(region, config)
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


@lru_cache(maxsize=256)
def _bilinear_taps(size: int, target: int, start: int, count: int) -> tuple[int, NDArray[np.float32]]:
    """Bilinear resize along an axis without antialias, half-pixel centres, for a range of target pixels.

    Returns:
        The first source pixel needed, and the weights ``[count, source pixels]`` from there on.
    """
    scale = np.float64(np.float32(size) / np.float32(target))
    centre = np.maximum(((start + np.arange(count) + 0.5) * scale - 0.5).astype(np.float32), np.float32(0))
    low = np.minimum(centre.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    fraction = centre - low
    first = int(low[0])
    weights = np.zeros((count, int(high[-1]) - first + 1), np.float32)
    np.add.at(weights, (np.arange(count), low - first), 1 - fraction)
    np.add.at(weights, (np.arange(count), high - first), fraction)
    return first, weights
