"""When a kernel of a chain may begin: it is launched while the one before is at work, and waits for it inside."""

from __future__ import annotations

import triton
import triton.language as tl


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
