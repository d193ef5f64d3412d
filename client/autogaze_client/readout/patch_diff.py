"""A mask source without a model: the cells in which the last two frames differ (spec: readout §7)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import Array, library_of, to_numpy
from autogaze_client._errors import InvalidInputError
from autogaze_client.device_mask import AutoGazeDeviceMask, AutoGazeMaskPlanStats
from autogaze_client.fixations import FixationPoint, FixationSet, FrameFixationTrace
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.readout import _checks
from autogaze_client.readout.pyramid import ImagePyramidLevel, pool

__all__ = [
    "AutoGazePatchDiffConfig",
    "AutoGazePatchDiffDeviceMask",
    "AutoGazeReadoutRunOutput",
    "AutoGazeReadoutStats",
    "AutoGazeSparseMaskSource",
    "patch_diff_device_mask",
    "patch_diff_device_mask_async",
    "patch_diff_points_to_traces",
    "patch_diff_readout_points",
    "patch_diff_readout_points_async",
    "patch_diff_scores",
]

Points: TypeAlias = tuple[FixationPoint, ...]

_DEFAULT_THRESHOLD = 0.45
_MIN_CONFIDENCE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class AutoGazePatchDiffConfig:
    """When a cell counts as changed.

    Attributes:
        grid_size: cells per side.
        threshold: mean absolute difference that a changed cell exceeds, in the units of the video: the
            default suits values in 0..1, and standardised values cross it easily.

    Raises:
        InvalidInputError: ``grid_size`` is below 1.
    """

    grid_size: int = 14
    threshold: float = _DEFAULT_THRESHOLD

    def __post_init__(self) -> None:
        _checks.count("grid_size", self.grid_size, 1)

    @classmethod
    def new(cls, grid_size: int, threshold: float) -> AutoGazePatchDiffConfig:
        """A config whose grid is raised to at least 1."""
        return cls(max(grid_size, 1), threshold)

    def normalized(self) -> AutoGazePatchDiffConfig:
        """A copy that is safe to use: a threshold that is not finite becomes 0.45, a negative one 0."""
        threshold = self.threshold if math.isfinite(self.threshold) else _DEFAULT_THRESHOLD
        return replace(self, threshold=max(threshold, 0.0))

    def token_budget(self) -> int:
        """Cells in all."""
        return self.grid_size**2


@dataclass(frozen=True, slots=True)
class AutoGazeSparseMaskSource:
    """What decides which cells matter: the AutoGaze model (the default), or differences between frames.

    Attributes:
        config: of the differences; None = the model.
    """

    config: AutoGazePatchDiffConfig | None = None

    @classmethod
    def autogaze(cls) -> AutoGazeSparseMaskSource:
        """The AutoGaze model."""
        return cls()

    @classmethod
    def patch_diff(cls, config: AutoGazePatchDiffConfig | None = None) -> AutoGazeSparseMaskSource:
        """Differences between frames."""
        return cls(config or AutoGazePatchDiffConfig())

    def requires_autogaze_model(self) -> bool:
        """Whether the model must run."""
        return self.config is None

    def is_patch_diff(self) -> bool:
        """Whether cells come from differences between frames."""
        return self.config is not None


@dataclass(frozen=True, slots=True)
class AutoGazeReadoutStats:
    """Points of a frame, over all clips.

    Attributes:
        generated: slots that hold a choice or padding.
        active: those that hold a choice.
        padded: those that hold padding.
    """

    generated: int
    active: int
    padded: int

    @classmethod
    def from_generated(cls, generated: AutoGazeGenerateOutput, frame: int) -> AutoGazeReadoutStats:
        """Counts the slots of a frame in every row; zeros for a frame that is not there."""
        padded = generated.if_padded_gazing[:, generated.frame_of_slot == frame]
        return cls(int(padded.size), int((~padded).sum()), int(padded.sum()))

    @classmethod
    def from_points(
        cls, points: Sequence[Sequence[Sequence[FixationPoint]]], frame: int
    ) -> AutoGazeReadoutStats:
        """Counts a frame's points of ``points[clip][frame]`` that are no padding; zeros for one that is not there."""
        frames = [clip[frame] for clip in points if 0 <= frame < len(clip)]
        active = sum(point.confidence > 0 for cells in frames for point in cells)
        return cls(active, active, 0)


