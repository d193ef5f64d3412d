"""Where the caches of slots lie: in places of arenas, on which graphs run, or parked.

A graph runs on the first R places of one arena. Rows in them that a call does not name rest: the graph writes
behind their end, where nothing is read. A row keeps its place from call to call, and a call rather runs a few
resting rows along (``slack``) than moves any: while some rows of a batch open a frame the others step, so the two
phases take turns with parts of one batch. A row moves only when its place is far beyond what its call needs, to make
room, or to grow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from autogaze_client._errors import InvalidInputError
from numpy.typing import NDArray

from autogaze_backend.graphs import cache_names
from autogaze_backend.spec import ModelSpec
from autogaze_backend.tensorrt_engine.blocks import ALIGNMENT
from autogaze_backend.tensorrt_engine.cuda import Cuda, Slab

Integers = NDArray[np.int64]

# Rows move up to a longer cache that runs anyway, instead of costing a launch of their own, while they are no
# more than so many positions longer together: about as much memory to read as a launch takes time on an H100
# (estimated from its bandwidth, not measured with TensorRT).
MERGE_POSITIONS = 32768

# Calls that are remembered; streams come in many subsets.
_SETTLED = 256


class Arena:
    """Caches of one length, ``[tensors, places, heads, length, head_dim]``.

    Args:
        cuda: where to allocate.
        spec: the architecture.
        dtype: of keys and values.
        length: positions of a place.
        places: rows.

    Attributes:
        occupants: the slot in each place, -1 for none.
        lengths: positions of each place that may be read again.
    """

    def __init__(
        self, cuda: Cuda, spec: ModelSpec, dtype: np.dtype[np.generic], length: int, places: int
    ) -> None:
        self._heads, self.length = spec.num_heads, length
        self.width = spec.head_dim * dtype.itemsize
        self._pitch = length * self.width
        # Every tensor must start where TensorRT may be told to look.
        while places * self._heads * self._pitch % ALIGNMENT:
            places += 1
        self._stride = places * self._heads * self._pitch
        self._names = cache_names(spec)
        self._rows = places * self._heads
        self.base = cuda.allocate(self._stride * len(self._names))
        self.occupants: Integers = np.full(places, -1, np.int64)
        self.lengths: Integers = np.zeros(places, np.int64)

    @property
    def addresses(self) -> dict[str, int]:
        """Of each cache tensor's first place."""
        return {name: self.base + index * self._stride for index, name in enumerate(self._names)}

    def slab(self, place: int, position: int = 0) -> Slab:
        """A place from a position on: a block a tensor, a row a head."""
        address = self.base + place * self._heads * self._pitch + position * self.width
        return Slab(address, self._pitch, self._rows)

    def free_place(self, start: int, stop: int | None = None) -> int | None:
        """The first place from ``start`` on, before ``stop``, that no slot holds."""
        free = np.flatnonzero(self.occupants[start:stop] < 0)
        return start + int(free[0]) if len(free) else None


@dataclass
class Place:
    """Where a slot's cache lies."""

    arena: Arena
    index: int

    @property
    def length(self) -> int:
        """Positions that may be read again."""
        return int(self.arena.lengths[self.index])

    def slab(self, position: int = 0) -> Slab:
        """See ``Arena.slab``."""
        return self.arena.slab(self.index, position)


@dataclass(frozen=True)
class Group:
    """Rows of a call that run as one.

    Attributes:
        length: of their arena.
        members: indices in the call.
    """

    length: int
    members: Integers


