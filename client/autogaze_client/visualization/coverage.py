"""Which pixels of a frame cells cover: one boolean array that every picture, ratio and count comes from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import Array, NumpyLibrary

__all__ = ["Coverage"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Coverage:
    """The union of rectangles.

    It is worked out on the grid of the rectangles' distinct edges, which is far coarser than pixels, so its
    cost follows the number of edges and the size of the frame, not the share that is covered.

    Attributes:
        columns: int64 ``[c + 1]``, ascending pixel columns from 0 to the width, where columns of ``cells`` begin.
        rows: int64 ``[r + 1]``, likewise of rows.
        cells: bool ``[r, c]``, what is covered.
    """

    columns: Ints
    rows: Ints
    cells: NDArray[np.bool_]

    @classmethod
    def of(cls, rects: Ints, width: int, height: int) -> Coverage:
        """The union of int64 ``[n, 4]`` x0, x1, y0, y1, all inside the frame."""
        columns, rows = _edges(rects[:, :2], width), _edges(rects[:, 2:], height)
        empty = cls(columns, rows, np.zeros((len(rows) - 1, len(columns) - 1), np.bool_))
        counts = cls.counts(empty.compact(rects), len(columns) - 1, len(rows) - 1)
        return cls(columns, rows, counts > 0)

    @staticmethod
    def counts(boxes: Ints, columns: int, rows: int) -> Ints:
        """How many of the boxes int64 ``[n, 4]`` lie over each place, int64 ``[rows, columns]``."""
        x0, x1, y0, y1 = boxes.T
        stride, size = columns + 1, (columns + 1) * (rows + 1)
        added = np.bincount(np.r_[y0 * stride + x0, y1 * stride + x1], minlength=size)
        taken = np.bincount(np.r_[y0 * stride + x1, y1 * stride + x0], minlength=size)
        corners = (added - taken).reshape(rows + 1, stride)
        counts: Ints = np.cumsum(np.cumsum(corners, axis=0), axis=1)[:rows, :columns]
        return counts

    def compact(self, rects: Ints) -> Ints:
        """Rectangles whose edges are among this coverage's, in its own rows and columns."""
        return np.concatenate(
            [np.searchsorted(self.columns, rects[:, :2]), np.searchsorted(self.rows, rects[:, 2:])], axis=1
        ).astype(np.int64)

    @property
    def width(self) -> int:
        """Of the frame, in pixels."""
        return int(self.columns[-1])

    @property
    def height(self) -> int:
        """Of the frame, in pixels."""
        return int(self.rows[-1])

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Bool ``[H, W]``. Read-only."""
        wide = np.repeat(self.cells, np.diff(self.columns), axis=1)
        mask = np.repeat(wide, np.diff(self.rows), axis=0)
        mask.flags.writeable = False
        return mask

    @cached_property
    def pixel_count(self) -> int:
        """Covered pixels."""
        return int(np.diff(self.rows) @ self.cells.astype(np.int64) @ np.diff(self.columns))

    @cached_property
    def row_span_count(self) -> int:
        """Runs of covered pixels, over all pixel rows."""
        runs = self.cells[:, :1].sum(1) + (self.cells[:, 1:] & ~self.cells[:, :-1]).sum(1)
        return int(np.diff(self.rows) @ runs)

    @property
    def is_full(self) -> bool:
        """Whether every pixel is covered."""
        return bool(self.cells.all())

    def mask_on(self, library: NumpyLibrary) -> Array:
        """The mask bool ``[H, W]`` in another library; only the small grid travels."""
        rows = np.repeat(np.arange(len(self.rows) - 1), np.diff(self.rows))
        columns = np.repeat(np.arange(len(self.columns) - 1), np.diff(self.columns))
        cells: Any = library.asarray(self.cells)
        return cells[library.asarray(rows)][:, library.asarray(columns)]


def _edges(values: Ints, size: int) -> Ints:
    present = np.zeros(size + 1, np.bool_)
    present[values.ravel()] = True
    present[[0, size]] = True
    return np.flatnonzero(present)
