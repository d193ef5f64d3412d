"""Triton-language kernels of the preprocessing. Importing this module needs triton.

A jitted function's arguments have no types: Triton's compiler reads annotations and knows only its own.
Sizes and strides are arguments that no compilation depends on, so a frame size that was never seen costs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from autogaze_backend.torch_engine.pillow_resize import PRECISION_BITS

if TYPE_CHECKING:
    # The process that compiles the kernels imports this module, and has no need of torch.
    from autogaze_backend.torch_engine.preprocessing_tables import AxisTable, PassTable

Tensor = Any  # torch.Tensor, which is not there where types are checked.

NAME = "triton"

# Whether Triton's interpreter runs the kernels, on any device, as it does under TRITON_INTERPRET=1.
INTERPRETED = bool(triton.knobs.runtime.interpret)

# Pixels of a program.
BLOCK = 256


@triton.jit(
    do_not_specialize=[
        "stride_t",
        "stride_y",
        "stride_x",
        "stride_c",
        "size",
        "pixels",
        "out_width",
        "out_places",
        "taps",
    ],
    do_not_specialize_on_alignment=["source"],
)
def resize_pass_kernel(
    source,
    out,
    first,
    weights,
    table,
    stride_t,
    stride_y,
    stride_x,
    stride_c,
    size,
    pixels,
    out_width,
    out_places,
    taps,
    PRECISION: tl.constexpr,
    VERTICAL: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One pass of Pillow's resize: bytes of any layout to planar bytes ``[T, 3, h, w]``, or to normalised floats."""
    blocks = tl.cdiv(pixels, BLOCK)
    frame = tl.program_id(0) // blocks
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    y = pixel // out_width
    x = pixel % out_width
    place = y if VERTICAL else x
    start = tl.load(first + place, mask=inside, other=0)
    step = stride_y if VERTICAL else stride_x
    fixed = x.to(tl.int64) * stride_x if VERTICAL else y.to(tl.int64) * stride_y
    base = source + frame.to(tl.int64) * stride_t + fixed
    half = tl.full((BLOCK,), 1 << (PRECISION - 1), tl.int32)
    red = half
    green = half
    blue = half
    for tap in range(taps):
        weight = tl.load(weights + tap * out_places + place, mask=inside, other=0)
        # Beyond the edge the weight is 0, so it does not matter which byte is read.
        at = base + tl.minimum(start + tap, size - 1).to(tl.int64) * step
        red += tl.load(at, mask=inside, other=0).to(tl.int32) * weight
        green += tl.load(at + stride_c, mask=inside, other=0).to(tl.int32) * weight
        blue += tl.load(at + 2 * stride_c, mask=inside, other=0).to(tl.int32) * weight
    red = tl.minimum(tl.maximum(red >> PRECISION, 0), 255)
    green = tl.minimum(tl.maximum(green >> PRECISION, 0), 255)
    blue = tl.minimum(tl.maximum(blue >> PRECISION, 0), 255)
    target = out + frame.to(tl.int64) * 3 * pixels + pixel
    kind = out.dtype.element_ty
    if NORMALISE:
        tl.store(target, tl.load(table + red, mask=inside).to(kind), mask=inside)
        tl.store(target + pixels, tl.load(table + 256 + green, mask=inside).to(kind), mask=inside)
        tl.store(target + 2 * pixels, tl.load(table + 512 + blue, mask=inside).to(kind), mask=inside)
    else:
        tl.store(target, red.to(kind), mask=inside)
        tl.store(target + pixels, green.to(kind), mask=inside)
        tl.store(target + 2 * pixels, blue.to(kind), mask=inside)


