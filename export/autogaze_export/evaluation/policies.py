"""Orders in which a frame's cells could be shown: the greedy oracle, and baselines that learn nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autogaze_export.evaluation.reconstruction import CellTables, Floats, FrameState


class Policy(Protocol):
    """Names the tokens of a frame, best first."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    def order(
        self, tables: CellTables, state: FrameState, frame: Floats, previous: Floats | None
    ) -> Iterator[int]:
        """Yields ids, each once; ``state`` shows those already yielded; ``previous`` is the frame before."""
        ...


@dataclass(frozen=True)
class GreedyOracle:
    """Always the token that lowers the true loss most. Not optimal, but hard to beat."""

    name: str = "greedy oracle"

    def order(
        self, tables: CellTables, state: FrameState, frame: Floats, previous: Floats | None
    ) -> Iterator[int]:
        """See ``Policy``."""
        taken = np.zeros(len(tables.levels), np.bool_)
        while not taken.all():
            token = int(np.where(taken, -np.inf, state.gains()).argmax())
            taken[token] = True
            yield token


@dataclass(frozen=True)
class RandomCells:
    """Any cell of any scale, in a random order that the seed fixes."""

    seed: int = 0
    name: str = "random cells"

    def order(
        self, tables: CellTables, state: FrameState, frame: Floats, previous: Floats | None
    ) -> Iterator[int]:
        """See ``Policy``."""
        # The frame's content seeds the draw, so that frames differ and runs do not.
        content = int(np.abs(frame).sum(dtype=np.float64) * 1000) % 2**32
        yield from np.random.default_rng((self.seed, content)).permutation(len(tables.levels)).tolist()


@dataclass(frozen=True)
class CoarseToFine:
    """All cells in id order: the coarsest scale first, rows from the top."""

    name: str = "coarse to fine"

    def order(
        self, tables: CellTables, state: FrameState, frame: Floats, previous: Floats | None
    ) -> Iterator[int]:
        """See ``Policy``."""
        yield from range(len(tables.levels))


@dataclass(frozen=True)
class PatchDifference:
    """The finest cells, those that changed most since the frame before first.

    The first frame is compared with mean grey.
    """

    name: str = "patch difference"

    def order(
        self, tables: CellTables, state: FrameState, frame: Floats, previous: Floats | None
    ) -> Iterator[int]:
        """See ``Policy``."""
        grid = tables.grids[-1]
        change = tables.pool(frame if previous is None else frame - previous)
        size = tables.units // grid
        cells = change.reshape(grid, size, grid, size).mean((1, 3)).ravel()
        first = len(tables.levels) - grid * grid
        yield from (np.argsort(-cells, kind="stable") + first).tolist()


BASELINES: tuple[Policy, ...] = (RandomCells(), CoarseToFine(), PatchDifference())
ORACLE = GreedyOracle()
