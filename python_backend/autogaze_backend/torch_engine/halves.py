"""Float32 products on float16 tensor cores: a number as the sum of two halves.

``x ≈ high + low / 2048`` with ``high = float16(x)`` and ``low = float16((x - high) · 2048)`` keeps 22 of the 24
bits of a float32; the factor keeps ``low`` out of float16's small numbers. A product of two such numbers is three
products of halves with float32 sums (the fourth is below a float32's last bit), the two small ones in a sum of
their own. Weights and the cache are stored as two planes, what is computed is split on the way.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

LOW_SCALE = 2048.0


def split_halves(values: NDArray[np.float64]) -> NDArray[np.float16]:
    """float16 ``[2, *shape]``: the high and the low part of each value."""
    high = values.astype(np.float16)
    return np.stack((high, ((values - high.astype(np.float64)) * LOW_SCALE).astype(np.float16)))


@triton.jit
def product(values, weight, plane, total, low, PARTS: tl.constexpr):
    """Adds ``values @ weight`` to the sums; ``weight`` points at the first part, ``plane`` elements before the next.

    Float32 values keep their bits with a weight of one part, too: what float16 leaves of them is large enough for it.
    """
    w = tl.load(weight)
    high_values = values.to(tl.float16)
    total = tl.dot(high_values, w, total)
    if PARTS == 1 and values.dtype == tl.float32:
        total = tl.dot((values - high_values.to(tl.float32)).to(tl.float16), w, total)
    if PARTS == 2:
        w_low = tl.load(weight + plane)
        low_values = ((values - high_values.to(tl.float32)) * 2048.0).to(tl.float16)
        low = tl.dot(high_values, w_low, low)
        low = tl.dot(low_values, w, low)
    return total, low


@triton.jit
def joined(total, low, PARTS: tl.constexpr):
    """The sum of the two sums."""
    if PARTS == 2:
        total += low * (1.0 / 2048.0)
    return total