@dataclass(frozen=True)
class AutoGazeReadoutRunOutput:
    """Points of a clip.

    Attributes:
        points: ``points[clip][frame][point]``.
        frame_index: the frame that the run is about.
        model_frames: frames that went in.
        stats: of that frame.
    """

    points: tuple[tuple[Points, ...], ...]
    frame_index: int
    model_frames: int
    stats: AutoGazeReadoutStats


@dataclass(frozen=True, eq=False)
class AutoGazePatchDiffDeviceMask:
    """The changed cells of one clip as a mask.

    Attributes:
        mask: on the device of the video.
        points: the cells of the last frame.
        grid_size: cells per side.
        active_cell_count: cells that changed.
        frame_index: the last frame.
        model_frames: frames that went in.
        stats: of the last frame.
    """

    mask: AutoGazeDeviceMask
    points: Points
    grid_size: int
    active_cell_count: int
    frame_index: int
    model_frames: int
    stats: AutoGazeReadoutStats


def patch_diff_scores(video: Array, config: AutoGazePatchDiffConfig | None = None) -> Array:
    """Mean absolute difference of the last two frames in every cell, over its pixels and channels.

    Args:
        video: ``[B, T, C, H, W]``; integers become float32. A torch or CuPy array stays on its device.
        config: the grid.

    Returns:
        ``[B, grid²]`` in the units of the video; zeros for a single frame.

    Raises:
        InvalidInputError: another rank, or a dimension of 0.
    """
    grid = (config or AutoGazePatchDiffConfig()).grid_size
    library = library_of(video=video)
    video = library.floating(library.asarray(video))
    if video.ndim != 5 or 0 in video.shape:
        raise InvalidInputError(f"video has shape {list(video.shape)}; it must be [B, T, C, H, W], none 0")
    last = video[:, -1]
    previous = video[:, -2] if video.shape[1] > 1 else last
    change = abs(last - previous).mean(1)[:, None]
    return pool(library, change, ImagePyramidLevel(grid, grid)).reshape(video.shape[0], grid * grid)


def patch_diff_readout_points(
    video: Array, config: AutoGazePatchDiffConfig | None = None
) -> AutoGazeReadoutRunOutput:
    """The changed cells as points of the last frame, most changed first; equal ones by index.

    A confidence is ``score / threshold``, clamped to 0..1, which is 1 for every cell above a positive
    threshold; with a threshold of 0 it is the score, clamped. Scores are read back to the host.

    Args:
        video: ``[B, T, C, H, W]``.
        config: grid and threshold.

    Raises:
        InvalidInputError: a shape that does not fit, or a threshold that is negative or not finite.
    """
    chosen = _usable(config)
    frames = video.shape[1] if len(video.shape) == 5 else 0
    points = [_points(scores, chosen) for scores in to_numpy(patch_diff_scores(video, chosen))]
    return _run_output(points, frames)


async def patch_diff_readout_points_async(
    video: Array, config: AutoGazePatchDiffConfig | None = None
) -> AutoGazeReadoutRunOutput:
    """``patch_diff_readout_points`` in a thread, so that an event loop does not wait for the device."""
    return await asyncio.to_thread(patch_diff_readout_points, video, config)


