"""The kernels that open a call: they lay out its tokens, with the angles of their positions."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze_backend.torch_engine.chaining import after_previous


@triton.jit
def _turn(place, angles, frequency, cos, sin, target, stored, HALF: tl.constexpr, ROUNDED: tl.constexpr):
    """Stores cosines and sines of positions: from the table as far as it goes, then as ``rotary.rotary_cos_sin``."""
    d = tl.arange(0, HALF)
    known = (place >= 0) & (place < ROUNDED)
    at = angles + place[:, None] * HALF + d[None, :]
    c = tl.load(at, mask=known[:, None], other=0.0)
    n = tl.load(at + ROUNDED * HALF, mask=known[:, None], other=0.0)
    if tl.max(place, 0) >= ROUNDED:
        # Sines of float64 are slow, and a clip never comes this far.
        angle = place.to(tl.float64)[:, None] * tl.load(frequency + d)[None, :]
        c = tl.where(known[:, None], c, tl.cos(angle).to(tl.float32))
        n = tl.where(known[:, None], n, tl.sin(angle).to(tl.float32))
    target = target[:, None] * HALF + d[None, :]
    tl.store(cos + target, c, mask=stored[:, None])
    tl.store(sin + target, n, mask=stored[:, None])


@triton.jit
def open_frame_kernel(
    slots,
    frame,
    plan,
    active,
    group,
    position,
    first,
    vision,
    embed,
    angles,
    frequency,
    x,
    cos,
    sin,
    count,
    calls,
    padding,
    WINDOW: tl.constexpr,
    PER_ROW: tl.constexpr,
    VISION: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr,
    HALF: tl.constexpr,
    ROUNDED: tl.constexpr,
    TILE: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Lays out the window's next frame: the valid ids of the last group, then the vision tokens, and their angles."""
    row = tl.program_id(0)
    rows = tl.load(active)
    after_previous(CHAINED)
    if row < rows:
        slot = tl.load(slots + row).to(tl.int64)
        window = tl.load(frame + slot) + 1
        s = tl.program_id(1) * TILE + tl.arange(0, TILE)
        k = tl.arange(0, GROUP_PAD)
        ids = tl.load(group + slot * GROUP + k, mask=k < GROUP, other=padding)
        valid = (ids != padding).to(tl.int32)
        rank = tl.cumsum(valid, 0) - 1
        leftover = tl.sum(valid, 0)
        hit = (rank[None, :] == s[:, None]) & (valid[None, :] != 0)
        token = tl.sum(tl.where(hit, ids[None, :], 0), 1)
        is_vision = (s >= leftover) & (s < leftover + VISION)
        c = tl.arange(0, WIDTH_PAD)
        inside = c[None, :] < WIDTH
        learned = tl.load(
            embed + token[:, None] * WIDTH + c[None, :], mask=(s < leftover)[:, None] & inside, other=0.0
        )
        seen = tl.load(
            vision + ((slot * WINDOW + window) * VISION + s - leftover)[:, None] * WIDTH + c[None, :],
            mask=is_vision[:, None] & inside,
            other=0.0,
        )
        r = row * PER_ROW + s
        tl.store(
            x + r[:, None] * WIDTH + c[None, :],
            learned.to(tl.float32) + seen.to(tl.float32),
            mask=(s < PER_ROW)[:, None] & inside,
        )
        place = tl.load(position + slot) + s
        _turn(place, angles, frequency, cos, sin, r, s < PER_ROW, HALF, ROUNDED)
        if tl.program_id(1) == 0:
            tl.store(count + row, leftover + VISION)
            if row == 0:
                tl.store(calls, tl.load(calls) + 1)
            dropped = tl.load(plan + (slot * WINDOW + window) * 3 + 2)
            tl.store(first + slot, tl.load(first + slot) + dropped)


@triton.jit
def open_step_kernel(
    slots,
    active,
    group,
    anchor,
    running,
    embed,
    angles,
    frequency,
    x,
    cos,
    sin,
    count,
    calls,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr,
    HALF: tl.constexpr,
    ROUNDED: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Lays out the group chosen last, at the positions of the frame's last vision tokens."""
    row = tl.program_id(0)
    rows = tl.load(active)
    after_previous(CHAINED)
    if row < rows:
        slot = tl.load(slots + row).to(tl.int64)
        k = tl.arange(0, GROUP_PAD)
        ids = tl.load(group + slot * GROUP + k, mask=k < GROUP, other=0)
        c = tl.arange(0, WIDTH_PAD)
        inside = (k < GROUP)[:, None] & (c < WIDTH)[None, :]
        r = row * GROUP + k
        learned = tl.load(embed + ids[:, None] * WIDTH + c[None, :], mask=inside, other=0.0)
        tl.store(x + r[:, None] * WIDTH + c[None, :], learned.to(tl.float32), mask=inside)
        place = tl.load(anchor + slot) - GROUP + k
        _turn(place, angles, frequency, cos, sin, r, k < GROUP, HALF, ROUNDED)
        tl.store(count + row, tl.where(tl.load(running + slot) != 0, GROUP, 0))
        if row == 0:
            tl.store(calls, tl.load(calls) + 1)
