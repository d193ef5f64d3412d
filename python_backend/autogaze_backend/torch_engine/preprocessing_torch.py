"""The two operations of the preprocessing in plain torch, for any device: what the kernels are measured against.

Every product and every sum is an operation of its own, so that nothing is fused and the bits are the host's.
"""

from __future__ import annotations

from typing import Any

import torch

from autogaze_backend.torch_engine.pillow_resize import PRECISION_BITS
from autogaze_backend.torch_engine.preprocessing_tables import AxisTable, PassTable

Tensor = Any  # torch.Tensor, which is not there where types are checked.

NAME = "torch"


def resize_pass(source: Tensor, table: PassTable, normalisation: Tensor | None, out: Tensor) -> None:
    """One pass of Pillow's resize.

    Args:
        source: uint8 ``[T, H, W, 3 or 4]``, any strides.
        table: the pass.
        normalisation: float32 ``[3, 256]`` to write floats, or None to write bytes.
        out: ``[T, 3, h, w]``.
    """
    planes = source.permute(0, 3, 1, 2)[:, :3]
    axis = 2 if table.vertical else 3
    total = torch.full(out.shape, 1 << (PRECISION_BITS - 1), dtype=torch.int32, device=out.device)
    for tap, weights in enumerate(table.weights):
        # Beyond the edge the weight is 0, so it does not matter which byte is read.
        index = (table.first + tap).clamp(max=table.size - 1)
        part = planes.index_select(axis, index).to(torch.int32)
        total += part * (weights[:, None] if table.vertical else weights)
    pixels = (total >> PRECISION_BITS).clamp(0, 255)
    out.copy_(pixels if normalisation is None else _normalise(pixels, normalisation))


def cut(
    source: Tensor, rows: AxisTable, columns: AxisTable, normalisation: Tensor, first: int, out: Tensor
) -> None:
    """Normalised tiles of some frames, from tile ``first`` on, row-major.

    Args:
        source: uint8 ``[T, H, W, 3 or 4]``, any strides.
        rows: where the tiles' rows come from.
        columns: likewise.
        normalisation: float32 ``[3, 256]``.
        first: of the tiles.
        out: float32 or float16 ``[tiles, T, 3, side, side]``.
    """
    height, width = source.shape[1:3]
    for index, target in enumerate(out):
        row, column = divmod(first + index, columns.tiles)
        top, bottom = rows.bounds[row]
        left, right = columns.bounds[column]
        pixels = source[:, top:bottom, left:right].permute(0, 3, 1, 2)[:, :3]
        values = _normalise(pixels, normalisation)
        # Padding is 0 in normalised space.
        values = torch.nn.functional.pad(values, (0, max(0, right - width), 0, max(0, bottom - height)))
        values = _resize(values, columns, column, 3)
        target.copy_(_resize(values, rows, row, 2))


def _resize(values: Tensor, table: AxisTable, tile: int, axis: int) -> Tensor:
    if table.weight is None:
        return values
    total = None
    for index, weight in zip(table.index[tile] - table.bounds[tile][0], table.weight[tile], strict=True):
        product = values.index_select(axis, index) * (weight if axis == 3 else weight[:, None])
        total = product if total is None else total + product
    return total


def _normalise(planes: Tensor, table: Tensor) -> Tensor:
    """Bytes ``[T, 3, h, w]`` to floats of that shape."""
    out = torch.empty(planes.shape, dtype=table.dtype, device=table.device)
    for channel in range(3):
        plane = planes[:, channel]
        out[:, channel] = table[channel].index_select(0, plane.reshape(-1).to(torch.int32)).view(plane.shape)
    return out
