"""Rows cited as "readout §6" are the worked examples of the behavioural specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
from autogaze_client import (
    DEFAULT_METRIC_EMA_ALPHA,
    AutoGazeEmaMetric,
    AutoGazeGazeRatioStats,
    AutoGazePsnrStats,
    InvalidInputError,
    ema_metric,
    format_fps,
    format_gaze_ratio_percent,
    format_psnr_db,
    fps_from_millis,
    rgba_psnr_db,
    sanitize_gaze_ratio,
    task_loss_requirement_from_l1_db,
    task_loss_requirement_to_l1_db,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("db", "requirement"),
    [
        (20, 0.1),
        (3.0103, 0.70710677),
        (-5, 1),
        (0, 1),
        (math.inf, 0),
        (math.nan, math.nan),
        (-math.inf, math.nan),
    ],
)
def test_requirement_of_db(db, requirement):
    """readout §6, rows "from 20 dB", "from 3.0103; from −5; from 0", and the rule."""
    found = task_loss_requirement_from_l1_db(db)
    assert found == pytest.approx(np.float32(requirement), abs=0, rel=1e-7, nan_ok=True)


@pytest.mark.parametrize(
    ("requirement", "db"),
    [
        (0.45, 6.935749724),
        (0, math.inf),
        (-1, math.inf),
        (0.7, 3.0980391997),
        (1, 0),
        (2, -6.0205999),
        (math.nan, math.nan),
        (math.inf, math.nan),
    ],
)
def test_db_of_requirement(requirement, db):
    """readout §6, rows "to dB of .45", "to dB of 0", "to dB of .7; 1; 2", and the rule."""
    assert task_loss_requirement_to_l1_db(requirement) == pytest.approx(db, nan_ok=True)


def test_db_of_one_is_a_plain_zero():
    """readout §9.12: the reference gives −0.0, which prints as ``-00.0``."""
    assert math.copysign(1, task_loss_requirement_to_l1_db(1.0)) == 1
    assert format_psnr_db(-0.0) == format_fps(-0.0) == "000.0"


@given(st.floats(0, 120))
def test_db_round_trip(db):
    assert task_loss_requirement_to_l1_db(task_loss_requirement_from_l1_db(db)) == pytest.approx(db, abs=1e-5)


def test_gaze_ratio_is_sanitised():
    """readout §6, rows "gaze ratio 2, −1" and "then NaN, .5"."""
    stats = AutoGazeGazeRatioStats()
    seen = []
    for value in (2, -1, math.nan, 0.5):
        stats.record(value)
        seen.append((stats.current, round(stats.ema, 9)))
    assert seen == [(1, 1), (0, 0.85), (0, 0.7225), (0.5, 0.689125)]
    assert (sanitize_gaze_ratio(math.inf), sanitize_gaze_ratio(0.25)) == (0, 0.25)


def test_psnr_stream():
    """readout §6, row "PSNR 30, 40, inf, 20, NaN"."""
    stats = AutoGazePsnrStats()
    seen = []
    for value in (30, 40, math.inf, 20, math.nan):
        stats.record(value)
        seen.append(stats.ema)
    assert seen == [30, 31.5, math.inf, 20, 20]


def test_psnr_stream_that_starts_exact():
    """readout §6, row "PSNR inf, 42.25, NaN"."""
    stats = AutoGazePsnrStats()
    texts = []
    for value in (math.inf, 42.25, math.nan, -math.inf):
        stats.record(value)
        texts.append((stats.ema, format_psnr_db(stats.current)))
    assert texts == [(math.inf, "999.9"), *[(42.25, "042.2")] * 3]
    assert format_psnr_db(math.nan) == format_psnr_db(-math.inf) == "---.-"


def test_running_mean():
    metric = AutoGazeEmaMetric()
    assert (metric.alpha, metric.current, metric.ema) == (DEFAULT_METRIC_EMA_ALPHA, 0, 0)
    assert not metric.is_initialized
    metric.record(4)
    metric.record(8)
    assert (metric.current, metric.ema) == (8, pytest.approx(4.6))
    assert (ema_metric(1, 2, 5), ema_metric(1, 2, -5), ema_metric(math.inf, 2, 0.5)) == (2, 1, 2)
    with pytest.raises(InvalidInputError, match="value is NaN"):
        metric.record(math.nan)
    with pytest.raises(InvalidInputError, match="alpha is NaN"):
        AutoGazeEmaMetric(math.nan)


@pytest.mark.parametrize(
    ("fps", "text"), [(7.5, "007.5"), (1000, "999.9"), (-3, "000.0"), (math.inf, "---.-")]
)
def test_fps_text(fps, text):
    """readout §6, row "fps 7.5 / 1000 / −3 / inf"."""
    assert format_fps(fps) == text


def test_other_texts():
    assert (fps_from_millis(40), fps_from_millis(0), fps_from_millis(-1)) == (25, 0, 0)
    assert [format_gaze_ratio_percent(value) for value in (0.42, 2, -1, math.nan)] == [
        "042.0%",
        "100.0%",
        "000.0%",
        "---.-%",
    ]


def test_psnr_of_pictures():
    """readout §6, row "RGB (10,20,30) vs (20,20,30)"; alpha is ignored, identical pictures give +inf."""
    left = np.array([[[10, 20, 30, 255]]], np.uint8)
    right = np.array([[[20, 20, 30, 0]]], np.uint8)
    assert rgba_psnr_db(left, right) == pytest.approx(32.902016)
    assert rgba_psnr_db(left.tobytes(), left) == math.inf


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (b"", b"", "reference has 0 values"),
        (b"1234", b"12345", "output has 5 values"),
        (b"1234", b"12345678", "1 pixels and output 2"),
        (np.zeros(4), b"1234", "float64"),
    ],
)
def test_pictures_that_cannot_be_compared(left, right, message):
    with pytest.raises(InvalidInputError, match=message):
        rgba_psnr_db(left, right)
