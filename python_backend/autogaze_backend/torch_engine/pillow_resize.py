"""Pillow's bilinear resize of bytes as integer tables, for devices that repeat it byte for byte.

Pillow resizes an axis at a time in 32-bit integers and rounds to bytes in between, so the order of the two
passes shows in the result (one level here and there). Which comes first is Pillow's choice and has changed
between its versions, so the installed one is asked: a frame of noise of the size in question is resized, and
the order is the one that explains the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from autogaze_client._errors import MissingExtraError
from numpy.typing import NDArray

# Fraction bits of Pillow's integer weights: 32, less 8 of a byte, less 2 against overflow.
PRECISION_BITS = 22

# Output places an axis at which the order is looked for, and how many pixels must tell no difference before
# there is taken to be none; small frames have few, so they are probed with more noise.
_PLACES = 48
_PIXELS = 10_000
_PROBES = 64


@dataclass(frozen=True)
class ResizePass:
    """One axis of the resize.

    Attributes:
        first: int32 ``[n]``: the first source place of each output place.
        weights: int32 ``[taps, n]``: of the places from there on; 0 beyond the last one that counts.
        size: source places.
    """

    first: NDArray[np.int32]
    weights: NDArray[np.int32]
    size: int

    def apply(self, pixels: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Some output places of the first axis of uint8 ``[size, m]``."""
        total = np.full((len(places), pixels.shape[1]), 1 << (PRECISION_BITS - 1), np.int32)
        for tap, weights in enumerate(self.weights):
            index = np.minimum(self.first[places] + tap, self.size - 1)
            total += pixels[index].astype(np.int32) * weights[places][:, None]
        clipped: NDArray[np.uint8] = np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)
        return clipped


@dataclass(frozen=True)
class ResizePlan:
    """Both axes; None where a size stays.

    Attributes:
        horizontal: along the width.
        vertical: along the height.
        vertical_first: the order of the passes.
    """

    horizontal: ResizePass | None
    vertical: ResizePass | None
    vertical_first: bool = False


@lru_cache(maxsize=64)
def resize_pass(size: int, target: int) -> ResizePass:
    """Pillow's antialiased bilinear weights from ``size`` places to ``target``."""
    scale = size / target
    support = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), size)
    taps = np.arange(int(np.ceil(support)) * 2 + 1)[:, None]
    distance = np.abs((taps + first - centre + 0.5) * (1.0 / support))
    weights = np.where((distance < 1) & (taps < last - first), 1.0 - distance, 0.0)
    total = np.zeros(target)
    # Added one after the other, as Pillow does: a pairwise sum would round differently.
    for row in weights:
        total += row
    fixed = (0.5 + weights / total * (1 << PRECISION_BITS)).astype(np.int32)
    used = int((last - first).max())
    return ResizePass(first.astype(np.int32), np.ascontiguousarray(fixed[:used]), size)


@lru_cache(maxsize=256)
def resize_plan(source: tuple[int, int], target: tuple[int, int]) -> ResizePlan | None:
    """How the installed Pillow resizes frames of one size.

    Args:
        source: height and width.
        target: likewise.

    Returns:
        The plan, or None where no order of the two passes gives this Pillow's bytes; Pillow must then do it.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    vertical = resize_pass(source[0], target[0]) if source[0] != target[0] else None
    horizontal = resize_pass(source[1], target[1]) if source[1] != target[1] else None
    plans = [ResizePlan(horizontal, vertical)]
    if horizontal is not None and vertical is not None:
        plans.append(ResizePlan(horizontal, vertical, vertical_first=True))
    elif horizontal is None and vertical is None:
        return plans[0]
    rows, columns = _places(target[0]), _places(target[1])
    for seed in range(min(_PROBES, -(-_PIXELS // (len(rows) * len(columns))))):
        noise = np.random.default_rng(seed).integers(0, 256, source, dtype=np.uint8)
        expected = _pillow(noise, target)[rows[:, None], columns]
        plans = [plan for plan in plans if np.array_equal(_sample(plan, noise, rows, columns), expected)]
        if not plans:
            return None
        if len(plans) == 1:
            break
    return plans[0]


def _sample(
    plan: ResizePlan, frame: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Some rows and columns of what a plan makes of uint8 ``[H, W]``."""

    def down(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return pixels[rows] if plan.vertical is None else plan.vertical.apply(pixels, rows)

    def across(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        turned = pixels.T
        return (turned[columns] if plan.horizontal is None else plan.horizontal.apply(turned, columns)).T

    return across(down(frame)) if plan.vertical_first else down(across(frame))


def _places(count: int) -> NDArray[np.int64]:
    """Places all over an axis, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _PLACES)).astype(np.int64))


def _pillow(frame: NDArray[np.uint8], target: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError.for_extra("resizing frames", "server", error) from error
    resized = Image.fromarray(frame).resize((target[1], target[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)
