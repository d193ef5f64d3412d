"""An engine with the settings of a request, for clips of any kind (spec: pipeline §6)."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client.fixations import FixationPoint, FrameFixationTrace
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.nodes.clips import AutoGazeClip, AutoGazeRgbaClip, AutoGazeTensorClip
from autogaze_client.nodes.engines import GazeEngine, load_engine
from autogaze_client.nodes.realtime import DEFAULT_REALTIME_TOP_K
from autogaze_client.result import GazeResult

__all__ = ["AutoGazePipeline", "AutoGazeTeacher", "FramePoints"]

FramePoints = tuple[tuple[tuple[FixationPoint, ...], ...], ...]
"""``points[clip][frame][point]``."""

# Tokens that the supported architectures choose at once.
_GROUP = 10

_RESIZE = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT


class AutoGazeTeacher(Protocol):
    """Anything that traces one clip for a student: ``AutoGazePipeline`` does."""

    def trace_clip(
        self,
        frames: Sequence[float] | NDArray[np.floating[Any]],
        clip_len: int,
        channels: int,
        height: int,
        width: int,
        k: int,
    ) -> FrameFixationTrace:
        """The trace of one clip of normalised values, in the order T, C, H, W, with at least ``k`` fixations wanted."""


class AutoGazePipeline:
    """Gazes at clips, through a server or in this process.

    Args:
        engine: does the work.
        gazing_ratio: as ``GazeClient.gaze``.
        task_loss_requirement: likewise.
        max_gaze_tokens_each_frame: likewise.
        concurrent: whether the engine's calls may overlap (a client's may, an in-process model's must not).

    Example:
        >>> pipeline = AutoGazePipeline.load("localhost:8001")  # or a bundle's folder  # doctest: +SKIP
        >>> traces = pipeline.trace_rgba_clip_with_mode(AutoGazeRgbaClip(frames), "resize")  # doctest: +SKIP
    """

    def __init__(
        self,
        engine: GazeEngine,
        *,
        gazing_ratio: float | Sequence[float] | None = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: int | Sequence[int] | None = None,
        concurrent: bool = False,
    ) -> None:
        self.engine = engine
        self.gazing_ratio = gazing_ratio
        self.task_loss_requirement = task_loss_requirement
        self.max_gaze_tokens_each_frame = max_gaze_tokens_each_frame
        self._lock = nullcontext() if concurrent else threading.Lock()

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        gazing_ratio: float | Sequence[float] | None = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: int | Sequence[int] | None = None,
        **settings: Any,
    ) -> AutoGazePipeline:
        """A pipeline on a bundle's folder, in this process, or on the server at ``host:port``.

        Args:
            source: the folder or the url.
            gazing_ratio: as the constructor.
            task_loss_requirement: likewise.
            max_gaze_tokens_each_frame: likewise.
            settings: go to ``GazeModel.load`` (such as ``device``) or ``GazeClient`` (such as ``tls``).

        Raises:
            NotFoundError: neither a folder nor a url.
            MissingExtraError: it is a folder, but no package that runs bundles is installed.
        """
        return cls(
            load_engine(source, **settings),
            gazing_ratio=gazing_ratio,
            task_loss_requirement=task_loss_requirement,
            max_gaze_tokens_each_frame=max_gaze_tokens_each_frame,
            concurrent=not Path(source).exists(),
        )

    def gaze(
        self,
        frames: NDArray[np.uint8],
        mode: AutoGazeInferenceMode | str = _RESIZE,
        top_k: int | None = DEFAULT_REALTIME_TOP_K,
    ) -> GazeResult:
        """The gaze on uint8 frames ``[T, H, W, 3 or 4]``.

        Raises:
            AutoGazeError: as ``GazeClient.gaze``.
        """
        with self._lock:
            return self.engine.gaze(
                frames,
                mode=AutoGazeInferenceMode.parse(mode),
                gazing_ratio=self.gazing_ratio,
                task_loss_requirement=self.task_loss_requirement,
                max_gaze_tokens_each_frame=self.max_gaze_tokens_each_frame,
                top_k=top_k,
            )

    def gaze_clip(
        self, clip: AutoGazeClip, mode: AutoGazeInferenceMode | str = _RESIZE, top_k: int | None = None
    ) -> tuple[GazeResult, ...]:
        """One result for each clip of a batch, in order."""
        return tuple(self.gaze(clip.rgb_frames(row), mode, top_k) for row in range(clip.batch))

    def trace_rgba_clip_with_mode(
        self, clip: AutoGazeRgbaClip, mode: AutoGazeInferenceMode | str = _RESIZE, top_k: int | None = None
    ) -> FrameFixationTrace:
        """The trace of an RGBA clip, in coordinates of its frames."""
        return self.gaze(clip.frames, mode, top_k).trace

    def trace_clip_from_frames_with_mode(
        self,
        frames: Sequence[float] | NDArray[np.floating[Any]],
        clip_len: int,
        channels: int,
        height: int,
        width: int,
        mode: AutoGazeInferenceMode | str = _RESIZE,
        k: int | None = None,
    ) -> FrameFixationTrace:
        """The trace of one clip of normalised values, in the order T, C, H, W.

        Args:
            frames: ``clip_len · channels · height · width`` values, as ``AutoGazeTensorClip`` takes them.
            clip_len: frames.
            channels: 3.
            height: in pixels.
            width: in pixels.
            mode: how frames become the model's input.
            k: fixations wanted at least.

        Raises:
            InvalidInputError: another number of values, a size of 0, or other than 3 channels.
            AutoGazeError: as ``GazeClient.gaze``.
        """
        clip = _clip_of_values(frames, (clip_len, channels, height, width))
        return self.gaze(clip.rgb_frames(0), mode, k).trace

    def trace_clip(
        self,
        frames: Sequence[float] | NDArray[np.floating[Any]],
        clip_len: int,
        channels: int,
        height: int,
        width: int,
        k: int,
    ) -> FrameFixationTrace:
        """What ``AutoGazeTeacher`` asks for: at most ``max(k, 10)`` tokens a frame, whatever the pipeline's cap.

        Ten tokens are what the model chooses at once. Takes and raises what ``trace_clip_from_frames_with_mode`` does.
        """
        clip = _clip_of_values(frames, (clip_len, channels, height, width))
        with self._lock:
            return self.engine.gaze(
                clip.rgb_frames(0),
                mode=_RESIZE,
                task_loss_requirement=self.task_loss_requirement,
                max_gaze_tokens_each_frame=max(k, _GROUP),
                top_k=k,
            ).trace

    def readout_points_with_mode(
        self, clip: AutoGazeClip, mode: AutoGazeInferenceMode | str = _RESIZE, top_k: int | None = None
    ) -> FramePoints:
        """The chosen cells as ``points[clip][frame][point]``; no padding.

        In decoder order; in tiled modes by confidence.
        """
        return points_of(tuple(result.trace for result in self.gaze_clip(clip, mode, top_k)))

    async def readout_points_with_mode_async(
        self, clip: AutoGazeClip, mode: AutoGazeInferenceMode | str = _RESIZE, top_k: int | None = None
    ) -> FramePoints:
        """``readout_points_with_mode`` in a thread, so that an event loop does not wait."""
        return await asyncio.to_thread(self.readout_points_with_mode, clip, mode, top_k)

    def close(self) -> None:
        """Closes the engine where it can be closed."""
        close = getattr(self.engine, "close", None)
        if close is not None:
            close()


def _clip_of_values(values: Any, shape: tuple[int, int, int, int]) -> AutoGazeTensorClip:
    array = np.asarray(values, np.float32)
    if array.size != math.prod(shape):
        raise InvalidInputError(
            f"frames has {array.size} values; a clip of T, C, H, W = {list(shape)} needs {math.prod(shape)}"
        )
    return AutoGazeTensorClip(array.reshape(1, *shape))


def points_of(traces: Sequence[FrameFixationTrace]) -> FramePoints:
    """The points of traces, without padding."""
    return tuple(
        tuple(tuple(point for point in frame.points if point.confidence > 0) for frame in trace.frames)
        for trace in traces
    )
