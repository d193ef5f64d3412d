"""Rows cited as "readout §7" are the worked examples of the behavioural specification."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from autogaze_client import (
    AutoGazePatchDiffConfig,
    AutoGazeReadoutStats,
    AutoGazeSparseMaskSource,
    FixationPoint,
    InvalidInputError,
    patch_diff_device_mask,
    patch_diff_device_mask_async,
    patch_diff_points_to_traces,
    patch_diff_readout_points,
    patch_diff_readout_points_async,
    patch_diff_scores,
)
from hypothesis import given
from hypothesis import strategies as st


def clip(height: int, width: int, rows: slice, cols: slice) -> np.ndarray:
    """Two black frames, a part of the last one white."""
    video = np.zeros((1, 2, 3, height, width), np.float32)
    video[0, 1, :, rows, cols] = 1
    return video


def config(grid: int, threshold: float = 0.45) -> AutoGazePatchDiffConfig:
    return AutoGazePatchDiffConfig(grid, threshold)


def test_a_changed_quarter():
    """readout §7, row "28×28, bottom-right quarter 0→1, grid 2, threshold .25"."""
    run = patch_diff_readout_points(clip(28, 28, slice(14, 28), slice(14, 28)), config(2, 0.25))
    assert run.points == (((), (FixationPoint.with_grid_extent(0.75, 0.75, 0.5, 0.5, 1, 2),)),)
    assert (run.frame_index, run.model_frames, run.stats) == (1, 2, AutoGazeReadoutStats(1, 1, 0))


def test_a_changed_cell():
    """readout §7, row "28×28, rows 10–11, cols 8–9 changed, grid 14"."""
    video = clip(28, 28, slice(10, 12), slice(8, 10))
    assert np.flatnonzero(patch_diff_scores(video)).tolist() == [74]
    (point,) = patch_diff_readout_points(video).points[0][1]
    assert (point.x, point.y, point.width) == pytest.approx((0.321429, 0.392857, 1 / 14), abs=1e-6)


def test_scores_are_means():
    """readout §7, row "4×4, 3 of 4 pixels of cell 0 changed, grid 2"."""
    video = clip(4, 4, slice(0, 2), slice(0, 2))
    video[0, 1, :, 1, 1] = 0
    assert patch_diff_scores(video, config(2)).tolist() == [[0.75, 0, 0, 0]]


def test_mask_of_a_cell():
    """readout §7, row "4×4, cell 0 changed, grid 2, 4×4 output"."""
    found = patch_diff_device_mask(clip(4, 4, slice(0, 2), slice(0, 2)), config(2), 4, 4)
    assert (found.active_cell_count, found.mask.stats.pixel_count) == (1, 4)
    assert found.mask.alpha.shape == (4, 4, 1)
    assert np.argwhere(found.mask.alpha[..., 0]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found.mask.stats.update_ratio(4, 4) == 0.25
    assert (found.grid_size, found.frame_index, found.model_frames) == (2, 1, 2)
    assert found.stats == AutoGazeReadoutStats(1, 1, 0)


def test_a_grid_that_does_not_divide():
    """readout §7, row "5×7, rows 0–2, cols 0–3 changed, grid 3, threshold .1"."""
    video = clip(5, 7, slice(0, 3), slice(0, 4))
    scores = patch_diff_scores(video, config(3))[0]
    assert scores.tolist() == pytest.approx([1, 2 / 3, 0, 2 / 3, 4 / 9, 0, 0, 0, 0])
    found = asyncio.run(patch_diff_device_mask_async(video, config(3, 0.1), 5, 7))
    assert found.mask.stats.pixel_count == found.mask.alpha.sum() == 20
    assert found.mask.stats.row_span_count == 4


def test_one_frame_has_no_points():
    """readout §7, row "one frame, threshold 0"."""
    run = asyncio.run(patch_diff_readout_points_async(np.ones((1, 1, 3, 4, 4)), config(2, 0)))
    assert (run.points, run.frame_index, run.model_frames) == ((((),),), 0, 1)


@pytest.mark.parametrize(
    ("threshold", "cells", "confidences"),
    [(0.45, [3, 0, 2], [1, 1, 1]), (0.5, [3], [1]), (0, [3, 0, 2, 1], [0.9, 0.5, 0.5, 0.2])],
)
def test_most_changed_first(threshold, cells, confidences):
    """readout §7, row "diffs .5 .2 .5 .9 (2×2), default / .5 / 0"."""
    video = np.zeros((1, 2, 1, 2, 2))
    video[0, 1, 0] = [[0.5, 0.2], [0.5, 0.9]]
    points = patch_diff_readout_points(video, config(2, threshold)).points[0][1]
    assert [int(point.y * 2) * 2 + int(point.x * 2) for point in points] == cells
    assert [point.confidence for point in points] == pytest.approx(confidences)


@given(st.integers(1, 15), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_counts_are_those_of_the_painted_mask(grid, height, width, seed):
    """readout §9.11: the reference's pixel count can differ from its mask, and its row spans are H."""
    changed = np.random.default_rng(seed).random((1, 2, 1, grid, grid))
    found = patch_diff_device_mask(changed, config(grid, 0.3), height, width)
    alpha = found.mask.alpha[..., 0]
    starts = (alpha > 0) & (np.pad(alpha, ((0, 0), (1, 0)))[:, :-1] == 0)
    assert found.mask.stats.pixel_count == alpha.sum()
    assert found.mask.stats.row_span_count == starts.sum()
    assert found.mask.stats.rect_count == found.active_cell_count == len(found.points)


def test_traces_of_points():
    """readout §7, ``patch_diff_points_to_traces``: padded to max(n, 1), stop 1."""
    points = patch_diff_readout_points(clip(4, 4, slice(0, 2), slice(0, 2)), config(2)).points
    (trace,) = patch_diff_points_to_traces(points, 0)
    assert [len(frame) for frame in trace.frames] == [1, 1]
    assert [frame.stop_probability for frame in trace.frames] == [1, 1]
    assert [frame.top_point().confidence for frame in trace.frames] == [0, 1]


def test_configs():
    assert AutoGazePatchDiffConfig() == config(14, 0.45)
    assert AutoGazePatchDiffConfig.new(0, 1) == config(1, 1)
    assert config(3, math.nan).normalized() == config(3, 0.45)
    assert config(3, -1).normalized() == config(3, 0)
    assert config(3).token_budget() == 9
    model, diff = AutoGazeSparseMaskSource(), AutoGazeSparseMaskSource.patch_diff()
    assert (model.requires_autogaze_model(), model.is_patch_diff()) == (True, False)
    assert (diff.requires_autogaze_model(), diff.is_patch_diff()) == (False, True)
    assert AutoGazeSparseMaskSource.autogaze() == model
    assert diff.config == config(14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: config(0), "grid_size is 0"),
        (lambda: patch_diff_scores(np.zeros((1, 2, 0, 4, 4))), "video has shape"),
        (lambda: patch_diff_readout_points(np.zeros((2, 4, 4))), "video has shape"),
        (
            lambda: patch_diff_readout_points(np.zeros((1, 2, 1, 4, 4)), config(2, math.nan)),
            "threshold is nan",
        ),
        (lambda: patch_diff_device_mask(np.zeros((2, 2, 1, 4, 4)), None, 4, 4), "batch of 2"),
        (lambda: patch_diff_device_mask(np.zeros((1, 2, 1, 4, 4)), None, 0, 4), "height is 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
