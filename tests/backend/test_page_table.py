"""Where the cached positions of slots lie: laws of the table for any order of calls."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_client import ServerUnavailableError
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")

from autogaze_backend.torch_engine.pages import PAGE, PageTable

SLOTS, PAGES, RING = 3, 7, 4


class Ledger:
    """What a table should hold: of every slot its first and last page, and which pages of the pool they are."""

    def __init__(self) -> None:
        self.table = PageTable(SLOTS, PAGES, RING)
        self.first, self.end = [0] * SLOTS, [0] * SLOTS
        self.pages: list[dict[int, int]] = [{} for _ in range(SLOTS)]
        self.table.updates()

    def reserve(self, slot: int, positions: int) -> None:
        end = self.end[slot] * PAGE + positions
        wanted = -(-end // PAGE)
        held = wanted - self.first[slot]
        if held > RING or wanted - self.end[slot] > self.table.free:
            message = "of one slot" if held > RING else "pages of 64 positions are all in use"
            with pytest.raises(ServerUnavailableError, match=message):
                self.table.reserve(slot, end)
            assert self.table.updates().tolist() == []
            return
        self.table.reserve(slot, end)
        assert self.table.updates().tolist() == ([slot] if wanted > self.end[slot] else [])
        for page in range(self.end[slot], wanted):
            self.pages[slot][page] = int(self.table.table[slot, page % RING])
        self.end[slot] = max(self.end[slot], wanted)

    def advance(self, slot: int, positions: int) -> None:
        first = min(self.first[slot] * PAGE + positions, self.end[slot] * PAGE)
        self.table.advance(slot, first)
        self.first[slot] = max(self.first[slot], first // PAGE)
        self.pages[slot] = {page: at for page, at in self.pages[slot].items() if page >= self.first[slot]}

    def release(self, slot: int, positions: int) -> None:
        self.table.release(slot)
        self.first[slot] = self.end[slot] = 0
        self.pages[slot] = {}

    def check(self) -> None:
        held = [page for pages in self.pages for page in pages.values()]
        assert len(set(held)) == len(held), "two slots share a page"
        assert set(held) <= set(range(PAGES))
        assert self.table.free == self.table.total - len(held)
        for slot, pages in enumerate(self.pages):
            assert sorted(pages) == list(range(self.first[slot], self.end[slot]))
            for page, at in pages.items():
                assert self.table.table[slot, page % RING] == at, "a page that is held has moved"
        assert self.table.can_hold(self.table.free * PAGE)
        assert not self.table.can_hold(self.table.free * PAGE + 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "reserve", "advance", "release"]),
            st.integers(0, SLOTS - 1),
            st.integers(0, 5 * PAGE),
        ),
        max_size=40,
    )
)
def test_no_page_belongs_to_two_slots_and_none_is_lost(calls):
    ledger = Ledger()
    for name, slot, positions in calls:
        getattr(ledger, name)(slot, positions)
        ledger.check()
    for slot in range(SLOTS):
        ledger.release(slot, 0)
    ledger.check()
    assert ledger.table.free == PAGES


@given(st.lists(st.integers(1, 2 * PAGE), min_size=20, max_size=60))
def test_a_slot_that_forgets_its_oldest_goes_on_for_ever(steps):
    ledger, end = Ledger(), 0
    for step in steps:
        first = max(0, end - PAGE)
        ledger.advance(0, first - ledger.first[0] * PAGE)
        end += step
        if end > ledger.end[0] * PAGE:
            ledger.reserve(0, end - ledger.end[0] * PAGE)
        ledger.check()
        assert ledger.end[0] * PAGE >= end
    assert ledger.table.free >= PAGES - RING


def test_the_bound_of_a_slot_names_memory_only_where_memory_is_the_bound():
    with pytest.raises(ServerUnavailableError, match=r"more than the 256 of one slot.*smaller budget$"):
        PageTable(2, 8, 4).reserve(0, 257)
    with pytest.raises(ServerUnavailableError, match=r"needs 320 .* the 256 of one slot.*AUTOGAZE_CACHE_GIB"):
        PageTable(2, 4, 4).reserve(0, 257)
    table = PageTable(2, 8, 5)
    table.reserve(0, 320)
    with pytest.raises(ServerUnavailableError, match=r"the cache's 8 pages of 64 .*AUTOGAZE_CACHE_GIB"):
        table.reserve(1, 257)
    assert table.updates().dtype == np.int64
