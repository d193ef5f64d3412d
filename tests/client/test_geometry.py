from __future__ import annotations

import math

import numpy as np
import pytest
from autogaze_client import InvalidInputError, cell_pixel_rects, fixation_pixel_rects
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.integers(1, 8192)
GRIDS = st.one_of(st.sampled_from([2, 4, 7, 14, 28]), st.integers(1, 140))


def all_cells(grid: int) -> tuple[np.ndarray, np.ndarray]:
    rows, cols = np.divmod(np.arange(grid * grid), grid)
    return rows, cols


def as_fixations(grid: int, rows: np.ndarray, cols: np.ndarray, local_grid: int = 0) -> np.ndarray:
    extent = np.full(len(rows), 1 / grid)
    columns = (np.zeros(len(rows)), (cols + 0.5) / grid, (rows + 0.5) / grid, extent, extent)
    return np.column_stack([*columns, np.ones(len(rows)), np.full(len(rows), local_grid or grid)]).astype(
        np.float32
    )


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30))
def test_cells_of_a_scale_cover_every_pixel(width, height, grid):
    covered = np.zeros((height, width), bool)
    for x0, x1, y0, y1 in cell_pixel_rects(grid, *all_cells(grid), width=width, height=height):
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        covered[y0:y1, x0:x1] = True
    assert covered.all()


@given(GRIDS, st.integers(1, 50), st.integers(1, 50))
def test_cells_tile_without_overlap_where_the_grid_divides(grid, cell_width, cell_height):
    rects = cell_pixel_rects(grid, *all_cells(grid), width=grid * cell_width, height=grid * cell_height)
    rows, cols = all_cells(grid)
    assert (rects[:, 0] == cols * cell_width).all()
    assert (rects[:, 1] == (cols + 1) * cell_width).all()
    assert (rects[:, 2] == rows * cell_height).all()
    assert (rects[:, 3] == (rows + 1) * cell_height).all()


@given(SIZES, SIZES, GRIDS)
def test_float32_fixations_give_the_integer_rects(width, height, grid):
    rows, cols = all_cells(grid)
    found = fixation_pixel_rects(as_fixations(grid, rows, cols), width=width, height=height)
    np.testing.assert_array_equal(found, cell_pixel_rects(grid, rows, cols, width=width, height=height))


@pytest.mark.parametrize(("grid", "columns"), [(7, [1, 4, 5, 6]), (14, [1, 4, 5, 6, 7])])
def test_no_drift_at_224(grid, columns):
    """visualization §1, the drift rows: cells start at 32·c and 16·c, not one pixel early."""
    cols = np.array(columns)
    rects = fixation_pixel_rects(as_fixations(grid, np.zeros_like(cols), cols), width=224, height=224)
    assert (rects[:, 0] == cols * 224 // grid).all()


@pytest.mark.parametrize(
    ("size", "grid", "row", "col", "rect"),
    [((10, 10), 14, 0, 1, (0, 2, 0, 1)), ((30, 30), 7, 3, 3, (12, 18, 12, 18))],
)
def test_edges_round_outwards(size, grid, row, col, rect):
    """visualization §1, rows "10x10, grid-14" and "30x30, grid-7"."""
    assert cell_pixel_rects(grid, row, col, width=size[0], height=size[1]).tolist() == [list(rect)]


@given(st.integers(1, 12), st.integers(1, 12), SIZES, SIZES, st.sampled_from([2, 4, 7, 14]), st.data())
def test_grid_tiling_recovers_the_global_cell(tile_cols, tile_rows, width, height, grid, data):
    """The fixation's grid is local to its tile; its extent counts the cells across all tiles."""
    col = data.draw(st.integers(0, tile_cols * grid - 1))
    row = data.draw(st.integers(0, tile_rows * grid - 1))
    across, down = tile_cols * grid, tile_rows * grid
    fixation = np.array(
        [[0, (col + 0.5) / across, (row + 0.5) / down, 1 / across, 1 / down, 1, grid]], np.float32
    )
    expected = [
        col * width // across,
        -(-(col + 1) * width // across),
        row * height // down,
        -(-(row + 1) * height // down),
    ]
    assert fixation_pixel_rects(fixation, width=width, height=height).tolist() == [expected]


@given(SIZES, st.sampled_from([2, 4, 7, 14]), st.data())
def test_full_resolution_tiles_give_exact_cells_even_at_the_clipped_edge(width, grid, data):
    tile = 224
    column = data.draw(st.integers(0, (width - 1) // tile))
    cell = data.draw(st.integers(0, grid - 1))
    origin, step = column * tile, tile // grid
    start, end = origin + cell * step, min(origin + (cell + 1) * step, width)
    exact = cell_pixel_rects(
        grid, 0, cell, width=width, height=tile, tile_size=(tile, tile), tile_origin=(origin, 0)
    )
    assert exact[0, :2].tolist() == [start, end]
    if start < width:
        middle, extent = (start + end) / 2 / width, (end - start) / width
        fixation = np.array([[0, middle, 0.5 / grid, extent, 1 / grid, 1, grid]], np.float32)
        assert fixation_pixel_rects(fixation, width=width, height=tile)[0, :2].tolist() == [start, end]


@given(
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 2, *[st.floats(1e-6, 1)] * 2), max_size=20),
    SIZES,
    SIZES,
)
def test_any_cell_has_pixels_inside_the_frame(cells, width, height):
    rows = np.array([(0, *cell, 1, 0) for cell in cells], np.float32).reshape(len(cells), 7)
    rects = fixation_pixel_rects(rows, width=width, height=height)
    assert (rects[:, [0, 2]] >= 0).all()
    assert (rects[:, 0] < rects[:, 1]).all()
    assert (rects[:, 2] < rects[:, 3]).all()
    assert (rects[:, 1] <= width).all()
    assert (rects[:, 3] <= height).all()


def test_a_cell_in_padding_has_no_pixels():
    rect = cell_pixel_rects(2, 0, 1, width=300, height=224, tile_size=(224, 224), tile_origin=(224, 0))[0]
    assert rect[1] <= rect[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 0), "grid is 0"),
        ((4, 4, 0), r"row is 4 on a grid of 4; it must be 0\.\.3"),
        ((4, 0, -1), "col is -1"),
    ],
)
def test_cells_outside_their_grid_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        cell_pixel_rects(*arguments, width=8, height=8)


def test_bad_fixations_are_refused():
    with pytest.raises(InvalidInputError, match=r"must be \[n, 7\]"):
        fixation_pixel_rects(np.zeros((1, 5)), width=8, height=8)
    with pytest.raises(InvalidInputError, match="not finite"):
        fixation_pixel_rects(np.full((1, 7), math.nan), width=8, height=8)
    with pytest.raises(InvalidInputError, match="0x8 pixels"):
        fixation_pixel_rects(np.zeros((1, 7)), width=0, height=8)
