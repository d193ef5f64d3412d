"""From the frames of a clip to tokens of a video model (spec: readout §4, algorithm D)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client.fixations import FrameFixationTrace
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.readout import _cells, _checks
from autogaze_client.readout.grids import (
    SparseReadoutGrid,
    SparseReadoutOptions,
    SparseReadoutRect,
    SparseReadoutRects,
)
from autogaze_client.readout.image_readout import Config, generated_rects, image_token_keys, trace_rects
from autogaze_client.readout.video_grids import SparseVideoReadoutGrid, SparseVideoReadoutOptions

__all__ = [
    "frame_readout_rects_to_video_tokens",
    "frame_readout_tokens_to_video_tokens",
    "generated_to_video_readout_tokens",
    "trace_to_video_readout_tokens",
]

_IMAGE_GRID, _VIDEO_GRID = "image readout grid", "video readout grid"


def frame_readout_tokens_to_video_tokens(
    frame_tokens: Sequence[Any],
    image_grid: SparseReadoutGrid,
    video_grid: SparseVideoReadoutGrid,
    options: SparseVideoReadoutOptions | None = None,
) -> NDArray[np.int64]:
    """Projects tokens of an image grid, one list a frame, onto a video grid.

    A temporal bin holds the union of its ``tubelet_size`` frames. Tokens come in the order of frames and of
    tokens within them; where they are fewer than ``min_tokens``, unseen ones follow, evenly spaced first.

    Args:
        frame_tokens: integers ``[n]`` for each frame. Bins past the last frame stay empty.
        image_grid: the grid of ``frame_tokens``.
        video_grid: the grid of the result.
        options: tubelet size, dilation and token counts.

    Returns:
        int64 ``[n]``, distinct, not sorted.

    Raises:
        InvalidInputError: a grid is empty, the tubelet size is 0, a token lies outside the image grid, or
            there are more frames than bins · tubelet size (the reference drops both silently).

    Example:
        >>> frames = [[], [1], [2], []]
        >>> options = SparseVideoReadoutOptions(tubelet_size=2).with_exact_tokens(4)
        >>> image, video = SparseReadoutGrid(2, 2), SparseVideoReadoutGrid(2, 4, 4)
        >>> frame_readout_tokens_to_video_tokens(frames, image, video, options).tolist()
        [2, 3, 6, 7]
    """
    image_grid.require_tokens(_IMAGE_GRID)
    chosen = _check(video_grid, options, len(frame_tokens))
    count = image_grid.token_count
    frame, tokens = _cells.join_frames(
        _checks.token_ids(f"frame_tokens[{index}]", tokens, count)
        for index, tokens in enumerate(frame_tokens)
    )
    return _project_tokens(frame // chosen.tubelet_size, tokens, image_grid, video_grid, chosen)


def frame_readout_rects_to_video_tokens(
    frame_rects: Sequence[Iterable[SparseReadoutRect]],
    video_grid: SparseVideoReadoutGrid,
    options: SparseVideoReadoutOptions | None = None,
) -> NDArray[np.int64]:
    """Projects rectangles, one list a frame, onto a video grid: rounded once, with no image grid between.

    Args:
        frame_rects: rectangles of each frame, as ``trace_to_frame_readout_rects`` gives them.
        video_grid: the grid of the result.
        options: tubelet size, dilation and token counts.

    Returns:
        int64 ``[n]``, distinct, in order of projection, then of filling.

    Raises:
        InvalidInputError: the grid is empty, the tubelet size is 0, or there are too many frames.
    """
    chosen = _check(video_grid, options, len(frame_rects))
    edges = [SparseReadoutRects.of(rects).array for rects in frame_rects]
    frame = np.repeat(np.arange(len(edges)), [len(part) for part in edges])
    joined = np.concatenate([np.zeros((0, 4)), *edges])
    return _project_rects(_cells.FrameRects(frame, joined), video_grid, chosen)


def trace_to_video_readout_tokens(
    trace: FrameFixationTrace,
    image_grid: SparseReadoutGrid | None,
    video_grid: SparseVideoReadoutGrid,
    readout_options: SparseReadoutOptions | None = None,
    video_options: SparseVideoReadoutOptions | None = None,
) -> NDArray[np.int64]:
    """The tokens of a video model for a clip's fixations.

    Args:
        trace: the fixations.
        image_grid: the grid that each frame is read out on first, as in the reference; None projects the
            cells directly, which rounds once instead of twice (then ``max_tokens_per_frame`` and the
            readout's dilation must be unset, for they belong to the image grid).
        video_grid: the grid of the result.
        readout_options: of the frames.
        video_options: of the clip.

    Returns:
        int64 ``[n]``, distinct, in order of projection, then of filling.

    Raises:
        InvalidInputError: as ``frame_readout_tokens_to_video_tokens``, or a NaN.
    """
    chosen = _check_grids(image_grid, video_grid, readout_options, video_options, len(trace))
    rects = trace_rects(trace, readout_options)
    return _read_out(rects, image_grid, video_grid, readout_options, chosen, len(trace))


def generated_to_video_readout_tokens(
    generated: AutoGazeGenerateOutput,
    config: Config,
    batch: int,
    image_grid: SparseReadoutGrid | None,
    video_grid: SparseVideoReadoutGrid,
    readout_options: SparseReadoutOptions | None = None,
    video_options: SparseVideoReadoutOptions | None = None,
) -> NDArray[np.int64]:
    """The tokens of a video model for one row of a model's output.

    Args:
        generated: what the model chose.
        config: the checkpoint's config or layouts, which must agree with the output's own; None = no check.
        batch: the row; in tiled modes a tile, whose own coordinates the tokens have.
        image_grid: as in ``trace_to_video_readout_tokens``.
        video_grid: the grid of the result.
        readout_options: of the frames.
        video_options: of the clip.

    Returns:
        int64 ``[n]``, distinct, in order of projection, then of filling.

    Raises:
        InvalidInputError: as ``trace_to_video_readout_tokens`` and ``generated_frame_readout_rects``.
    """
    frames = len(generated.num_gazing_each_frame)
    chosen = _check_grids(image_grid, video_grid, readout_options, video_options, frames)
    rects = generated_rects(generated, config, batch, readout_options)
    return _read_out(rects, image_grid, video_grid, readout_options, chosen, frames)


def _check(
    grid: SparseVideoReadoutGrid, options: SparseVideoReadoutOptions | None, frames: int
) -> SparseVideoReadoutOptions:
    chosen = SparseVideoReadoutOptions() if options is None else options
    grid.require_tokens(_VIDEO_GRID)
    if chosen.tubelet_size == 0:
        raise InvalidInputError("the tubelet size is 0; it must be at least 1 frame")
    if frames > grid.temporal_bins * chosen.tubelet_size:
        raise InvalidInputError(
            f"there are {frames} frames, but {grid.temporal_bins} bins with a tubelet size of "
            f"{chosen.tubelet_size} hold {grid.temporal_bins * chosen.tubelet_size}; set the tubelet size of "
            "the video options, or pass fewer frames"
        )
    return chosen


def _check_grids(
    image_grid: SparseReadoutGrid | None,
    video_grid: SparseVideoReadoutGrid,
    readout_options: SparseReadoutOptions | None,
    video_options: SparseVideoReadoutOptions | None,
    frames: int,
) -> SparseVideoReadoutOptions:
    if image_grid is not None:
        image_grid.require_tokens(_IMAGE_GRID)
    elif readout_options is not None and (
        readout_options.dilation or readout_options.max_tokens_per_frame is not None
    ):
        raise InvalidInputError(
            f"dilation {readout_options.dilation} and max_tokens_per_frame "
            f"{readout_options.max_tokens_per_frame} of the readout options need an image grid; pass one, or "
            "use dilation and max_tokens of the video options"
        )
    return _check(video_grid, video_options, frames)


def _read_out(
    rects: _cells.FrameRects,
    image_grid: SparseReadoutGrid | None,
    video_grid: SparseVideoReadoutGrid,
    readout_options: SparseReadoutOptions | None,
    video_options: SparseVideoReadoutOptions,
    frames: int,
) -> NDArray[np.int64]:
    if image_grid is None:
        return _project_rects(rects, video_grid, video_options)
    per_bin = video_options.tubelet_size
    if readout_options is None or readout_options.max_tokens_per_frame is None:
        # Without a cap on each frame, the frames of a bin may as well be read out as one.
        rects = _cells.FrameRects(rects.frame // per_bin, rects.edges)
        frames, per_bin = video_grid.temporal_bins, 1
    keys = image_token_keys(rects, image_grid, readout_options, frames, _IMAGE_GRID)
    frame, tokens = np.divmod(keys, image_grid.token_count)
    return _project_tokens(frame // per_bin, tokens, image_grid, video_grid, video_options)


def _project_tokens(
    temporal_bin: NDArray[np.int64],
    tokens: NDArray[np.int64],
    image_grid: SparseReadoutGrid,
    video_grid: SparseVideoReadoutGrid,
    options: SparseVideoReadoutOptions,
) -> NDArray[np.int64]:
    count = image_grid.token_count
    keys = _cells.first_seen(temporal_bin * count + tokens, video_grid.temporal_bins * count)
    source, target = (image_grid.height, image_grid.width), (video_grid.height, video_grid.width)
    if source == target and options.dilation == 0:
        return _finish(keys, video_grid, options)
    temporal_bin, tokens = np.divmod(keys, count)
    ranges = _cells.ranges_of_tokens(tokens, source, target, options.dilation)
    return _place(temporal_bin, ranges, video_grid, options)


def _project_rects(
    rects: _cells.FrameRects, grid: SparseVideoReadoutGrid, options: SparseVideoReadoutOptions
) -> NDArray[np.int64]:
    ranges = _cells.ranges_of_rects(rects.edges, grid.height, grid.width, options.dilation)
    return _place(rects.frame // options.tubelet_size, ranges, grid, options)


def _place(
    temporal_bin: NDArray[np.int64],
    ranges: _cells.CellRanges,
    grid: SparseVideoReadoutGrid,
    options: SparseVideoReadoutOptions,
) -> NDArray[np.int64]:
    keys = _cells.expand(temporal_bin, ranges, grid.tokens_per_temporal_bin, grid.width)
    return _finish(keys, grid, options)


def _finish(
    keys: NDArray[np.int64], grid: SparseVideoReadoutGrid, options: SparseVideoReadoutOptions
) -> NDArray[np.int64]:
    """Drops repeats, applies the cap, and fills up to the minimum."""
    count = grid.token_count
    cap = count if options.max_tokens is None else min(options.max_tokens, count)
    tokens = _cells.first_seen(keys, count)[:cap]
    target = min(options.min_tokens, cap)
    if len(tokens) >= target:
        return tokens
    filled = np.concatenate([tokens, evenly_spaced(count, target), np.arange(count)])
    return _cells.first_seen(filled, count)[:target]


def evenly_spaced(count: int, tokens: int) -> NDArray[np.int64]:
    """``tokens`` indices spread over ``count``: all of them, or ``(i·(count−1) + tokens//2) // tokens``."""
    if tokens == count:
        return np.arange(count)
    index = np.arange(tokens)
    return np.asarray((index * (count - 1) + tokens // 2) // tokens)
