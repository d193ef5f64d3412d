"""From fixations to rectangles and tokens of an image model, frame by frame (spec: readout §3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client.fixations import FrameFixationTrace
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.layouts import AutoGazeScaleTokenLayout, scale_token_layouts
from autogaze_client.readout import _cells, _checks
from autogaze_client.readout.grids import (
    Points,
    SparseReadoutGrid,
    SparseReadoutOptions,
    SparseReadoutRect,
    SparseReadoutRects,
    as_options,
)

__all__ = [
    "fixation_points_to_readout_rects",
    "fixation_points_to_readout_tokens",
    "generated_frame_readout_rects",
    "generated_frame_readout_tokens",
    "generated_to_frame_readout_rects",
    "generated_to_frame_readout_tokens",
    "readout_rects_to_tokens",
    "trace_frame_readout_rects",
    "trace_frame_readout_tokens",
    "trace_to_frame_readout_rects",
    "trace_to_frame_readout_tokens",
]

Config: TypeAlias = Mapping[str, Any] | Sequence[AutoGazeScaleTokenLayout] | None
"""A checkpoint's ``config.json`` or its layouts, to be checked against an output's own; None = no check."""


def fixation_points_to_readout_rects(
    points: Points, options: SparseReadoutOptions | None = None
) -> SparseReadoutRects:
    """The rectangles of the cells that the options keep, in decoder order.

    A cell that is one of a grid, to float32 precision, gives the exact rectangle of that cell. Cells of
    confidence 0 are padding and never show; one that lies wholly outside the image has no rectangle.

    Args:
        points: ``FixationPoint`` objects, a ``FixationSet``, or an array ``[n, 6]`` (x, y, width, height,
            confidence, grid) or ``[n, 7]`` (frame first, ignored).
        options: threshold, growth and cap of cells; the others do not matter.

    Raises:
        InvalidInputError: an array of another shape, or a NaN (the reference drops NaN confidences).

    Example:
        >>> cell = FixationPoint.with_grid_extent(0.25, 0.25, 0.5, 0.5, 1.0, 2)
        >>> fixation_points_to_readout_rects([cell])[0]
        SparseReadoutRect(x0=0.0, y0=0.0, x1=0.5, y1=0.5)
    """
    return SparseReadoutRects(_point_rects(points, options).edges)


def readout_rects_to_tokens(
    rects: Iterable[SparseReadoutRect], grid: SparseReadoutGrid, options: SparseReadoutOptions | None = None
) -> NDArray[np.int64]:
    """The tokens that rectangles overlap, in the order in which they are first met.

    Args:
        rects: rectangles, in order of priority.
        grid: the tokens of the image model.
        options: dilation and cap of tokens; the others do not matter.

    Returns:
        int64 ``[n]``, distinct, not sorted.

    Raises:
        InvalidInputError: the grid is empty.

    Example:
        >>> corner = SparseReadoutRect(0.5, 0.5, 0.75, 0.75)
        >>> options = SparseReadoutOptions(dilation=1, max_tokens_per_frame=5)
        >>> readout_rects_to_tokens([corner], SparseReadoutGrid(4, 4), options).tolist()
        [5, 6, 7, 9, 10]
    """
    edges = SparseReadoutRects.of(rects).array
    return _tokens(_cells.FrameRects(np.zeros(len(edges), np.int64), edges), grid, options, 1)[0]


def fixation_points_to_readout_tokens(
    points: Points, grid: SparseReadoutGrid, options: SparseReadoutOptions | None = None
) -> NDArray[np.int64]:
    """``fixation_points_to_readout_rects``, then ``readout_rects_to_tokens``.

    Raises:
        InvalidInputError: the grid is empty, an array of another shape, or a NaN.
    """
    return _tokens(_point_rects(points, options), grid, options, 1)[0]


def trace_frame_readout_rects(
    trace: FrameFixationTrace, frame: int, options: SparseReadoutOptions | None = None
) -> SparseReadoutRects:
    """The rectangles of one frame of a clip.

    Raises:
        InvalidInputError: no such frame (empty in the reference), or a NaN.
    """
    return fixation_points_to_readout_rects(_frame(trace, frame), options)


def trace_frame_readout_tokens(
    trace: FrameFixationTrace,
    frame: int,
    grid: SparseReadoutGrid,
    options: SparseReadoutOptions | None = None,
) -> NDArray[np.int64]:
    """The tokens of one frame of a clip.

    Raises:
        InvalidInputError: no such frame (empty in the reference), the grid is empty, or a NaN.
    """
    return fixation_points_to_readout_tokens(_frame(trace, frame), grid, options)


def trace_to_frame_readout_rects(
    trace: FrameFixationTrace, options: SparseReadoutOptions | None = None
) -> list[SparseReadoutRects]:
    """The rectangles of every frame of a clip.

    Raises:
        InvalidInputError: a NaN.
    """
    return _split_rects(trace_rects(trace, options), len(trace))


def trace_to_frame_readout_tokens(
    trace: FrameFixationTrace, grid: SparseReadoutGrid, options: SparseReadoutOptions | None = None
) -> list[NDArray[np.int64]]:
    """The tokens of every frame of a clip.

    Raises:
        InvalidInputError: the grid is empty, or a NaN.
    """
    return _tokens(trace_rects(trace, options), grid, options, len(trace))


def generated_frame_readout_rects(
    generated: AutoGazeGenerateOutput,
    config: Config,
    batch: int,
    frame: int,
    options: SparseReadoutOptions | None = None,
) -> SparseReadoutRects:
    """The rectangles of one frame of one row of a model's output.

    Args:
        generated: what the model chose.
        config: the checkpoint's config or layouts, which must agree with the output's own; None = no check.
        batch: the row; in tiled modes a tile, whose own coordinates the rectangles have.
        frame: the frame, counted in this output.
        options: threshold, growth and cap of cells.

    Raises:
        InvalidInputError: no such batch index or frame index, scales that disagree, an id outside its
            frame's vocabulary that is not padding, or a NaN.
    """
    _checks.index("frame index", frame, len(generated.num_gazing_each_frame), "output")
    return generated_to_frame_readout_rects(generated, config, batch, options)[frame]


def generated_frame_readout_tokens(
    generated: AutoGazeGenerateOutput,
    config: Config,
    batch: int,
    frame: int,
    grid: SparseReadoutGrid,
    options: SparseReadoutOptions | None = None,
) -> NDArray[np.int64]:
    """The tokens of one frame of one row of a model's output; see ``generated_frame_readout_rects``.

    Raises:
        InvalidInputError: as there, or the grid is empty.
    """
    _checks.index("frame index", frame, len(generated.num_gazing_each_frame), "output")
    return generated_to_frame_readout_tokens(generated, config, batch, grid, options)[frame]


def generated_to_frame_readout_rects(
    generated: AutoGazeGenerateOutput, config: Config, batch: int, options: SparseReadoutOptions | None = None
) -> list[SparseReadoutRects]:
    """The rectangles of every frame of one row of a model's output; see ``generated_frame_readout_rects``.

    Raises:
        InvalidInputError: as there.
    """
    rects = generated_rects(generated, config, batch, options)
    return _split_rects(rects, len(generated.num_gazing_each_frame))


def generated_to_frame_readout_tokens(
    generated: AutoGazeGenerateOutput,
    config: Config,
    batch: int,
    grid: SparseReadoutGrid,
    options: SparseReadoutOptions | None = None,
) -> list[NDArray[np.int64]]:
    """The tokens of every frame of one row of a model's output; see ``generated_frame_readout_rects``.

    Raises:
        InvalidInputError: as there, or the grid is empty.
    """
    rects = generated_rects(generated, config, batch, options)
    return _tokens(rects, grid, options, len(generated.num_gazing_each_frame))


def trace_rects(trace: FrameFixationTrace, options: SparseReadoutOptions | None) -> _cells.FrameRects:
    """The rectangles of a clip, flat."""
    rows = trace.rows
    return _cells.rects_of(rows[:, 0].astype(np.int64), rows[:, 1:], as_options(options))


def generated_rects(
    generated: AutoGazeGenerateOutput, config: Config, batch: int, options: SparseReadoutOptions | None
) -> _cells.FrameRects:
    """The rectangles of a row of a model's output, flat."""
    _checks.index("batch index", batch, len(generated.gazing_pos), "output")
    if config is not None:
        layouts = scale_token_layouts(config) if isinstance(config, Mapping) else tuple(config)
        if layouts != generated.scale_layouts:
            raise InvalidInputError(
                f"the config has the scales {layouts}, but the output {generated.scale_layouts}; pass the "
                "config it was generated with, or None"
            )
    _require_ids_inside(generated, batch)
    rows = generated.fixations(batch)
    return _cells.rects_of(rows[:, 0].astype(np.int64), rows[:, 1:], as_options(options))


