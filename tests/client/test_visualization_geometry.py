"""Cells, geometries and update plans: the rows of visualization §1 to §3, exact where the reference drifts."""

from __future__ import annotations

import math

import autogaze_client as ag
import numpy as np
import pytest
from autogaze_client import AutoGazeMaskGeometryMode, FixationPoint, InvalidInputError
from hypothesis import given
from hypothesis import strategies as st
from visualization_helpers import all_cells, box, cell, checkerboard, random_cells

NATIVE, DEDUP, EFFECTIVE = AutoGazeMaskGeometryMode
RECTS = {
    NATIVE: ag.fixation_cell_rects,
    DEDUP: ag.fixation_deduplicated_cell_rects,
    EFFECTIVE: ag.fixation_effective_cell_rects,
}


@pytest.mark.parametrize(
    ("points", "size", "scale", "rect"),
    [
        ([box(0.125, 0.25, 0.25, 0.5, 4)], (4, 2), 1, (0, 1, 0, 1)),
        ([cell(14, 0, 1)], (10, 10), 1, (0, 2, 0, 1)),
        ([cell(7, 3, 3)], (30, 30), 1, (12, 18, 12, 18)),
        ([cell(4, 1, 1)], (4, 4), 2, (0, 3, 0, 3)),
        ([cell(4, 1, 1)], (4, 4), 0.5, (1, 2, 1, 2)),
        ([box(1, 1, 0.25, 0.25)], (8, 8), 1, (7, 8, 7, 8)),
        ([box(0.5, 0.5, 0.25, 0.25)], (8, 8), 0, (3, 5, 3, 5)),
        ([cell(2, 0, 0)], (8, 8), 100, (0, 6, 0, 6)),
    ],
)
def test_cells_to_pixels(points, size, scale, rect):
    """visualization §1, the table."""
    assert ag.fixation_cell_rects(points, *size, scale) == (rect,)


