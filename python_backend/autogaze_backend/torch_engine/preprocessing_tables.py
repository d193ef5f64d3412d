"""Where each output pixel of the preprocessing comes from, as tables on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from autogaze_client.modes import AutoGazeInferenceMode
from numpy.typing import NDArray

from autogaze_backend.adaptation import TargetScales
from autogaze_backend.resampling import Taps, bilinear_taps, cubic_taps
from autogaze_backend.tiling import TileLayout
from autogaze_backend.torch_engine.pillow_resize import ResizePass

Tensor = Any  # torch.Tensor, which is not there where types are checked.


@dataclass(frozen=True)
class PassTable:
    """A pass of Pillow's resize.

    Attributes:
        first: int32 ``[n]`` on the device.
        weights: int32 ``[taps, n]`` on the device.
        size: source places.
        vertical: along the height, else along the width.
    """

    first: Tensor
    weights: Tensor
    size: int
    vertical: bool

    @classmethod
    def of(cls, step: ResizePass, vertical: bool, device: Any) -> PassTable:
        """Copies the tables of a pass to a device."""
        return cls(_to(step.first, device), _to(step.weights, device), step.size, vertical)


@dataclass(frozen=True)
class AxisTable:
    """One axis of a cut into tiles, each resized by taps.

    Attributes:
        index: int32 ``[tiles, taps, side]`` on the device: source places; from the frame's end on lies padding.
        weight: float32 of that shape, or None where there is one tap of weight 1.
        bounds: the first place that a tile touches, and the one after the last.
    """

    index: Tensor
    weight: Tensor | None
    bounds: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, index: NDArray[np.int32], weight: NDArray[np.float32] | None, device: Any) -> AxisTable:
        """From arrays of the attributes' shapes."""
        bounds = tuple((int(tile.min()), int(tile.max()) + 1) for tile in index)
        return cls(_to(index, device), None if weight is None else _to(weight, device), bounds)

    @property
    def tiles(self) -> int:
        """Tiles along the axis."""
        return len(self.bounds)


def square_axis(size: int, side: int, device: Any) -> AxisTable:
    """The axis of a frame that becomes the model's square input."""
    if size == side:
        return AxisTable.of(_run(1, side), None, device)
    return _tiled(cubic_taps(size, side), 1, device)


def layout_axes(layout: TileLayout, device: Any) -> tuple[AxisTable, AxisTable]:
    """Rows and columns of a tiled mode."""
    side = layout.size
    if layout.mode is AutoGazeInferenceMode.TILED_FULL_RESOLUTION:
        return (
            AxisTable.of(_run(layout.rows, side), None, device),
            AxisTable.of(_run(layout.columns, side), None, device),
        )
    height, width = layout.canvas
    return (
        _tiled(bilinear_taps(layout.height, height), layout.rows, device),
        _tiled(bilinear_taps(layout.width, width), layout.columns, device),
    )


def target_axis(target: TargetScales, side: int, device: Any) -> AxisTable:
    """Rows, and likewise columns, of the tiles of target scales."""
    if target.tile_size == side:
        return AxisTable.of(_run(target.tiles, side), None, device)
    taps = cubic_taps(target.tile_size, side)
    origins = (np.arange(target.tiles, dtype=np.int32) * target.tile_size)[:, None, None]
    return AxisTable.of(
        origins + taps.index, np.broadcast_to(taps.weight, (target.tiles, *taps.weight.shape)), device
    )


def _run(tiles: int, side: int) -> NDArray[np.int32]:
    """Tiles side by side whose pixels are the source's."""
    return np.arange(tiles * side, dtype=np.int32).reshape(tiles, 1, side)


def _tiled(taps: Taps, tiles: int, device: Any) -> AxisTable:
    """The taps of an axis, divided among tiles."""

    def split(array: NDArray[Any]) -> NDArray[Any]:
        return array.reshape(len(array), tiles, -1).swapaxes(0, 1)

    return AxisTable.of(split(taps.index), split(taps.weight), device)


def _to(array: NDArray[Any], device: Any) -> Tensor:
    return torch.from_numpy(np.array(array, order="C")).to(device)
