"""The decoder's linear layers as Triton kernels.

Every kernel works on tokens as one flat axis: token ``r`` is token ``r % per_row`` of row ``r // per_row`` of
the batch. The grid is that of the largest batch of a captured graph; ``active`` (one int32 on the device) says
how many rows are real, and programs beyond them return at once.

The scale of a root-mean-square norm is the same for all columns of a token, so it is applied after the
product; the norm's weight lies in the matrix, or in half precision beside it (``weights.py``).

``PARTS`` is the number of float16 parts of a matrix: 1, or 2 where the arithmetic is float32 (``halves.py``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze_backend.torch_engine.chaining import after_all_but_previous, after_previous, after_previous_too
from autogaze_backend.torch_engine.halves import joined, product


@triton.jit
def _squares(TOKENS: tl.constexpr, SHARED: tl.constexpr):
    """Where squares are summed: one sum at the end takes less time, but registers that a large program lacks."""
    if TOKENS <= 16:  # noqa: SIM108 - Triton takes no choice between two types
        square = tl.zeros((TOKENS, SHARED), tl.float32)
    else:
        square = tl.zeros((TOKENS,), tl.float32)
    return square


@triton.jit
def _scale(square, WIDTH: tl.constexpr, EPSILON: tl.constexpr):
    """The factor of a root-mean-square norm, of each token."""
    if len(square.shape) == 2:
        square = tl.sum(square, 1)
    return tl.rsqrt(square / WIDTH + EPSILON)[:, None]


@triton.jit
def _angles(cos, sin, r, d, wanted, HALF: tl.constexpr):
    """How a token's queries and keys are turned."""
    angle = r[:, None] * HALF + d[None, :]
    c = tl.load(cos + angle, mask=wanted[:, None], other=0.0, cache_modifier=".cg")
    n = tl.load(sin + angle, mask=wanted[:, None], other=0.0, cache_modifier=".cg")
    return c, n


