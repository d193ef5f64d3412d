"""A clip made ready for one run, and the run itself (spec: pipeline §6, prepare and execute)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client.fixations import FrameFixationTrace
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.nodes.clips import AutoGazeRgbaClip, AutoGazeRgbaClipShape
from autogaze_client.nodes.pipeline import AutoGazePipeline, points_of
from autogaze_client.readout.patch_diff import AutoGazeReadoutRunOutput, AutoGazeReadoutStats
from autogaze_client.result import GazeResult

__all__ = [
    "AutoGazePreparedRun",
    "FrameStream",
    "prepare_rgba_clip_for_trace",
    "readout_prepared_run",
    "readout_prepared_run_async",
    "trace_prepared_run",
    "trace_prepared_run_async",
]

_RESIZE = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT


class FrameStream(Protocol):
    """A stream that remembers the frames before: ``GazeClient.stream()`` gives one."""

    def push(self, frame: NDArray[np.uint8], /) -> GazeResult:
        """The gaze on the next frame, uint8 ``[H, W, 4]``."""


@dataclass(frozen=True, slots=True)
class AutoGazePreparedRun:
    """What one run of the model takes.

    Attributes:
        video: the frames; the last one alone for a stream.
        mode: how they become the model's input.
        frame_index: the frame of ``video`` that the run is about: its last.
        model_frames: frames that the model sees.
    """

    video: AutoGazeRgbaClip
    mode: AutoGazeInferenceMode
    frame_index: int
    model_frames: int


def prepare_rgba_clip_for_trace(
    rgba: NDArray[np.uint8] | bytes | bytearray | memoryview | AutoGazeRgbaClip,
    shape: AutoGazeRgbaClipShape | None = None,
    mode: AutoGazeInferenceMode | str = _RESIZE,
    streaming: bool = False,
) -> AutoGazePreparedRun:
    """Picks the frames of a run: all of them, or for a stream, which has seen the others, the last.

    Args:
        rgba: the frames, as ``AutoGazeRgbaClip`` takes them, or such a clip.
        shape: their size; None takes the array's.
        mode: how they become the model's input.
        streaming: whether the run continues a stream (see ``should_use_streaming_cache``).

    Raises:
        InvalidInputError: the bytes do not fit the shape, or the mode is unknown.

    Example:
        >>> clip = np.zeros((4, 6, 8, 4), np.uint8)
        >>> run = prepare_rgba_clip_for_trace(clip, streaming=True)
        >>> run.video.clip_len, run.frame_index, run.model_frames
        (1, 0, 1)
    """
    clip = rgba if isinstance(rgba, AutoGazeRgbaClip) else AutoGazeRgbaClip(rgba, shape)
    if streaming:
        clip = AutoGazeRgbaClip(clip.frames[-1:])
    return AutoGazePreparedRun(clip, AutoGazeInferenceMode.parse(mode), clip.clip_len - 1, clip.clip_len)


def trace_prepared_run(
    pipeline: AutoGazePipeline,
    run: AutoGazePreparedRun,
    top_k: int | None = None,
    *,
    stream: FrameStream | None = None,
) -> FrameFixationTrace:
    """The trace of a run, one set a frame of ``run.video``.

    Args:
        pipeline: the engine with its settings.
        run: what to run.
        top_k: fixations wanted at least; a stream has its own.
        stream: the stream that the run continues; the pipeline's engine and the run's mode are then not used:
            streams run in the resize mode.

    Raises:
        InvalidInputError: a stream, but a run of several frames.
        AutoGazeError: as ``GazeClient.gaze``.
    """
    return _result(pipeline, run, top_k, stream).trace


async def trace_prepared_run_async(
    pipeline: AutoGazePipeline,
    run: AutoGazePreparedRun,
    top_k: int | None = None,
    *,
    stream: FrameStream | None = None,
) -> FrameFixationTrace:
    """``trace_prepared_run`` in a thread, so that an event loop does not wait."""
    return await asyncio.to_thread(trace_prepared_run, pipeline, run, top_k, stream=stream)


def readout_prepared_run(
    pipeline: AutoGazePipeline,
    run: AutoGazePreparedRun,
    top_k: int | None = None,
    *,
    stream: FrameStream | None = None,
) -> AutoGazeReadoutRunOutput:
    """The chosen cells of a run, without padding, and how many slots they took.

    Args:
        pipeline: as ``trace_prepared_run``.
        run: likewise.
        top_k: likewise.
        stream: likewise.

    Raises:
        InvalidInputError: a stream, but a run of several frames.
        AutoGazeError: as ``GazeClient.gaze``.
    """
    result = _result(pipeline, run, top_k, stream)
    points = points_of((result.trace,))
    if result.mode.is_tiled:
        stats = AutoGazeReadoutStats.from_points(points, run.frame_index)
    else:
        stats = AutoGazeReadoutStats.from_generated(result.generated, run.frame_index)
    return AutoGazeReadoutRunOutput(points, run.frame_index, run.model_frames, stats)


async def readout_prepared_run_async(
    pipeline: AutoGazePipeline,
    run: AutoGazePreparedRun,
    top_k: int | None = None,
    *,
    stream: FrameStream | None = None,
) -> AutoGazeReadoutRunOutput:
    """``readout_prepared_run`` in a thread, so that an event loop does not wait."""
    return await asyncio.to_thread(readout_prepared_run, pipeline, run, top_k, stream=stream)


def _result(
    pipeline: AutoGazePipeline, run: AutoGazePreparedRun, top_k: int | None, stream: FrameStream | None
) -> GazeResult:
    if stream is None:
        return pipeline.gaze(run.video.frames, run.mode, top_k)
    if run.model_frames != 1:
        raise InvalidInputError(
            f"the run has {run.model_frames} frames, but a stream takes one at a time; prepare it with streaming=True"
        )
    return stream.push(run.video.frames[0])
