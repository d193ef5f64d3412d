"""Which region of shared memory an input gets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from autogaze_client._shared_memory import SharedRegion, SystemMemoryPool

PAGE = 4096


@pytest.fixture
def pool() -> Iterator[SystemMemoryPool]:
    made = SystemMemoryPool(True)
    yield made
    made.close()


def bytes_of(pages: int) -> np.ndarray:
    return np.zeros(pages * PAGE, np.uint8)


def held(pool: SystemMemoryPool, *pages: int) -> list[SharedRegion]:
    return [pool.take(bytes_of(count)) for count in pages]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_the_smallest_free_region_that_fits_is_taken(pool, order):
    regions = held(pool, 1, 2, 4)
    for index in order:
        pool.give_back(regions[index])
    assert pool.take(bytes_of(2)) is regions[1]
    assert pool.take(bytes_of(2)) is regions[2]
    assert pool.take(bytes_of(1)) is regions[0]
    assert pool.take(bytes_of(1)) not in regions, "none is free"


def test_of_equal_regions_the_one_used_last_is_taken(pool):
    regions = held(pool, 2, 2, 2)
    for index in (1, 2, 0):
        pool.give_back(regions[index])
    assert [pool.take(bytes_of(2)) for _ in range(3)] == [regions[index] for index in (0, 2, 1)]


def test_a_region_is_never_with_two_inputs(pool):
    first, second = held(pool, 1, 1)
    assert first is not second
    pool.give_back(first)
    assert pool.take(bytes_of(1)) is first
    assert pool.take(bytes_of(1)) not in (first, second)
