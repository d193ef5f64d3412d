"""The encoder's causal convolution as one Triton kernel: taps in time and space without copies of the frames."""

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