class SlotPool:
    """Owns the memory of all slots.

    Args:
        cuda: where it lies.
        spec: the architecture.
        dtype: of keys and values.
        row_buckets: rows of the graphs, ascending.
        length_buckets: cache positions of the graphs, ascending.
        build_command: what to say when a cache outgrows them.
    """

    def __init__(
        self,
        cuda: Cuda,
        spec: ModelSpec,
        dtype: np.dtype[np.generic],
        row_buckets: Sequence[int],
        length_buckets: Sequence[int],
        build_command: str = "",
    ) -> None:
        self._cuda, self._spec, self._dtype = cuda, spec, dtype
        self._row_buckets, self._length_buckets = tuple(row_buckets), tuple(length_buckets)
        self._build_command = build_command
        self.arenas = {
            length: Arena(cuda, spec, dtype, length, self._row_buckets[-1]) for length in length_buckets
        }
        # None while a slot holds nothing.
        self._places: dict[int, Place | None] = {}
        self._parking: defaultdict[int, list[Arena]] = defaultdict(list)
        # Calls that need no copy as long as no row changes its place: most calls are like the one before.
        self._settled: dict[tuple[tuple[int, ...], int, int], tuple[Group, int, Integers]] = {}
        self.moved_rows = 0

    def __len__(self) -> int:
        """Open slots."""
        return len(self._places)

    def open(self) -> int:
        """A new slot, the lowest number that is free."""
        slot = 0
        while slot in self._places:
            slot += 1
        self._places[slot] = None
        return slot

    def close(self, slot: int) -> None:
        """Takes a slot back; its place is free for others."""
        place = self._places.pop(slot)
        if place is not None:
            self._vacate(place)

    def settled(
        self, slots: Sequence[int], lengths: Integers, tokens: int, slack: int
    ) -> tuple[Group, int, Integers] | None:
        """What ``group`` and ``arrange`` gave for such a call, where nothing has moved since and all still fits."""
        found = self._settled.get((tuple(slots), tokens, slack))
        if found is None:
            return None
        group, rows, places = found
        arena = self.arenas[group.length]
        arena.lengths[places] = lengths
        return None if (arena.lengths[:rows] + tokens > arena.length).any() else found

    def group(self, slots: Sequence[int], lengths: Integers, tokens: int) -> list[Group]:
        """Divides the rows of a call into those that run as one.

        Args:
            slots: each once.
            lengths: cached positions of each.
            tokens: positions that the graph writes behind them.

        Raises:
            InvalidInputError: a cache would be longer than the longest bucket.
        """
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for row, slot in enumerate(slots):
            place = self._places[slot]
            # A cache never moves to a shorter arena: it would be back soon.
            at_least = 0 if place is None else place.arena.length
            by_length[self._bucket(max(int(lengths[row]) + tokens, at_least))].append(row)
        merged: list[tuple[int, list[int]]] = []
        for length in sorted(by_length):
            rows = by_length[length]
            if merged and len(merged[-1][1]) * (length - merged[-1][0]) <= MERGE_POSITIONS:
                rows = merged.pop()[1] + rows
            merged.append((length, rows))
        groups = []
        most = self._row_buckets[-1]
        for length, rows in merged:
            for start in range(0, len(rows), most):
                groups.append(Group(length, np.array(rows[start : start + most], np.int64)))
        return groups

    def arrange(
        self, group: Group, slots: Sequence[int], lengths: Integers, tokens: int, slack: int
    ) -> tuple[int, Integers]:
        """Brings the rows of a group into the first places of its arena; queues copies where they must move.

        Args:
            group: of ``group``.
            slots: of the whole call.
            lengths: of the whole call.
            tokens: of the call.
            slack: how many times the rows that the group needs a graph may have, so that rows need not move.

        Returns:
            The rows of the graph, and the place of each member.
        """
        arena = self.arenas[group.length]
        named = {slots[row] for row in group.members}
        for row in group.members:
            place = self._places[slots[row]]
            if place is not None:
                # The caller may have dropped positions since.
                place.arena.lengths[place.index] = lengths[row]
        needed = self._covering(len(group.members))
        span = max(bucket for bucket in self._row_buckets if bucket <= max(needed, slack * needed))
        for row in group.members:
            self._bring(slots[row], int(lengths[row]), arena, span, named)
        places = np.array([self._index(slots[row]) for row in group.members], np.int64)
        rows = self._covering(int(places.max()) + 1)
        for index in range(rows):
            occupant = int(arena.occupants[index])
            full = arena.lengths[index] + tokens > arena.length
            if occupant >= 0 and occupant not in named and full:
                self._evict(arena, index, rows)
        if len(group.members) == len(slots):
            if len(self._settled) >= _SETTLED:
                self._settled.clear()
            # In the order of the call, which the members are not where cache lengths were merged.
            order = np.argsort(group.members)
            whole = Group(group.length, group.members[order])
            self._settled[tuple(slots), tokens, slack] = (whole, rows, places[order])
        return rows, places

    def written(self, group: Group, places: Integers, lengths: Integers) -> None:
        """Notes how many positions the rows of a group now have."""
        self.arenas[group.length].lengths[places] = lengths

    def move(self, slot: int, source: Integers, destination: Integers) -> None:
        """Queues copies of positions ``source`` over ``destination``, run by run.

        Raises:
            InvalidInputError: a position is both read and written: the copies' order would matter.
        """
        place = self._places[slot]
        if place is None or not len(source):
            return
        if len(np.intersect1d(source, destination)):
            raise InvalidInputError(
                "positions to move are among those that they replace; pass disjoint positions"
            )
        breaks = np.flatnonzero((np.diff(source) != 1) | (np.diff(destination) != 1)) + 1
        for start, stop in zip([0, *breaks], [*breaks, len(source)], strict=True):
            self._copy(
                place.slab(int(destination[start])), place.slab(int(source[start])), int(stop - start), place
            )

    def _bucket(self, length: int) -> int:
        index = bisect_left(self._length_buckets, length)
        if index == len(self._length_buckets):
            raise InvalidInputError(
                f"the row needs {length} cache positions, but the longest plan has {self._length_buckets[-1]}; send "
                f"shorter clips, or build longer plans with `{self._build_command} --length-buckets …,{length}`"
            )
        return self._length_buckets[index]

    def _index(self, slot: int) -> int:
        place = self._places[slot]
        assert place is not None
        return place.index

    def _covering(self, rows: int) -> int:
        return next(bucket for bucket in self._row_buckets if bucket >= rows)

    def _bring(self, slot: int, length: int, arena: Arena, span: int, named: set[int]) -> None:
        """Gives a slot one of the first ``span`` places of an arena, with what it holds."""
        old = self._places[slot]
        if old is not None and old.arena is arena and old.index < span:
            return
        index = arena.free_place(0, span)
        if index is not None:
            self._relocate(slot, Place(arena, index), length)
            return
        index = next(i for i in range(span) if int(arena.occupants[i]) not in named)
        resting = self._evict(arena, index, span)
        self._relocate(slot, Place(arena, index), length)
        if old is not None and old.arena is arena and self._is_parked(resting):
            # The place that has become free, for the next call will name the other one.
            self._relocate(resting, old, self._length(resting))

    def _evict(self, arena: Arena, index: int, rows: int) -> int:
        """Moves a resting row out of the first ``rows`` places; its slot."""
        slot = int(arena.occupants[index])
        free = arena.free_place(rows)
        if free is not None:
            target = Place(arena, free)
        else:
            spare = self._parking[arena.length]
            parked = spare.pop() if spare else Arena(self._cuda, self._spec, self._dtype, arena.length, 1)
            target = Place(parked, 0)
        self._relocate(slot, target, int(arena.lengths[index]))
        return slot

    def _is_parked(self, slot: int) -> bool:
        place = self._places[slot]
        return place is not None and place.arena is not self.arenas[place.arena.length]

    def _length(self, slot: int) -> int:
        place = self._places[slot]
        return 0 if place is None else place.length

    def _relocate(self, slot: int, target: Place, length: int) -> None:
        old = self._places[slot]
        self._settled.clear()
        if old is not None:
            if length:
                self._copy(target.slab(), old.slab(), length, target)
                self.moved_rows += 1
            self._vacate(old)
        target.arena.occupants[target.index] = slot
        target.arena.lengths[target.index] = length
        self._places[slot] = target

    def _copy(self, target: Slab, source: Slab, positions: int, place: Place) -> None:
        spec = self._spec
        width = positions * place.arena.width
        self._cuda.copy_slab(target, source, width, spec.num_heads, 2 * spec.num_layers)

    def _vacate(self, place: Place) -> None:
        self._settled.clear()
        place.arena.occupants[place.index] = -1
        place.arena.lengths[place.index] = 0
        if place.arena is not self.arenas[place.arena.length]:
            # Memory of a parked row serves the next one that must be parked.
            self._parking[place.arena.length].append(place.arena)