@pytest.mark.parametrize("grid", [2, 4, 7, 14])
@pytest.mark.parametrize("size", [224, 640, 1920])
def test_no_column_drifts(grid, size):
    """§1 drift rows and §9.1: starts are floor(col·W/grid), not a pixel early (31, 127, … at 224 and 7)."""
    points = [cell(grid, 0, col) for col in range(grid)]
    for scale in (1, 1 + 1e-12):
        rects = ag.fixation_cell_rects(points, size, size, scale)
        assert [rect.x0 for rect in rects] == [col * size // grid for col in range(grid)]
        assert [rect.x1 for rect in rects] == [-(-(col + 1) * size // grid) for col in range(grid)]


def test_alpha_masks():
    """§1: 8×8, centre .25/.25, extent .5: 255 exactly for x < 4 and y < 4."""
    expected = np.zeros((8, 8), np.uint8)
    expected[:4, :4] = 255
    np.testing.assert_array_equal(ag.fixation_alpha_mask([box(0.25, 0.25, 0.5, 0.5)], 8, 8), expected)
    assert ag.fixation_alpha_mask([cell(2, 0, 0)], 0, 0).shape == (1, 1)
    assert ag.fixation_effective_alpha_mask([cell(2, 0, 0)], 28, 28).sum() == 4 * 255


def test_points_that_are_not_active():
    """§1: a confidence that is not above 0 is ignored, NaN included; §9.7: other NaN are refused."""
    lost = FixationPoint(0.5, 0.5, 0.5, math.nan, 0.5, 0.5, 2)
    assert ag.fixation_cell_rects([lost, FixationPoint.padding()], 8, 8) == ()
    with pytest.raises(InvalidInputError, match="x of active fixation 0 is nan"):
        ag.fixation_cell_rects([FixationPoint(math.nan, 0.5, 0.5, 1.0)], 8, 8)
    with pytest.raises(InvalidInputError, match="cell_scale is nan"):
        ag.fixation_cell_rects([cell(2, 0, 0)], 8, 8, math.nan)


def test_rectangles():
    rect = ag.FixationPixelRect(-2, 3, 1, 9)
    assert rect.clamped(4, 4) == (0, 3, 1, 4)
    assert rect.pixel_count(4, 4) == 9
    assert not rect.is_empty()
    assert ag.FixationPixelRect(2, 2, 0, 4).is_empty()
    assert ag.FixationPixelRect(5, 9, 0, 1).pixel_count(4, 4) == 0


def test_union():
    """§2: (0,3,0,2) and (2,4,1,3) in 4×4 cover 9; nothing, or no frame, covers 0."""
    assert ag.fixation_rect_union_pixel_count([(0, 3, 0, 2), (2, 4, 1, 3)], 4, 4) == 9
    assert ag.fixation_rect_union_pixel_count([], 4, 4) == 0
    assert ag.fixation_rect_union_pixel_count([(0, 3, 0, 2)], 0, 4) == 0


@pytest.mark.parametrize(
    ("points", "size", "stats"),
    [
        ([cell(2, 0, 0), cell(2, 0, 1)], (4, 4), (1, 2, 8)),
        ([cell(2, 0, 0), cell(2, 1, 0)], (4, 4), (2, 4, 8)),
        (all_cells(64), (64, 36), (64, 36, 2304)),
        (checkerboard(16), (64, 64), (128, 512, 2048)),
    ],
)
def test_plans(points, size, stats):
    """§2, the table; 64×64 checkerboard has ratio 0.5."""
    plan = ag.fixation_sparse_update_plan(points, *size)
    found = plan.stats()
    assert (found.rect_count, found.row_span_count, found.pixel_count) == stats
    assert plan.update_ratio() == found.update_ratio(*size) == stats[2] / (size[0] * size[1])


def test_plan_of_a_full_fine_grid():
    """§2: 640×360, all 64×64 cells, effective: 4,096 rectangles become 64, all pixels."""
    points = all_cells(64)
    assert len(ag.fixation_effective_cell_rects(points, 640, 360)) == 4096
    plan = ag.fixation_effective_sparse_update_plan(points, 640, 360)
    assert (len(plan.rects), plan.pixel_count) == (64, 230_400)


def test_plans_join_sort_and_clip():
    plan = ag.AutoGazeSparseUpdatePlan.new(8, 8, [(5, 9, 0, 2), (0, 2, 0, 2), (1, 4, 0, 2), (3, 3, 0, 8)])
    assert plan.rects == ((0, 4, 0, 2), (5, 8, 0, 2))
    assert plan.pixel_count == 14
    with pytest.raises(InvalidInputError, match="0x8 pixels"):
        ag.AutoGazeSparseUpdatePlan.new(0, 8, [])


def test_copying_rgba():
    """§2: plan (0,1,0,1) on 4×2 returns 1 and changes pixel 0 alone."""
    plan = ag.AutoGazeSparseUpdatePlan.new(4, 2, [(0, 1, 0, 1)])
    target = bytearray(32)
    assert ag.copy_sparse_update_rgba(bytes(range(1, 33)), target, plan) == 1
    assert target == bytes([1, 2, 3, 4]) + bytes(28)
    with pytest.raises(InvalidInputError, match="source has 3 bytes"):
        ag.copy_sparse_update_rgba(b"abc", target, plan)


def test_copying_tensors():
    plan = ag.AutoGazeSparseUpdatePlan.new(4, 2, [(1, 3, 0, 1)])
    source, target = np.ones((2, 4, 4), np.float32), np.zeros((2, 4, 4), np.float32)
    copied = ag.copy_sparse_update_tensor(source, target, plan)
    assert copied[..., 0].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert target.sum() == 0
    with pytest.raises(InvalidInputError, match=r"target has shape \[4, 2, 4\]"):
        ag.copy_sparse_update_tensor(source, target.reshape(4, 2, 4), plan)


def count(points, size, geometry, scale=1.0):
    rects = RECTS[geometry](points, *size, scale)
    return len(rects), ag.fixation_rect_union_pixel_count(rects, *size)


def test_geometries():
    """§3, the table, with exact edges: the deduplicated quarter has 1 cell and 12,544 pixels, not 14 and 12,769."""
    quarters, nested = all_cells(2), [cell(2, 0, 0), cell(14, 1, 1)]
    assert count(quarters, (28, 28), NATIVE)[1] == 784
    assert count(quarters, (28, 28), EFFECTIVE)[1] == 16
    assert count(nested, (28, 28), NATIVE) == (2, 196)
    assert count(nested, (28, 28), DEDUP) == (1, 196)
    assert ag.fixation_effective_cell_rects([cell(2, 0, 0)], 28, 28) == ((6, 8, 6, 8),)
    assert ag.fixation_effective_cell_rects([cell(2, 0, 0)], 28, 28, 3) == ((4, 10, 4, 10),)
    mixed = [cell(2, 0, 0), cell(4, 3, 3)]
    assert count(mixed, (16, 16), NATIVE)[1] == 80
    assert ag.fixation_effective_cell_rects(mixed, 16, 16) == ((3, 5, 3, 5), (13, 15, 13, 15))
    far = [box(1 / 36, 1 / 20, 1 / 18, 1 / 10), box(125.5 / 126, 69.5 / 70, 1 / 126, 1 / 70)]
    assert ag.fixation_effective_cell_rects(far, 1920, 1080) == ((45, 61, 46, 62), (1904, 1920, 1064, 1080))
    assert count(far, (1920, 1080), EFFECTIVE)[1] == 512
    assert count(all_cells(2, 4, 7, 14), (224, 224), DEDUP) == (4, 224 * 224)
    children = [cell(14, row, col) for row in range(7, 14) for col in range(7, 14)]
    assert count([cell(2, 1, 1), *children], (224, 224), DEDUP) == (1, 12_544)


def naive_deduplication(points, width, height):
    """§3, word for word."""
    order = sorted(points, key=lambda point: (-point.width, -point.height, point.grid))
    covered, kept = np.zeros((height, width), bool), []
    for point in order:
        ((x0, x1, y0, y1),) = ag.fixation_cell_rects([point], width, height)
        if not covered[y0:y1, x0:x1].all():
            kept.append((x0, x1, y0, y1))
            covered[y0:y1, x0:x1] = True
    return tuple(kept)


@given(seed=st.integers(0, 10_000), width=st.integers(1, 40), height=st.integers(1, 40))
def test_deduplication_is_the_sequential_rule(seed, width, height):
    """§3: also where cells are smaller than pixels and neighbours cover each other."""
    rng = np.random.default_rng(seed)
    points = [
        cell(int(grid), int(rng.integers(grid)), int(rng.integers(grid)))
        for grid in rng.choice([2, 4, 7, 14], rng.integers(0, 60))
    ]
    found = ag.fixation_deduplicated_cell_rects(points, width, height)
    assert found == naive_deduplication(points, width, height)
    native = ag.fixation_rect_union_pixel_count(ag.fixation_cell_rects(points, width, height), width, height)
    assert ag.fixation_rect_union_pixel_count(found, width, height) == native


@given(seed=st.integers(0, 10_000), width=st.integers(1, 60), height=st.integers(1, 60))
def test_the_counts_are_those_of_the_painted_mask(seed, width, height):
    """§2: pixel_count is true coverage, spans are runs of it."""
    cells = random_cells(np.random.default_rng(seed), 20)
    plan = ag.fixation_sparse_update_plan(cells, width, height)
    mask = np.zeros((height, width), bool)
    for x0, x1, y0, y1 in plan.rects:
        mask[y0:y1, x0:x1] = True
    padded = np.pad(mask, ((0, 0), (1, 0)))
    assert plan.pixel_count == mask.sum()
    assert plan.stats().row_span_count == (padded[:, 1:] & ~padded[:, :-1]).sum()
    np.testing.assert_array_equal(ag.fixation_alpha_mask(cells, width, height) > 0, mask)