@triton.jit
def _places(slots, count, length, table, row, s, wanted, PAGE: tl.constexpr, MAX_PAGES: tl.constexpr):
    """Which tokens are kept, their places in the cache, and the pages of these."""
    slot = tl.load(slots + row, mask=wanted, other=0).to(tl.int64)
    kept = wanted & (s < tl.load(count + row, mask=wanted, other=0, cache_modifier=".cg"))
    place = tl.load(length + slot, mask=wanted, other=0, cache_modifier=".cg") + s
    return kept, place, tl.load(table + slot * MAX_PAGES + (place // PAGE) % MAX_PAGES, mask=kept, other=0)


@triton.jit(do_not_specialize=["per_row"])
def qkv_kernel(
    x,
    norm,
    weight,
    cos,
    sin,
    slots,
    active,
    count,
    length,
    table,
    query,
    cache,
    plane,
    per_row,
    OPENED: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    MAX_PAGES: tl.constexpr,
    EPSILON: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr,
    PARTS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Norm, query, key and value, rotation; keys and values go to their places in the cache.

    ``OPENED`` is for the first layer: the kernel before opened the call.
    """
    tokens = tl.load(active) * per_row
    start = tl.program_id(0) * TOKENS
    r = start + tl.arange(0, TOKENS)
    real = r < tokens
    units: tl.constexpr = HEADS // HEADS_AT_ONCE
    part = tl.program_id(1) // units
    j = tl.arange(0, HEADS_AT_ONCE * HALF)
    head = (tl.program_id(1) % units) * HEADS_AT_ONCE + j // HALF
    d = j % HALF
    if OPENED:
        after_previous(CHAINED)
    else:
        after_all_but_previous(CHAINED)
    row = r // per_row
    s = r % per_row
    if TOKENS <= 16:
        # A small program asks for what its end needs before the product, and in later layers before it may begin; a
        # large one has no registers to spare.
        c, n = _angles(cos, sin, r, d, real & (part < 2), HALF)
        kept, place, page = _places(slots, count, length, table, row, s, real & (part > 0), PAGE, MAX_PAGES)
    if not OPENED:
        after_previous_too(CHAINED)
    if start < tokens:
        column = part * WIDTH + head * 2 * HALF + d
        first = tl.zeros((TOKENS, HEADS_AT_ONCE * HALF), tl.float32)
        second = tl.zeros((TOKENS, HEADS_AT_ONCE * HALF), tl.float32)
        first_low = tl.zeros((TOKENS, HEADS_AT_ONCE * HALF), tl.float32)
        second_low = tl.zeros((TOKENS, HEADS_AT_ONCE * HALF), tl.float32)
        square = _squares(TOKENS, SHARED)
        for k0 in range(0, WIDTH, SHARED):
            k = k0 + tl.arange(0, SHARED)
            values = tl.load(x + r[:, None] * WIDTH + k[None, :], mask=real[:, None], other=0.0)
            square += values * values if TOKENS <= 16 else tl.sum(values * values, 1)
            if PARTS == 1:
                values *= tl.load(norm + k)[None, :]
            w = weight + k[:, None] * (3 * WIDTH) + column[None, :]
            first, first_low = product(values, w, WIDTH * 3 * WIDTH, first, first_low, PARTS)
            second, second_low = product(values, w + HALF, WIDTH * 3 * WIDTH, second, second_low, PARTS)
        if TOKENS > 16:
            # Anew, so that a large program does not keep them through the product.
            row = r // per_row
            s = r % per_row
        scale = _scale(square, WIDTH, EPSILON)
        first = joined(first, first_low, PARTS) * scale
        second = joined(second, second_low, PARTS) * scale
        if part < 2:
            if TOKENS > 16:
                c, n = _angles(cos, sin, r, d, real, HALF)
            rotated = first * c - second * n
            second = second * c + first * n
            first = rotated
        if part == 0:
            asked = query + ((row[:, None] * HEADS + head[None, :]) * per_row + s[:, None]) * (2 * HALF)
            asked += d[None, :]
            tl.store(asked, first.to(query.dtype.element_ty), mask=real[:, None])
            tl.store(asked + HALF, second.to(query.dtype.element_ty), mask=real[:, None])
        else:
            if TOKENS > 16:
                kept, place, page = _places(slots, count, length, table, row, s, real, PAGE, MAX_PAGES)
            base = (page.to(tl.int64)[:, None] * HEADS + head[None, :]) * PAGE + (place % PAGE)[:, None]
            target = cache + (part - 1).to(tl.int64) * PARTS * plane + base * (2 * HALF) + d[None, :]
            # Pages go from row to row, and what is masked there must be finite whatever a row was given. Numbers
            # that float16 cannot hold come from no sensible input, and a maximum takes the place of one that is none.
            first = tl.minimum(tl.maximum(first, -65504.0), 65504.0)
            second = tl.minimum(tl.maximum(second, -65504.0), 65504.0)
            first_high = first.to(tl.float16)
            second_high = second.to(tl.float16)
            tl.store(target, first_high, mask=kept[:, None])
            tl.store(target + HALF, second_high, mask=kept[:, None])
            if PARTS == 2:
                first_rest = ((first - first_high.to(tl.float32)) * 2048.0).to(tl.float16)
                second_rest = ((second - second_high.to(tl.float32)) * 2048.0).to(tl.float16)
                tl.store(target + plane, first_rest, mask=kept[:, None])
                tl.store(target + plane + HALF, second_rest, mask=kept[:, None])


@triton.jit(do_not_specialize=["per_row"])
def out_kernel(
    mixed,
    weight,
    x,
    y,
    active,
    count,
    per_row,
    LAST: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The attention's output product, added to the residual.

    With ``LAST`` a row has one token here, its read-out, whose residual is token ``count - 1`` of ``x``.
    """
    rows = tl.load(active)
    tokens = rows if LAST else rows * per_row
    start = tl.program_id(0) * TOKENS
    r = start + tl.arange(0, TOKENS)
    real = r < tokens
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    after_all_but_previous(CHAINED)
    if LAST:
        source = r * per_row + tl.load(count + r, mask=real, other=1, cache_modifier=".cg") - 1
        # A row that rests has no read-out token; what is computed for it is not used.
        source = tl.maximum(source, 0)
    else:
        source = r
    if TOKENS <= 16:
        # As in ``qkv_kernel``.
        residual = tl.load(
            x + source[:, None] * WIDTH + n[None, :], mask=real[:, None], other=0.0, cache_modifier=".cg"
        )
    after_previous_too(CHAINED)
    if start < tokens:
        total = tl.zeros((TOKENS, COLUMNS), tl.float32)
        low = tl.zeros((TOKENS, COLUMNS), tl.float32)
        for k0 in range(0, WIDTH, SHARED):
            k = k0 + tl.arange(0, SHARED)
            values = tl.load(mixed + r[:, None] * WIDTH + k[None, :], mask=real[:, None], other=0.0)
            w = weight + k[:, None] * WIDTH + n[None, :]
            total, low = product(values, w, WIDTH * WIDTH, total, low, PARTS)
        if TOKENS > 16:
            residual = tl.load(x + source[:, None] * WIDTH + n[None, :], mask=real[:, None], other=0.0)
        total = joined(total, low, PARTS) + residual
        tl.store(y + r[:, None] * WIDTH + n[None, :], total, mask=real[:, None])


@triton.jit(do_not_specialize=["per_row"])
def gate_up_kernel(
    x,
    norm,
    weight,
    hidden,
    active,
    per_row,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    EPSILON: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Norm, gate and up, and the gated product."""
    tokens = tl.load(active) * per_row
    after_previous(CHAINED)
    start = tl.program_id(0) * TOKENS
    if start < tokens:
        r = start + tl.arange(0, TOKENS)
        real = r < tokens
        n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        gate = tl.zeros((TOKENS, COLUMNS), tl.float32)
        up = tl.zeros((TOKENS, COLUMNS), tl.float32)
        gate_low = tl.zeros((TOKENS, COLUMNS), tl.float32)
        up_low = tl.zeros((TOKENS, COLUMNS), tl.float32)
        square = _squares(TOKENS, SHARED)
        for k0 in range(0, WIDTH, SHARED):
            k = k0 + tl.arange(0, SHARED)
            values = tl.load(x + r[:, None] * WIDTH + k[None, :], mask=real[:, None], other=0.0)
            square += values * values if TOKENS <= 16 else tl.sum(values * values, 1)
            if PARTS == 1:
                values *= tl.load(norm + k)[None, :]
            w = weight + k[:, None] * (2 * INNER) + n[None, :]
            gate, gate_low = product(values, w, WIDTH * 2 * INNER, gate, gate_low, PARTS)
            up, up_low = product(values, w + INNER, WIDTH * 2 * INNER, up, up_low, PARTS)
        scale = _scale(square, WIDTH, EPSILON)
        gate = joined(gate, gate_low, PARTS) * scale
        up = joined(up, up_low, PARTS) * scale
        gated = gate / (1.0 + tl.exp(-gate)) * up
        tl.store(
            hidden + r[:, None] * INNER + n[None, :], gated.to(hidden.dtype.element_ty), mask=real[:, None]
        )


@triton.jit(do_not_specialize=["per_row"])
def down_kernel(
    hidden,
    weight,
    x,
    active,
    per_row,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The product back to the residual's width, added to it in place."""
    tokens = tl.load(active) * per_row
    start = tl.program_id(0) * TOKENS
    r = start + tl.arange(0, TOKENS)
    real = r < tokens
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = x + r[:, None] * WIDTH + n[None, :]
    after_all_but_previous(CHAINED)
    if TOKENS <= 16:
        # As in ``qkv_kernel``.
        residual = tl.load(at, mask=real[:, None], other=0.0, cache_modifier=".cg")
    after_previous_too(CHAINED)
    if start < tokens:
        total = tl.zeros((TOKENS, COLUMNS), tl.float32)
        low = tl.zeros((TOKENS, COLUMNS), tl.float32)
        for k0 in range(0, INNER, SHARED):
            k = k0 + tl.arange(0, SHARED)
            values = tl.load(hidden + r[:, None] * INNER + k[None, :], mask=real[:, None], other=0.0)
            w = weight + k[:, None] * WIDTH + n[None, :]
            total, low = product(values, w, INNER * WIDTH, total, low, PARTS)
        if TOKENS > 16:
            residual = tl.load(at, mask=real[:, None], other=0.0)
        tl.store(at, joined(total, low, PARTS) + residual, mask=real[:, None])


@triton.jit
def heads_kernel(
    x,
    weight,
    logits,
    active,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    EPSILON: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The last norm and all heads of a row's read-out token, float32: logits of every head, then the losses."""
    tokens = tl.load(active)
    after_previous(CHAINED)
    start = tl.program_id(0) * TOKENS
    if start < tokens:
        r = start + tl.arange(0, TOKENS)
        real = r < tokens
        n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros((TOKENS, COLUMNS), tl.float32)
        low = tl.zeros((TOKENS, COLUMNS), tl.float32)
        square = _squares(TOKENS, SHARED)
        for k0 in range(0, WIDTH, SHARED):
            k = k0 + tl.arange(0, SHARED)
            values = tl.load(x + r[:, None] * WIDTH + k[None, :], mask=real[:, None], other=0.0)
            square += values * values if TOKENS <= 16 else tl.sum(values * values, 1)
            w = weight + k[:, None] * STRIDE + n[None, :]
            total, low = product(values, w, WIDTH * STRIDE, total, low, 2)
        total = joined(total, low, 2) * _scale(square, WIDTH, EPSILON)
        tl.store(logits + r[:, None] * STRIDE + n[None, :], total, mask=real[:, None])
