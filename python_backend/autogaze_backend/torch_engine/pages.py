"""Where the cached tokens lie: pages of a common pool, in a ring for each slot.

A slot's tokens are contiguous in time, so that the oldest leave by moving the start: nothing is copied. The
tables here are the host's; ``updates`` tells which rows the device must learn.
"""

from __future__ import annotations

import numpy as np
from autogaze_client._errors import ServerUnavailableError
from numpy.typing import NDArray

PAGE = 64


class PageTable:
    """The pages of every slot. Positions count from the opening of a slot and never wrap."""

    def __init__(self, slots: int, pages: int, max_pages: int) -> None:
        """Makes an empty table.

        Args:
            slots: rows of the table.
            pages: of the pool.
            max_pages: the most that one slot may hold.
        """
        self.table: NDArray[np.int32] = np.zeros((slots, max_pages), np.int32)
        self._free = list(range(pages - 1, -1, -1))
        self._total = pages
        self._first = [0] * slots
        self._end = [0] * slots
        self._changed: set[int] = set()

    @property
    def free(self) -> int:
        """Pages that no slot holds."""
        return len(self._free)

    @property
    def total(self) -> int:
        """Pages of the pool."""
        return self._total

    @property
    def slot_positions(self) -> int:
        """The most positions that one slot may hold at once."""
        return self.table.shape[1] * PAGE

    def can_hold(self, positions: int) -> bool:
        """Whether the free pages take another slot of ``positions``."""
        return -(-positions // PAGE) <= len(self._free)

    def reserve(self, slot: int, end: int) -> None:
        """Sees to it that the slot has pages up to position ``end``.

        Raises:
            ServerUnavailableError: the pool is empty, or the slot would hold more than one may.
        """
        wanted = -(-end // PAGE)
        missing = wanted - self._end[slot]
        if missing <= 0:
            return
        if wanted - self._first[slot] > self.table.shape[1]:
            # Where the pool is the bound, more memory helps too.
            memory = (
                ", or give the engine more memory (AUTOGAZE_CACHE_GIB)"
                if self.table.shape[1] == self._total
                else ""
            )
            raise ServerUnavailableError(
                f"a row needs {(wanted - self._first[slot]) * PAGE} cached positions, more than the "
                f"{self.slot_positions} of one slot; send shorter clips or a smaller budget{memory}"
            )
        if missing > len(self._free):
            raise ServerUnavailableError(
                f"the cache's {self._total} pages of {PAGE} positions are all in use; send the request again later, "
                "or give the engine more memory (AUTOGAZE_CACHE_GIB)"
            )
        ring = self.table.shape[1]
        places = np.arange(self._end[slot], wanted) % ring
        self.table[slot, places] = self._free[-missing:]
        del self._free[-missing:]
        self._end[slot] = wanted
        self._changed.add(slot)

    def advance(self, slot: int, first: int) -> None:
        """Frees the pages that lie wholly before position ``first``."""
        kept = min(first // PAGE, self._end[slot])
        ring = self.table.shape[1]
        if kept <= self._first[slot]:
            return
        places = np.arange(self._first[slot], kept) % ring
        self._free += self.table[slot, places].tolist()
        self._first[slot] = kept

    def release(self, slot: int) -> None:
        """Frees all pages of a slot; its positions start from 0 again."""
        self.advance(slot, self._end[slot] * PAGE)
        self._first[slot] = self._end[slot] = 0

    def updates(self) -> NDArray[np.int64]:
        """Slots whose row changed since the last call."""
        changed = np.array(sorted(self._changed), np.int64)
        self._changed.clear()
        return changed
