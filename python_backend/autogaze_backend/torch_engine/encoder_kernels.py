"""The encoder's steps as Triton kernels, one each, so that nothing is stored but what the next one reads."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze_backend.torch_engine.halves import joined, product


@triton.jit(do_not_specialize=["frames", "state_stride"])
def convolution_kernel(
    x,
    state,
    state_rows,
    fresh,
    weight,
    bias,
    y,
    rows,
    frames,
    state_stride,
    GRID: tl.constexpr,
    WIDTH: tl.constexpr,
    TIME: tl.constexpr,
    SPACE: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """``y[b, t, p] = relu(bias + Σ weight[τ, δ] · input[b, t + τ − (TIME − 1), p + δ])``; zeros outside the grid.

    Inputs before the window come from ``state``, ``[rows, TIME − 1, grid², C]`` with ``state_stride`` elements a
    row, whose row for batch row b is ``state_rows[b]``; they are zeros where ``fresh[b]``. ``weight`` is
    ``[parts, TIME · SPACE · SPACE · C, C]``.
    """
    area: tl.constexpr = GRID * GRID
    r = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    real = r < rows * frames * area
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = r % area
    frame = r // area
    b = frame // frames
    t = frame % frames
    row_state = tl.load(state_rows + b, mask=real, other=0).to(tl.int64) * state_stride
    known = tl.load(fresh + b, mask=real, other=1) == 0
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    low = tl.zeros((TOKENS, COLUMNS), tl.float32)
    chunks: tl.constexpr = WIDTH // SHARED
    for step in range(TIME * SPACE * SPACE * chunks):
        tap = step // chunks
        k = (step % chunks) * SHARED + tl.arange(0, SHARED)
        source = t + tap // (SPACE * SPACE) - (TIME - 1)
        row = place // GRID + (tap // SPACE) % SPACE - SPACE // 2
        column = place % GRID + tap % SPACE - SPACE // 2
        inside = real & (row >= 0) & (row < GRID) & (column >= 0) & (column < GRID)
        cell = row * GRID + column
        now = x + ((b * frames + source) * area + cell) * WIDTH
        past = state + row_state + ((source + TIME - 1) * area + cell) * WIDTH
        pointer = tl.where(source >= 0, now, past)
        values = tl.load(
            pointer[:, None] + k[None, :], mask=(inside & ((source >= 0) | known))[:, None], other=0.0
        )
        w = weight + (tap * WIDTH + k)[:, None] * WIDTH + n[None, :]
        total, low = product(values, w, TIME * SPACE * SPACE * WIDTH * WIDTH, total, low, PARTS)
    total = joined(total, low, PARTS) + tl.load(bias + n)[None, :]
    total = tl.maximum(total, 0.0)
    tl.store(y + r[:, None] * WIDTH + n[None, :], total.to(y.dtype.element_ty), mask=real[:, None])


@triton.jit(do_not_specialize=["frames"])
def patch_kernel(
    pixels,
    weight,
    bias,
    norm,
    norm_bias,
    x,
    frames,
    GRID: tl.constexpr,
    PATCH: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr,
    EPSILON: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    PARTS: tl.constexpr,
):
    """``x[f, p] = layer_norm(bias + pixels of patch p of frame f @ weight)``.

    ``pixels`` are float32 ``[frames, 3, side, side]``, ``weight`` is ``[parts, 3·PATCH², WIDTH_PAD]``, zeros beyond
    ``WIDTH``. That pixels count with all their bits matters: what a float16 pixel loses is the largest error of the
    whole encoder, since all that follows depends on it.
    """
    side: tl.constexpr = GRID * PATCH
    depth: tl.constexpr = 3 * PATCH * PATCH
    area: tl.constexpr = GRID * GRID
    r = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    real = r < frames * area
    place = r % area
    corner = (
        (r // area).to(tl.int64) * (3 * side * side) + place // GRID * (PATCH * side) + place % GRID * PATCH
    )
    n = tl.arange(0, WIDTH_PAD)
    total = tl.zeros((TOKENS, WIDTH_PAD), tl.float32)
    low = tl.zeros((TOKENS, WIDTH_PAD), tl.float32)
    for step in range(depth // SHARED):
        k = step * SHARED + tl.arange(0, SHARED)
        offset = k // (PATCH * PATCH) * (side * side) + k // PATCH % PATCH * side + k % PATCH
        values = tl.load(pixels + corner[:, None] + offset[None, :], mask=real[:, None], other=0.0)
        w = weight + k[:, None] * WIDTH_PAD + n[None, :]
        total, low = product(values, w, depth * WIDTH_PAD, total, low, PARTS)
    inside = n < WIDTH
    total = joined(total, low, PARTS) + tl.load(bias + n, mask=inside, other=0.0)[None, :]
    # Columns beyond the width are zeros.
    total -= (tl.sum(total, 1) * (1.0 / WIDTH))[:, None]
    total = tl.where(inside[None, :], total, 0.0)
    scale = tl.rsqrt(tl.sum(total * total, 1) * (1.0 / WIDTH) + EPSILON)
    total = total * scale[:, None] * tl.load(norm + n, mask=inside, other=0.0)[None, :]
    total += tl.load(norm_bias + n, mask=inside, other=0.0)[None, :]
    tl.store(
        x + r[:, None] * WIDTH + n[None, :],
        total.to(x.dtype.element_ty),
        mask=real[:, None] & inside[None, :],
    )


@triton.jit(do_not_specialize=["rows", "frames", "window"])
def project_kernel(
    x,
    weight,
    bias,
    position,
    vision_rows,
    vision,
    rows,
    frames,
    window,
    GRID: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """``vision[vision_rows[b], t, p] = x[b, t, p] @ weight + bias + position[p]``; a row has ``window`` frames."""
    area: tl.constexpr = GRID * GRID
    r = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    real = r < rows * frames * area
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    low = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for step in range(WIDTH // SHARED):
        k = step * SHARED + tl.arange(0, SHARED)
        values = tl.load(x + r[:, None] * WIDTH + k[None, :], mask=real[:, None], other=0.0)
        w = weight + k[:, None] * WIDTH + n[None, :]
        total, low = product(values, w, WIDTH * WIDTH, total, low, PARTS)
    place, frame = r % area, r // area
    total = joined(total, low, PARTS) + tl.load(bias + n)[None, :]
    total += tl.load(position + place[:, None] * WIDTH + n[None, :])
    row = tl.load(vision_rows + frame // frames, mask=real, other=0)
    target = ((row * window + frame % frames) * area + place) * WIDTH
    tl.store(vision + target[:, None] + n[None, :], total.to(vision.dtype.element_ty), mask=real[:, None])
