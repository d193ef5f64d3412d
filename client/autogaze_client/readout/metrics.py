"""Decibels, running means and fixed-width texts of viewers (spec: readout §6)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client.readout import _checks

__all__ = [
    "DEFAULT_METRIC_EMA_ALPHA",
    "AutoGazeEmaMetric",
    "AutoGazeGazeRatioStats",
    "AutoGazePsnrStats",
    "ema_metric",
    "format_fps",
    "format_gaze_ratio_percent",
    "format_psnr_db",
    "fps_from_millis",
    "rgba_psnr_db",
    "sanitize_gaze_ratio",
    "task_loss_requirement_from_l1_db",
    "task_loss_requirement_to_l1_db",
]

DEFAULT_METRIC_EMA_ALPHA = 0.15
"""The weight of a new value in a running mean."""

_UNKNOWN = "---.-"
_PEAK = 255.0


def task_loss_requirement_from_l1_db(db: float) -> float:
    """The task-loss requirement of a quality in dB: ``10^(−dB / 20)``, rounded to float32 as on the wire.

    This is the scale of the L1 reconstruction loss that the model predicts, not PSNR (seed).

    Args:
        db: the quality. Below 0 counts as 0, since a requirement above 1 asks for nothing; +inf gives 0; NaN
            and −inf give NaN.

    Example:
        >>> round(task_loss_requirement_from_l1_db(20), 6)
        0.1
    """
    if math.isnan(db) or db == -math.inf:
        return math.nan
    return float(np.float32(10.0 ** (-max(db, 0.0) / 20.0)))


def task_loss_requirement_to_l1_db(requirement: float) -> float:
    """The quality in dB of a task-loss requirement: ``−20 · log10``, negative above 1.

    Zero and less give +inf; NaN and +inf give NaN.
    """
    if math.isnan(requirement) or requirement == math.inf:
        return math.nan
    if requirement <= 0:
        return math.inf
    return 0.0 - 20.0 * math.log10(requirement)


def ema_metric(previous: float, current: float, alpha: float) -> float:
    """``previous · (1 − alpha) + current · alpha``, or ``current`` where one of them is not finite.

    Args:
        previous: the running mean.
        current: the new value.
        alpha: its weight, clamped to 0..1.

    Raises:
        InvalidInputError: ``alpha`` is NaN.
    """
    if not (math.isfinite(previous) and math.isfinite(current)):
        return current
    weight = min(max(_checks.number("alpha", alpha), 0.0), 1.0)
    return previous * (1.0 - weight) + current * weight


class AutoGazeEmaMetric:
    """A value and its running mean; both are 0 until the first value, which sets both.

    Attributes:
        alpha: the weight of a new value.
        current: the last value.
        ema: the running mean. An infinite value replaces it, and the next finite one starts it again.
        is_initialized: whether a value was recorded.
    """

    def __init__(self, alpha: float = DEFAULT_METRIC_EMA_ALPHA) -> None:
        self.alpha = _checks.number("alpha", alpha)
        self.current = 0.0
        self.ema = 0.0
        self.is_initialized = False

    def record(self, value: float) -> None:
        """Takes a value.

        Raises:
            InvalidInputError: it is NaN (which the reference takes into the mean).
        """
        self.current = _checks.number("value", value)
        self.ema = ema_metric(self.ema, self.current, self.alpha) if self.is_initialized else self.current
        self.is_initialized = True


class AutoGazeGazeRatioStats(AutoGazeEmaMetric):
    """The share of tokens that were chosen, and its running mean."""

    def record(self, value: float) -> None:
        """Takes a ratio through ``sanitize_gaze_ratio``, so what is not finite counts as 0."""
        super().record(sanitize_gaze_ratio(value))


class AutoGazePsnrStats(AutoGazeEmaMetric):
    """A PSNR in dB and its running mean; +inf is an exact picture."""

    def record(self, value: float) -> None:
        """Takes a PSNR; NaN and −inf mean that there is none, and change nothing."""
        if not math.isnan(value) and value != -math.inf:
            super().record(value)


def sanitize_gaze_ratio(ratio: float) -> float:
    """The ratio clamped to 0..1; 0 where it is not finite."""
    return min(max(ratio, 0.0), 1.0) if math.isfinite(ratio) else 0.0


def fps_from_millis(milliseconds: float) -> float:
    """Frames a second at so many milliseconds a frame; 0 where that is not positive."""
    return 1000.0 / milliseconds if milliseconds > 0 else 0.0


def format_fps(fps: float) -> str:
    """``007.5``: five characters, at most 999.9; ``---.-`` where it is not finite."""
    return _fixed(fps)


def format_psnr_db(db: float) -> str:
    """``042.2``: five characters, at most 999.9, which also stands for +inf; ``---.-`` for NaN and −inf."""
    return _fixed(999.9 if db == math.inf else db)


def format_gaze_ratio_percent(ratio: float) -> str:
    """``042.0%``: the ratio, clamped to 0..1, in percent; ``---.-%`` where it is not finite."""
    return _fixed(sanitize_gaze_ratio(ratio) * 100.0 if math.isfinite(ratio) else ratio) + "%"


def rgba_psnr_db(reference: NDArray[np.uint8] | bytes, output: NDArray[np.uint8] | bytes) -> float:
    """Peak signal-to-noise ratio of two RGBA pictures in dB over red, green and blue; alpha is ignored.

    ``10 · log10(255² / mean squared error)``; identical pictures give +inf.

    Args:
        reference: uint8 of any shape, four values a pixel.
        output: likewise.

    Raises:
        InvalidInputError: not uint8, no pixels, different lengths, or a length that is no multiple of 4.
    """
    pixels = [_rgba(name, picture) for name, picture in (("reference", reference), ("output", output))]
    if len(pixels[0]) != len(pixels[1]):
        raise InvalidInputError(
            f"reference has {len(pixels[0])} pixels and output {len(pixels[1])}; they must be of one size"
        )
    error = float(np.mean(np.square(pixels[0][:, :3] - pixels[1][:, :3])))
    return math.inf if error == 0 else 10.0 * math.log10(_PEAK * _PEAK / error)


def _rgba(name: str, picture: Any) -> NDArray[np.float64]:
    values = np.frombuffer(picture, np.uint8) if isinstance(picture, (bytes, bytearray)) else picture
    values = np.asarray(values)
    if values.dtype != np.uint8 or values.size == 0 or values.size % 4:
        raise InvalidInputError(
            f"{name} has {values.size} values of {values.dtype}; it must be uint8, four a pixel, and not empty"
        )
    return values.reshape(-1, 4).astype(np.float64)


def _fixed(value: float) -> str:
    if not math.isfinite(value):
        return _UNKNOWN
    # Adding 0 turns −0.0 into 0.0.
    return f"{min(max(value, 0.0), 999.9) + 0.0:05.1f}"
