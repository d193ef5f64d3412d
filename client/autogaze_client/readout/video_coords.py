"""Tokens of a video model as ``[batch, bin, row, col]`` rows (spec: readout §4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import Array, library_of, to_numpy
from autogaze_client._errors import InvalidInputError
from autogaze_client.fixations import FrameFixationTrace
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.readout import _checks
from autogaze_client.readout.grids import SparseReadoutGrid, SparseReadoutOptions, SparseReadoutRect
from autogaze_client.readout.image_readout import Config
from autogaze_client.readout.video_grids import (
    SparseVideoReadoutGrid,
    SparseVideoReadoutOptions,
    SparseVideoReadoutProjection,
)
from autogaze_client.readout.video_readout import (
    frame_readout_rects_to_video_tokens,
    frame_readout_tokens_to_video_tokens,
    generated_to_video_readout_tokens,
    trace_to_video_readout_tokens,
)

__all__ = [
    "batched_video_readout_tokens_to_coord_tensor",
    "batched_video_readout_tokens_to_coords",
    "frame_readout_rects_to_video_coord_tensor",
    "frame_readout_rects_to_video_coords",
    "frame_readout_tokens_to_video_coord_tensor",
    "frame_readout_tokens_to_video_coords",
    "generated_to_video_readout_coord_tensor",
    "generated_to_video_readout_coords",
    "trace_to_video_readout_coord_tensor",
    "trace_to_video_readout_coords",
    "video_readout_coords_to_tensor",
    "video_readout_tokens_to_coord_tensor",
    "video_readout_tokens_to_coords",
]

_U32 = 2**32


def video_readout_tokens_to_coords(
    tokens: Any, grid: SparseVideoReadoutGrid, batch: int
) -> NDArray[np.int64]:
    """The places of tokens; order and repeats are kept.

    Args:
        tokens: integers ``[n]``.
        grid: the grid of the tokens.
        batch: the number that every row starts with.

    Returns:
        int64 ``[n, 4]``: batch, bin, row, col.

    Raises:
        InvalidInputError: the grid is empty, a token lies outside it, or ``batch`` does not fit 32 bits.

    Example:
        >>> video_readout_tokens_to_coords([7, 23], SparseVideoReadoutGrid(2, 3, 4), 5).tolist()
        [[5, 0, 1, 3], [5, 1, 2, 3]]
    """
    grid.require_tokens("video readout grid")
    if _checks.count("batch", batch) >= _U32:
        raise InvalidInputError(f"batch is {batch}; it must be below 2^32")
    ids = _checks.token_ids("tokens", tokens, grid.token_count)
    temporal_bin, local = np.divmod(ids, grid.tokens_per_temporal_bin)
    row, col = np.divmod(local, grid.width)
    return np.stack([np.full_like(ids, batch), temporal_bin, row, col], axis=1)


def batched_video_readout_tokens_to_coords(
    batch_tokens: Sequence[Any], grid: SparseVideoReadoutGrid
) -> NDArray[np.int64]:
    """The places of several clips' tokens, clip after clip; the batch number is the place in the list.

    Args:
        batch_tokens: integers ``[n]`` for each clip; the clips may differ in length, nothing is padded.
        grid: the grid of the tokens.

    Returns:
        int64 ``[n, 4]``: batch, bin, row, col.

    Raises:
        InvalidInputError: as ``video_readout_tokens_to_coords``.
    """
    grid.require_tokens("video readout grid")
    parts = [video_readout_tokens_to_coords(tokens, grid, batch) for batch, tokens in enumerate(batch_tokens)]
    return np.concatenate([np.zeros((0, 4), np.int64), *parts])


def video_readout_coords_to_tensor(coords: Any, *, like: Array | None = None) -> Array:
    """Places as one integer tensor.

    Args:
        coords: rows of four integers.
        like: a torch or CuPy array whose library and device the result takes; None = numpy.

    Returns:
        int64 ``[n, 4]``; ``[0, 4]`` for no rows.

    Raises:
        InvalidInputError: rows of another length, or values that are no indices of 32 bits.
    """
    rows = to_numpy(coords)
    rows = np.zeros((0, 4), np.int64) if rows.size == 0 else rows
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iu":
        raise InvalidInputError(f"coords are {rows.dtype} {list(rows.shape)}; they must be integers [n, 4]")
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= _U32):
        raise InvalidInputError(
            f"coords hold values in {rows.min()}..{rows.max()}; they must be in 0..2^32-1"
        )
    return library_of(like=like).asarray(rows.astype(np.int64))


def video_readout_tokens_to_coord_tensor(
    tokens: Any, grid: SparseVideoReadoutGrid, batch: int, *, like: Array | None = None
) -> Array:
    """``video_readout_tokens_to_coords`` as a tensor like ``like``."""
    return video_readout_coords_to_tensor(video_readout_tokens_to_coords(tokens, grid, batch), like=like)


def batched_video_readout_tokens_to_coord_tensor(
    batch_tokens: Sequence[Any], grid: SparseVideoReadoutGrid, *, like: Array | None = None
) -> Array:
    """``batched_video_readout_tokens_to_coords`` as a tensor like ``like``."""
    return video_readout_coords_to_tensor(
        batched_video_readout_tokens_to_coords(batch_tokens, grid), like=like
    )


def frame_readout_tokens_to_video_coords(
    frame_tokens: Sequence[Any],
    image_grid: SparseReadoutGrid,
    video_grid: SparseVideoReadoutGrid,
    options: SparseVideoReadoutOptions | None = None,
    batch_index: int = 0,
) -> NDArray[np.int64]:
    """``frame_readout_tokens_to_video_tokens`` as int64 ``[n, 4]`` rows of ``batch_index``."""
    tokens = frame_readout_tokens_to_video_tokens(frame_tokens, image_grid, video_grid, options)
    return video_readout_tokens_to_coords(tokens, video_grid, batch_index)


def frame_readout_rects_to_video_coords(
    frame_rects: Sequence[Iterable[SparseReadoutRect]],
    video_grid: SparseVideoReadoutGrid,
    options: SparseVideoReadoutOptions | None = None,
    batch_index: int = 0,
) -> NDArray[np.int64]:
    """``frame_readout_rects_to_video_tokens`` as int64 ``[n, 4]`` rows of ``batch_index``."""
    tokens = frame_readout_rects_to_video_tokens(frame_rects, video_grid, options)
    return video_readout_tokens_to_coords(tokens, video_grid, batch_index)


def trace_to_video_readout_coords(
    trace: FrameFixationTrace,
    image_grid: SparseReadoutGrid | None,
    video_grid: SparseVideoReadoutGrid,
    readout_options: SparseReadoutOptions | None = None,
    video_options: SparseVideoReadoutOptions | None = None,
    batch_index: int = 0,
) -> NDArray[np.int64]:
    """``trace_to_video_readout_tokens`` as int64 ``[n, 4]`` rows of ``batch_index``."""
    tokens = trace_to_video_readout_tokens(trace, image_grid, video_grid, readout_options, video_options)
    return video_readout_tokens_to_coords(tokens, video_grid, batch_index)


def generated_to_video_readout_coords(
    generated: AutoGazeGenerateOutput,
    config: Config,
    batch: int,
    image_grid: SparseReadoutGrid | None,
    video_grid: SparseVideoReadoutGrid,
    readout_options: SparseReadoutOptions | None = None,
    video_options: SparseVideoReadoutOptions | None = None,
) -> NDArray[np.int64]:
    """``generated_to_video_readout_tokens`` as int64 ``[n, 4]`` rows that start with ``batch``."""
    tokens = generated_to_video_readout_tokens(
        generated, config, batch, image_grid, video_grid, readout_options, video_options
    )
    return video_readout_tokens_to_coords(tokens, video_grid, batch)


def frame_readout_tokens_to_video_coord_tensor(
    frame_tokens: Sequence[Any],
    projection: SparseVideoReadoutProjection,
    batch_index: int = 0,
    *,
    like: Array | None = None,
) -> Array:
    """``frame_readout_tokens_to_video_coords`` as a tensor like ``like``.

    Raises:
        InvalidInputError: as there, or the projection has no image grid, which tokens need.
    """
    if projection.image_grid is None:
        raise InvalidInputError("the projection has no image readout grid; frame tokens are numbered on one")
    coords = frame_readout_tokens_to_video_coords(
        frame_tokens, projection.image_grid, projection.video_grid, projection.video_options, batch_index
    )
    return video_readout_coords_to_tensor(coords, like=like)


def frame_readout_rects_to_video_coord_tensor(
    frame_rects: Sequence[Iterable[SparseReadoutRect]],
    video_grid: SparseVideoReadoutGrid,
    options: SparseVideoReadoutOptions | None = None,
    batch_index: int = 0,
    *,
    like: Array | None = None,
) -> Array:
    """``frame_readout_rects_to_video_coords`` as a tensor like ``like``."""
    coords = frame_readout_rects_to_video_coords(frame_rects, video_grid, options, batch_index)
    return video_readout_coords_to_tensor(coords, like=like)


def trace_to_video_readout_coord_tensor(
    trace: FrameFixationTrace,
    projection: SparseVideoReadoutProjection,
    batch_index: int = 0,
    *,
    like: Array | None = None,
) -> Array:
    """``trace_to_video_readout_coords`` as a tensor like ``like``."""
    coords = trace_to_video_readout_coords(
        trace,
        projection.image_grid,
        projection.video_grid,
        projection.readout_options,
        projection.video_options,
        batch_index,
    )
    return video_readout_coords_to_tensor(coords, like=like)


def generated_to_video_readout_coord_tensor(
    generated: AutoGazeGenerateOutput,
    config: Config,
    batch: int,
    projection: SparseVideoReadoutProjection,
    *,
    like: Array | None = None,
) -> Array:
    """``generated_to_video_readout_coords`` as a tensor like ``like``."""
    coords = generated_to_video_readout_coords(
        generated,
        config,
        batch,
        projection.image_grid,
        projection.video_grid,
        projection.readout_options,
        projection.video_options,
    )
    return video_readout_coords_to_tensor(coords, like=like)