def image_token_keys(
    rects: _cells.FrameRects,
    grid: SparseReadoutGrid,
    options: SparseReadoutOptions | None,
    frames: int,
    name: str = "readout grid",
) -> NDArray[np.int64]:
    """The keys ``frame · tokens + token`` of a clip (readout §3, algorithm C)."""
    grid.require_tokens(name)
    chosen = as_options(options)
    ranges = _cells.ranges_of_rects(rects.edges, grid.height, grid.width, chosen.dilation)
    keys = _cells.expand(rects.frame, ranges, grid.token_count, grid.width)
    keys = _cells.first_seen(keys, grid.token_count * frames)
    return _cells.cap_each_frame(keys, grid.token_count, chosen.max_tokens_per_frame)


def _tokens(
    rects: _cells.FrameRects, grid: SparseReadoutGrid, options: SparseReadoutOptions | None, frames: int
) -> list[NDArray[np.int64]]:
    keys = image_token_keys(rects, grid, options, frames)
    return _cells.split_frames(keys, grid.token_count, frames)


def _point_rects(points: Points, options: SparseReadoutOptions | None) -> _cells.FrameRects:
    rows = _cells.point_rows(points)
    return _cells.rects_of(np.zeros(len(rows), np.int64), rows, as_options(options))


def _split_rects(rects: _cells.FrameRects, frames: int) -> list[SparseReadoutRects]:
    bounds = np.searchsorted(rects.frame, np.arange(frames + 1))
    return [
        SparseReadoutRects(rects.edges[start:end])
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


def _frame(trace: FrameFixationTrace, frame: int) -> Points:
    return trace.frames[_checks.index("frame index", frame, len(trace), "trace")]


def _require_ids_inside(generated: AutoGazeGenerateOutput, batch: int) -> None:
    n = generated.num_vision_tokens_each_frame
    first = generated.frame_of_slot * n
    ids = generated.gazing_pos[batch]
    wrong = ~generated.if_padded_gazing[batch] & ((ids < first) | (ids >= first + n))
    if wrong.any():
        slot = int(np.argmax(wrong))
        frame = int(first[slot]) // n
        raise InvalidInputError(
            f"gazing_pos of row {batch}, slot {slot} is {ids[slot]}; frame {frame} has the ids "
            f"{first[slot]}..{first[slot] + n - 1}: decode with the scales it was generated with"
        )
