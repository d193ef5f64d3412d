"""When the chosen cells cover enough of a frame (spec: readout §2, coverage helpers)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autogaze_client._errors import InvalidInputError
from autogaze_client.layouts import AutoGazeScaleTokenLayout
from autogaze_client.readout import _checks

__all__ = ["AutoGazeCoverageTracker", "coverage_generation_budget"]

_MAX_CANVAS = 256


class AutoGazeCoverageTracker:
    """Follows how much of a frame its chosen cells cover, and tells when that is enough.

    Cells are counted on a square canvas whose side is a multiple of every grid (28 for grids 2, 4, 7, 14), so that
    none is cut; where that side would exceed 256, on the largest grid, with cells taken outward.

    Args:
        layouts: the scales of the ids.
        stop_ratio: the share of the frame that is enough; above 1 counts as 1, at most 0 or not finite as never.

    Raises:
        InvalidInputError: there are no scales.

    Example:
        >>> from autogaze_client import layouts_from_grids
        >>> tracker = AutoGazeCoverageTracker(layouts_from_grids([2, 4, 7, 14]), 0.25)
        >>> tracker.add(0)
        True
        >>> tracker.covered_cells, tracker.canvas
        (196, 28)
    """

    def __init__(self, layouts: Sequence[AutoGazeScaleTokenLayout], stop_ratio: float) -> None:
        grids = [layout.grid for layout in layouts]
        if not grids:
            raise InvalidInputError("layouts is empty; pass the scales of the ids")
        multiple = math.lcm(*grids)
        self.canvas = multiple if multiple <= _MAX_CANVAS else max(grids)
        self._layouts = tuple(layouts)
        self._covered = np.zeros((self.canvas, self.canvas), np.bool_)
        active = math.isfinite(stop_ratio) and stop_ratio > 0
        self._needed = math.ceil(min(stop_ratio, 1.0) * self.canvas**2) if active else None

    @property
    def covered_cells(self) -> int:
        """Distinct cells of the canvas that are covered."""
        return int(np.count_nonzero(self._covered))

    @property
    def done(self) -> bool:
        """Whether enough is covered; never without a stop ratio."""
        return self._needed is not None and self.covered_cells >= self._needed

    def add(self, *tokens: int) -> bool:
        """Covers the cells of ids within a frame; gives ``done``.

        Raises:
            InvalidInputError: an id outside the scales.
        """
        total = sum(layout.token_count for layout in self._layouts)
        for token in tokens:
            local = _checks.index("token", token, total, "vocabulary")
            for layout in self._layouts:
                if local < layout.token_count:
                    break
                local -= layout.token_count
            row, column = divmod(local, layout.grid)
            self._covered[self._span(row, layout.grid), self._span(column, layout.grid)] = True
        return self.done

    def _span(self, cell: int, grid: int) -> slice:
        return slice(cell * self.canvas // grid, -(-(cell + 1) * self.canvas // grid))


def coverage_generation_budget(
    limit: int, layouts: Sequence[AutoGazeScaleTokenLayout], stop_ratio: float | None, chunk: int
) -> int:
    """How many tokens a frame may take when it stops at a coverage.

    Args:
        limit: tokens a frame at most; 0 counts as 1, as in the reference.
        layouts: the scales of the ids.
        stop_ratio: as ``AutoGazeCoverageTracker``; only one between 0 and 1 lowers the limit.
        chunk: tokens that the model chooses at once; the budget is a multiple of it.

    Raises:
        InvalidInputError: a negative limit, a chunk below 1, or no scales.

    Example:
        >>> from autogaze_client import layouts_from_grids
        >>> coverage_generation_budget(198, layouts_from_grids([2, 4, 7, 14]), 0.45, 10)
        90
    """
    _checks.count("limit", limit)
    _checks.count("chunk", chunk, 1)
    if not layouts:
        raise InvalidInputError("layouts is empty; pass the scales of the ids")
    if stop_ratio is None or not 0 < stop_ratio < 1:
        return max(limit, 1)
    cells = math.ceil(stop_ratio * max(layout.grid for layout in layouts) ** 2)
    return min(max(limit, 1), -(-cells // chunk) * chunk)
