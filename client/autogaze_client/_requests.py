"""What both clients share: from a source and its options to requests, without any input or output."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import AutoGazeError, InvalidInputError
from autogaze_client._wire import GazeOptions, Tensors, clip_tensors, decode_result, video_tensors
from autogaze_client.result import GazeResult, GazeTimings
from autogaze_client.video import VideoReader

__all__ = ["IN_FLIGHT", "GazeSource", "Request", "VideoSource", "finish", "in_context", "single_request"]

GazeSource = NDArray[np.uint8] | str | Path | bytes
"""uint8 frames ``[T, H, W, 3 or 4]``, the path of a video, or the bytes of an encoded video."""

IN_FLIGHT = 2
"""Windows of a video that are with the server at a time: one computes while the next travels."""


@dataclass(frozen=True)
class Request:
    """One request of the ensemble.

    Attributes:
        inputs: its tensors.
        frames: frames in it; 0 where only the server knows.
        context: what to say of it when it fails; empty for a lone clip.
        read_ms: time spent decoding its frames on this side.
    """

    inputs: Tensors
    frames: int = 0
    context: str = ""
    read_ms: float = 0.0


@dataclass(frozen=True)
class VideoSource:
    """A video that is read here and sent in windows, each an independent clip.

    Attributes:
        path: of the video.
        window_frames: frames a window; the last may be shorter.
        start_frame: frames to skip first.
        max_frames: frames to send at most; None = all.
    """

    path: Path
    window_frames: int = 16
    start_frame: int = 0
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.window_frames < 1:
            raise InvalidInputError(f"window_frames is {self.window_frames}; it must be 1 or more")

    def open(self) -> VideoReader:
        """The reader of these frames.

        Raises:
            VideoDecodeError: the file is missing or no video.
        """
        return VideoReader(self.path, start_frame=self.start_frame, max_frames=self.max_frames)

    def requests(self, reader: VideoReader, options: GazeOptions) -> Iterator[Request]:
        """One request a window, read as they are asked for.

        Raises:
            VideoDecodeError: the video is truncated or damaged.
            InvalidInputError: a list of ``options`` does not fit a window.
        """
        first = self.start_frame
        windows = reader.windows(self.window_frames)
        while True:
            started = time.perf_counter()
            frames = next(windows, None)
            if frames is None:
                return
            last = first + len(frames) - 1
            request = Request(
                inputs={},
                frames=len(frames),
                context=f"frames {first} to {last} of {self.path.name}",
                read_ms=(time.perf_counter() - started) * 1e3,
            )
            try:
                inputs = clip_tensors(frames, options)
            except AutoGazeError as error:
                raise in_context(error, request) from error
            yield replace(request, inputs=inputs)
            first = last + 1


def single_request(source: object, options: GazeOptions, video: VideoSource) -> Request:
    """The request for an array of frames or the bytes of an encoded video.

    Raises:
        InvalidInputError: another type, bad frames, or options that only a path has.
    """
    if not isinstance(source, np.ndarray | bytes | bytearray | memoryview):
        raise InvalidInputError(
            f"the source is a {type(source).__name__}; pass uint8 frames [T, H, W, 3 or 4] as a numpy array, "
            "the path of a video, or the bytes of an encoded video"
        )
    if video.start_frame or video.max_frames is not None:
        raise InvalidInputError(
            f"start_frame is {video.start_frame} and max_frames is {video.max_frames}, but only a "
            "path is read "
            "frame by frame here; slice the array, or pass the video's path"
        )
    if isinstance(source, np.ndarray):
        return Request(clip_tensors(source, options), frames=len(source) if source.ndim else 0)
    return Request(video_tensors(bytes(source), options))


def finish(outputs: Tensors, request: Request, options: GazeOptions, request_ms: float) -> GazeResult:
    """The result of a response, with its timings.

    Raises:
        InferenceError: the response is incomplete or contradicts itself.
    """
    started = time.perf_counter()
    result = decode_result(outputs, options.inference_mode, GazeTimings())
    timings = GazeTimings(
        read_ms=request.read_ms,
        request_ms=request_ms,
        decode_ms=(time.perf_counter() - started) * 1e3,
    )
    return replace(result, timings=timings)


def in_context(error: AutoGazeError, request: Request) -> AutoGazeError:
    """The same error, saying which frames of which video failed."""
    return type(error)(f"{request.context}: {error}") if request.context else error


def video_source(source: Any, window_frames: int, start_frame: int, max_frames: int | None) -> VideoSource:
    """The windows of ``source``, a path; other sources get an empty path, which is never opened."""
    path = Path(source) if isinstance(source, str | Path) else Path()
    return VideoSource(path, window_frames, start_frame, max_frames)
