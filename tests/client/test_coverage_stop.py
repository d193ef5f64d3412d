"""Coverage helpers: the worked examples of readout §2, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from autogaze_client import (
    AutoGazeCoverageTracker,
    InvalidInputError,
    coverage_generation_budget,
    layouts_from_grids,
)
from hypothesis import given, settings
from hypothesis import strategies as st

RELEASED = layouts_from_grids([2, 4, 7, 14])


def test_the_coarse_cells_cover_everything():
    tracker = AutoGazeCoverageTracker(RELEASED, 1.0)  # [T] ids 0-3 cover everything at r = 1
    assert [tracker.add(token) for token in range(4)] == [False, False, False, True]
    assert (tracker.canvas, tracker.covered_cells) == (28, 784)


def test_a_quarter_is_done_with_one_coarse_cell():
    tracker = AutoGazeCoverageTracker(RELEASED, 0.25)  # [R] r .25, id 0: done at 196 cells
    assert tracker.add(0)
    assert tracker.covered_cells == 196


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_without_a_ratio_it_is_never_done(ratio):
    assert not AutoGazeCoverageTracker(RELEASED, ratio).add(0, 1, 2, 3)


@pytest.mark.parametrize(
    ("limit", "ratio", "expected"),
    [(198, 0.45, 90), (198, None, 198), (24, 0.45, 24), (0, None, 1), (198, 1.0, 198), (198, math.nan, 198)],
)
def test_budgets(limit, ratio, expected):
    assert coverage_generation_budget(limit, RELEASED, ratio, 10) == expected


def test_a_large_multiple_takes_the_finest_grid_outward():
    tracker = AutoGazeCoverageTracker(layouts_from_grids([9, 32]), 1.0)
    assert tracker.canvas == 32
    tracker.add(4)  # the middle cell of the first row: 14.2..17.8 columns, 0..3.6 rows
    assert tracker.covered_cells == 4 * 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 264), max_size=40))
def test_coverage_is_that_of_the_cells(tokens):
    tracker = AutoGazeCoverageTracker(RELEASED, 1.0)
    seen = [tracker.covered_cells]
    for token in tokens:
        tracker.add(token)
        seen.append(tracker.covered_cells)
    assert seen == sorted(seen)
    canvas = np.zeros((28, 28), bool)
    for token in tokens:
        for start, grid in ((69, 14), (20, 7), (4, 4), (0, 2)):
            if token >= start:
                row, col = divmod(token - start, grid)
                side = 28 // grid
                canvas[row * side : (row + 1) * side, col * side : (col + 1) * side] = True
                break
    assert tracker.covered_cells == canvas.sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AutoGazeCoverageTracker([], 0.5), "layouts is empty"),
        (lambda: AutoGazeCoverageTracker(RELEASED, 0.5).add(265), "token is 265"),
        (lambda: coverage_generation_budget(-1, RELEASED, None, 10), "limit is -1"),
        (lambda: coverage_generation_budget(1, RELEASED, None, 0), "chunk is 0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
