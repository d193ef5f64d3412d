"""Resizing of normalised floats along one axis: bicubic and bilinear, without antialias, half-pixel centres.

An output value is a sum of a few products, in the order of the taps, each product and each sum rounded to
float32. So it has the same bits on every processor, which a matrix product does not promise, and the devices
use the same tables (``torch_engine.preprocessing``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# The cubic convolution coefficient of torch's bicubic interpolation.
_CUBIC = -0.75


@dataclass(frozen=True)
class Taps:
    """What each output place of an axis is made of.

    Attributes:
        index: int32 ``[taps, n]``: source places.
        weight: float32 ``[taps, n]``.
    """

    index: NDArray[np.int32]
    weight: NDArray[np.float32]

    def part(self, start: int, stop: int) -> Taps:
        """The taps of a range of output places."""
        return Taps(self.index[:, start:stop], self.weight[:, start:stop])

    def resize(self, video: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        """Resizes one axis.

        Args:
            video: float32 ``[..., H, W]``.
            axis: -1 for the width, -2 for the height.

        Returns:
            float32 of n places along the axis.
        """
        height, width = video.shape[-2:]
        count = self.index.shape[1]
        shape = (height, count) if axis == -1 else (count, width)
        weights = self.weight if axis == -1 else self.weight[:, :, None]
        out = np.empty((*video.shape[:-2], *shape), np.float32)
        # Plane by plane, so that the taps of one are still in the processor's cache.
        for plane, target in zip(video.reshape(-1, height, width), out.reshape(-1, *shape), strict=True):
            for tap, (index, weight) in enumerate(zip(self.index, weights, strict=True)):
                product = np.take(plane, index, axis=axis)
                product *= weight
                if tap:
                    target += product
                else:
                    target[:] = product
        return out


@lru_cache(maxsize=32)
def cubic_taps(size: int, target: int) -> Taps:
    """Bicubic, from ``size`` places to ``target``; the edge's place repeats beyond it."""
    # torch takes the scale in float32 and fuses the multiply and the subtraction into one rounding.
    scale = np.float64(np.float32(size) / np.float32(target))
    centre = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    base = np.floor(centre)
    offsets = np.arange(-1, 3)[:, None]
    distance = np.abs((centre - base).astype(np.float64) - offsets)
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    index = np.clip(base.astype(np.int64) + offsets, 0, size - 1)
    return Taps(index.astype(np.int32), np.where(distance <= 1, near, far).astype(np.float32))


@lru_cache(maxsize=32)
def bilinear_taps(size: int, target: int) -> Taps:
    """Bilinear, from ``size`` places to ``target``; the edge's place repeats beyond it."""
    scale = np.float64(np.float32(size) / np.float32(target))
    centre = np.maximum(((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32), np.float32(0))
    low = np.minimum(centre.astype(np.int64), size - 1)
    fraction = centre - low
    index = np.stack([low, np.minimum(low + 1, size - 1)])
    return Taps(index.astype(np.int32), np.stack([1 - fraction, fraction]).astype(np.float32))