def patch_diff_device_mask(
    video: Array, config: AutoGazePatchDiffConfig | None, height: int, width: int
) -> AutoGazePatchDiffDeviceMask:
    """The changed cells of one clip as a mask on the video's device.

    Pixel i belongs to cell ``floor(i · grid / size)``. The counts are those of the mask that is painted (the
    reference's can differ where it rounds, and its row spans are the height).

    Args:
        video: ``[1, T, C, H, W]``.
        config: grid and threshold.
        height: of the mask, in pixels.
        width: of the mask, in pixels.

    Raises:
        InvalidInputError: a batch other than 1, a side below 1, or as ``patch_diff_readout_points``.
    """
    chosen = _usable(config)
    for name, size in (("height", height), ("width", width)):
        _checks.count(name, size, 1)
    if len(video.shape) == 5 and video.shape[0] != 1:
        raise InvalidInputError(f"video has a batch of {video.shape[0]}; a device mask is of one clip")
    scores = patch_diff_scores(video, chosen)
    library, grid = library_of(scores=scores), chosen.grid_size
    cells = library.float32((abs(scores) < math.inf) & (scores > chosen.threshold)).reshape(grid, grid)
    rows, columns = library.arange(height) * grid // height, library.arange(width) * grid // width
    points = _points(to_numpy(scores)[0], chosen)
    run = _run_output([points], video.shape[1])
    return AutoGazePatchDiffDeviceMask(
        mask=AutoGazeDeviceMask(
            cells[rows][:, columns][:, :, None], _mask_stats(to_numpy(cells) > 0, height, width)
        ),
        points=points,
        grid_size=grid,
        active_cell_count=len(points),
        frame_index=run.frame_index,
        model_frames=run.model_frames,
        stats=run.stats,
    )


async def patch_diff_device_mask_async(
    video: Array, config: AutoGazePatchDiffConfig | None, height: int, width: int
) -> AutoGazePatchDiffDeviceMask:
    """``patch_diff_device_mask`` in a thread, so that an event loop does not wait for the device."""
    return await asyncio.to_thread(patch_diff_device_mask, video, config, height, width)


def patch_diff_points_to_traces(
    points: Sequence[Sequence[Sequence[FixationPoint]]], n: int
) -> tuple[FrameFixationTrace, ...]:
    """One trace a clip of ``points[clip][frame][point]``; every frame is padded to ``max(n, 1)`` and stops."""
    return tuple(
        FrameFixationTrace(FixationSet.with_min_len(frame, 1.0, max(n, 1)) for frame in clip)
        for clip in points
    )


def _usable(config: AutoGazePatchDiffConfig | None) -> AutoGazePatchDiffConfig:
    chosen = config or AutoGazePatchDiffConfig()
    if not (math.isfinite(chosen.threshold) and chosen.threshold >= 0):
        raise InvalidInputError(
            f"threshold is {chosen.threshold}; it must be finite and not negative: set it, or use normalized()"
        )
    return chosen


def _points(scores: NDArray[Any], config: AutoGazePatchDiffConfig) -> Points:
    cells = np.flatnonzero(np.isfinite(scores) & (scores > config.threshold))
    cells = cells[np.argsort(-scores[cells], kind="stable")]
    levels = scores[cells].astype(np.float64)
    levels = np.clip(levels / config.threshold if config.threshold > 0 else levels, _MIN_CONFIDENCE, 1.0)
    grid, extent = config.grid_size, 1.0 / config.grid_size
    rows = np.zeros((len(cells), 7))
    rows[:, 1], rows[:, 2] = (cells % grid + 0.5) * extent, (cells // grid + 0.5) * extent
    rows[:, 3:5], rows[:, 5], rows[:, 6] = extent, levels, grid
    return FrameFixationTrace.from_array(rows, 1, [0.0]).frames[0].points


def _run_output(points: Sequence[Points], frames: int) -> AutoGazeReadoutRunOutput:
    count = sum(len(cells) for cells in points)
    return AutoGazeReadoutRunOutput(
        points=tuple(((),) * (frames - 1) + (cells,) for cells in points),
        frame_index=frames - 1,
        model_frames=frames,
        stats=AutoGazeReadoutStats(generated=count, active=count, padded=0),
    )


def _mask_stats(cells: NDArray[np.bool_], height: int, width: int) -> AutoGazeMaskPlanStats:
    grid = len(cells)
    rows, columns = (np.bincount(np.arange(size) * grid // size, minlength=grid) for size in (height, width))
    # Cells without a pixel column (a mask narrower than the grid) do not part a run.
    painted = cells[:, columns > 0]
    runs = painted[:, :1].sum(1) + (painted[:, 1:] & ~painted[:, :-1]).sum(1)
    return AutoGazeMaskPlanStats(
        rect_count=int(cells.sum()),
        row_span_count=int((runs * rows).sum()),
        pixel_count=int(rows @ cells.astype(np.int64) @ columns),
    )