@triton.jit(
    do_not_specialize=[
        "stride_t",
        "stride_y",
        "stride_x",
        "stride_c",
        "height",
        "width",
        "frame_count",
        "first_tile",
        "tile_columns",
    ],
    do_not_specialize_on_alignment=["source", "row_index", "row_weight", "column_index", "column_weight"],
)
def cut_kernel(
    source,
    out,
    table,
    row_index,
    row_weight,
    column_index,
    column_weight,
    stride_t,
    stride_y,
    stride_x,
    stride_c,
    height,
    width,
    frame_count,
    first_tile,
    tile_columns,
    SIDE: tl.constexpr,
    ROW_TAPS: tl.constexpr,
    COLUMN_TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Bytes of any layout to normalised tiles ``[tiles, T, 3, SIDE, SIDE]``, resized by taps where there are any.

    Must be launched with ``enable_fp_fusion=False``: the host rounds every product.
    """
    area: tl.constexpr = SIDE * SIDE
    blocks: tl.constexpr = tl.cdiv(area, BLOCK)
    image = tl.program_id(0) // blocks
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    y = pixel // SIDE
    x = pixel % SIDE
    tile = first_tile + image // frame_count
    rows = tile // tile_columns * ROW_TAPS * SIDE + y
    columns = tile % tile_columns * COLUMN_TAPS * SIDE + x
    base = source + (image % frame_count).to(tl.int64) * stride_t
    target = out + image.to(tl.int64) * 3 * area + pixel
    for channel in tl.static_range(3):
        total = tl.zeros((BLOCK,), tl.float32)
        for row_tap in tl.static_range(ROW_TAPS):
            source_y = tl.load(row_index + rows + row_tap * SIDE, mask=inside, other=0)
            line = tl.zeros((BLOCK,), tl.float32)
            for column_tap in tl.static_range(COLUMN_TAPS):
                source_x = tl.load(column_index + columns + column_tap * SIDE, mask=inside, other=0)
                seen = inside & (source_y < height) & (source_x < width)
                at = base + source_y.to(tl.int64) * stride_y + source_x.to(tl.int64) * stride_x
                byte = tl.load(at + channel * stride_c, mask=seen, other=0).to(tl.int32)
                # Padding is 0 in normalised space.
                value = tl.load(table + channel * 256 + byte, mask=seen, other=0.0)
                if COLUMN_TAPS > 1:
                    value = value * tl.load(
                        column_weight + columns + column_tap * SIDE, mask=inside, other=0.0
                    )
                line = value if column_tap == 0 else line + value
            if ROW_TAPS > 1:
                line = line * tl.load(row_weight + rows + row_tap * SIDE, mask=inside, other=0.0)
            total = line if row_tap == 0 else total + line
        tl.store(target + channel * area, total.to(out.dtype.element_ty), mask=inside)


def resize_pass(source: Tensor, table: PassTable, normalisation: Tensor | None, out: Tensor) -> None:
    """As ``preprocessing_torch.resize_pass``, in one kernel."""
    frames, _, height, width = out.shape
    pixels = height * width
    resize_pass_kernel[(frames * triton.cdiv(pixels, BLOCK),)](
        source,
        out,
        table.first,
        table.weights,
        table.weights if normalisation is None else normalisation,
        *source.stride(),
        table.size,
        pixels,
        width,
        len(table.first),
        len(table.weights),
        PRECISION=PRECISION_BITS,
        VERTICAL=table.vertical,
        NORMALISE=normalisation is not None,
        BLOCK=BLOCK,
    )


def cut(
    source: Tensor, rows: AxisTable, columns: AxisTable, normalisation: Tensor, first: int, out: Tensor
) -> None:
    """As ``preprocessing_torch.cut``, in one kernel."""
    tiles, frames, _, side, _ = out.shape
    cut_kernel[(tiles * frames * triton.cdiv(side * side, BLOCK),)](
        source,
        out,
        normalisation,
        rows.index,
        rows.index if rows.weight is None else rows.weight,
        columns.index,
        columns.index if columns.weight is None else columns.weight,
        *source.stride(),
        source.shape[1],
        source.shape[2],
        frames,
        first,
        columns.tiles,
        SIDE=side,
        ROW_TAPS=rows.index.shape[1],
        COLUMN_TAPS=columns.index.shape[1],
        BLOCK=BLOCK,
        enable_fp_fusion=False,
    )
