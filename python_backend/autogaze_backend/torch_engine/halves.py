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
def after_previous(CHAINED: tl.constexpr):
    """Waits for the end of the kernel before, and lets the next one of the chain start its launch.

    ``CHAINED`` is 1 to let it start after the wait: then one kernel is launched ahead. With 2 it starts before: then
    every kernel is launched as soon as the one before it waits, and half a call lies on the multiprocessors at
    once. That takes room from small kernels at work, but fills the multiprocessors that large ones leave one by one.
    0 is for devices that cannot.

    What the host sent for the call (how many rows, which slots) does not change along the chain, so it may be
    read before.
    """
    if CHAINED == 2:
        tl.extra.cuda.gdc_launch_dependents()
    if CHAINED > 0:
        tl.extra.cuda.gdc_wait()
    if CHAINED == 1:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def after_all_but_previous(CHAINED: tl.constexpr):
    """Waits for the end of every kernel but the one before, which ``after_previous_too`` waits for.

    With one kernel launched ahead that is so from the start, since the one before has waited. What is loaded between
    the two comes while the one before works. It must go past the first-level cache (``.cg``), which may remember what
    was there earlier.
    """
    if CHAINED != 1:
        after_previous(CHAINED)


@triton.jit
def after_previous_too(CHAINED: tl.constexpr):
    """See ``after_all_but_previous``."""
    if CHAINED == 1:
        after_previous(CHAINED)


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
