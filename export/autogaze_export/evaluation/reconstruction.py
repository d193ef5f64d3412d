"""What a receiver of the tokens sees, and how far it is from the frame.

A token of scale s shows its cell at s / grid pixels a side (16 for the released scales): the frame shrunk
to s×s by averaging, every pixel shown as a block. Within a frame the finest token wins, whatever the order.
A region that no token of the frame covers keeps what earlier frames left there; at the start that is mean
grey. The loss is ``LOSS_SCALE`` times the mean absolute error of normalised pixels, so the default
requirement of 0.7 stands for a mean error of 5 of 255 grey levels. The open checkpoint is trained on the
same definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from autogaze_backend.spec import ModelSpec
from numpy.typing import NDArray

LOSS_SCALE = 4.0

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Levels = NDArray[np.uint8]


@dataclass(frozen=True)
class CellTables:
    """Which units of a frame each token reaches.

    A unit is the largest square that tiles the cells of every scale.

    Attributes:
        spec: the architecture.
    """

    spec: ModelSpec

    @cached_property
    def grids(self) -> tuple[int, ...]:
        """Cells a side of each scale, coarse to fine."""
        return tuple(layout.grid for layout in self.spec.scale_layouts)

    @cached_property
    def unit(self) -> int:
        """Side of a unit in pixels of the model input."""
        return math.gcd(*(self.spec.input_size // grid for grid in self.grids))

    @cached_property
    def units(self) -> int:
        """Units a side."""
        return self.spec.input_size // self.unit

    @cached_property
    def levels(self) -> Levels:
        """uint8 ``[N, units²]``: 0 where a token does not reach, else 1 for the coarsest scale and so on."""
        rows = []
        for level, grid in enumerate(self.grids, start=1):
            size = self.units // grid
            for cell in range(grid * grid):
                plane = np.zeros((self.units, self.units), np.uint8)
                y, x = cell // grid * size, cell % grid * size
                plane[y : y + size, x : x + size] = level
                rows.append(plane.ravel())
        return np.stack(rows)

    @cached_property
    def gain_matrix(self) -> Floats:
        """float32 ``[scales·units², N]``: sums a unit's gains under each scale over each token's cell."""
        planes = [(self.levels == level).T for level in range(1, len(self.grids) + 1)]
        matrix: Floats = np.concatenate(planes).astype(np.float32)
        return matrix

    def views(self, frame: Floats) -> Floats:
        """``[scales, 3, side, side]``: the frame ``[3, side, side]`` as each scale shows it."""
        return np.stack([_shown_at(frame, scale) for scale in self.spec.scales])

    def pool(self, difference: Floats) -> Floats:
        """Mean absolute value a unit, ``[..., units²]``, of ``[..., 3, side, side]``."""
        units, unit = self.units, self.unit
        blocks = np.abs(difference).mean(-3)
        blocks = blocks.reshape(*blocks.shape[:-2], units, unit, units, unit).mean((-1, -3))
        pooled: Floats = blocks.reshape(*blocks.shape[:-2], -1).astype(np.float32)
        return pooled


class FrameState:
    """One frame while its tokens arrive.

    Attributes:
        levels: uint8 ``[units²]``, the finest level shown in each unit; 0 is the canvas of the frames before.
    """

    def __init__(self, tables: CellTables, frame: Floats, canvas: Floats) -> None:
        """Args: the tables; the frame and the canvas, normalised ``[3, side, side]``."""
        self._tables, self._canvas = tables, canvas
        self._views = tables.views(frame)
        self._errors = tables.pool(frame - np.concatenate((canvas[None], self._views)))
        self.levels: Levels = np.zeros(tables.units**2, np.uint8)

    @property
    def unit_errors(self) -> Floats:
        """float32 ``[units²]``, the error of each unit as shown now."""
        errors: Floats = np.take_along_axis(self._errors, self.levels[None].astype(np.int64), 0)[0]
        return errors

    @property
    def loss(self) -> float:
        """The loss as shown now."""
        return LOSS_SCALE * float(self.unit_errors.mean())

    def gains(self) -> Floats:
        """float32 ``[N]``, by how much each token would lower the loss; negative where it would raise it."""
        level = np.arange(1, len(self._errors))[:, None]
        better = np.where(self.levels < level, self.unit_errors - self._errors[1:], np.float32(0))
        gains: Floats = better.ravel() @ self._tables.gain_matrix * (LOSS_SCALE / self.levels.size)
        return gains

    def show(self, token: int) -> None:
        """Adds a token's cell."""
        np.maximum(self.levels, self._tables.levels[token], out=self.levels)

    def canvas(self) -> Floats:
        """What the receiver sees, normalised ``[3, side, side]``."""
        units, unit = self._tables.units, self._tables.unit
        plane = self.levels.reshape(units, units).repeat(unit, 0).repeat(unit, 1)
        pictures = np.concatenate((self._canvas[None], self._views))
        index = np.broadcast_to(plane, pictures.shape[1:])[None].astype(np.int64)
        shown: Floats = np.take_along_axis(pictures, index, 0)[0]
        return shown


def blank_canvas(spec: ModelSpec) -> Floats:
    """Mean grey: what the receiver sees before any token."""
    return np.zeros((3, spec.input_size, spec.input_size), np.float32)


def _shown_at(frame: Floats, scale: int) -> Floats:
    side = frame.shape[-1]
    if scale == side:
        return frame
    pooling = np.zeros((scale, side), np.float32)
    for index in range(scale):
        start, end = index * side // scale, -(-(index + 1) * side // scale)
        pooling[index, start:end] = 1 / (end - start)
    small = pooling @ frame @ pooling.T
    nearest = np.arange(side) * scale // side
    shown: Floats = small[:, nearest][:, :, nearest]
    return shown
