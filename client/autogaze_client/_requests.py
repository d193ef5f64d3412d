"""What both clients share: from a source and its options to requests, without any input or output."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autogaze_client._device_arrays import as_frames
from autogaze_client._errors import AutoGazeError, InferenceError, InvalidInputError
from autogaze_client._wire import GazeOptions, Inputs, Tensors, clip_tensors, decode_result, video_tensors
from autogaze_client.result import GazeResult, GazeTimings
from autogaze_client.video import VideoReader

__all__ = [
    "IN_FLIGHT",
    "STREAM_MODEL",
    "WINDOW_FRAMES",
    "GazeSource",
    "Request",
    "VideoSource",
    "check_not_of_a_path",
    "finish",
    "in_context",
    "single_request",
    "streamed_frame",
    "video_source",
]


class DeviceFrames(Protocol):
    """An array of another library: torch, CuPy, or anything with DLPack; ``__cuda_array_interface__`` does, too."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


GazeSource = NDArray[np.uint8] | DeviceFrames | str | Path | bytes
"""uint8 frames ``[T, H, W, 3 or 4]``, the path of a video, or the bytes of an encoded video."""

WINDOW_FRAMES = 16
"""Frames of a window where the caller does not say: what the published model was trained on."""

IN_FLIGHT = 4
"""Windows of a video that are with the server at a time, so that it runs them as one batch."""

STREAM_MODEL = "autogaze_stream"
"""The server's model of streams."""


@dataclass(frozen=True)
class Request:
    """One request of the ensemble.

    Attributes:
        inputs: its tensors.
        frames: frames in it; 0 where only the server knows.
        context: what to say of it when it fails; empty for a lone clip.
        read_ms: time spent decoding its frames on this side.
        timestamps: seconds of its frames, where they are known on this side.
    """

    inputs: Inputs
    frames: int = 0
    context: str = ""
    read_ms: float = 0.0
    timestamps: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class VideoSource:
    """A video that is read here and sent in windows, each an independent clip, or as one stream.

    Attributes:
        path: of the video.
        window_frames: frames a window; the last may be shorter.
        start_frame: frames to skip first.
        max_frames: frames to send at most; None = all.
        frame_stride: every n-th frame is sent.
        in_flight: windows that are with the server at a time.
        as_stream: whether frames go one after another through a stream of the server.
    """

    path: Path
    window_frames: int = WINDOW_FRAMES
    start_frame: int = 0
    max_frames: int | None = None
    frame_stride: int = 1
    in_flight: int = IN_FLIGHT
    as_stream: bool = False

    def __post_init__(self) -> None:
        if self.window_frames < 1:
            raise InvalidInputError(f"window_frames is {self.window_frames}; it must be 1 or more")
        if self.in_flight < 1:
            raise InvalidInputError(f"in_flight is {self.in_flight}; it must be 1 or more")

    def open(self) -> VideoReader:
        """The reader of these frames.

        Raises:
            VideoDecodeError: the file is missing or no video.
        """
        return VideoReader(
            self.path,
            start_frame=self.start_frame,
            max_frames=self.max_frames,
            frame_stride=self.frame_stride,
        )

    def requests(self, reader: VideoReader, options: GazeOptions) -> Iterator[Request]:
        """One request a window, read as they are asked for.

        Raises:
            VideoDecodeError: the video is truncated or damaged.
            InvalidInputError: a list of ``options`` does not fit a window.
        """
        first = self.start_frame
        windows = reader.timed_windows(self.window_frames)
        while True:
            started = time.perf_counter()
            window = next(windows, None)
            if window is None:
                return
            timestamps, frames = window
            last = first + (len(frames) - 1) * self.frame_stride
            request = Request(
                inputs={},
                frames=len(frames),
                context=f"frames {first} to {last} of {self.path.name}",
                read_ms=(time.perf_counter() - started) * 1e3,
                timestamps=timestamps,
            )
            try:
                inputs = clip_tensors(frames, options)
            except AutoGazeError as error:
                raise in_context(error, request) from error
            yield replace(request, inputs=inputs)
            first = last + self.frame_stride

    def frames(self, reader: VideoReader) -> Iterator[tuple[Request, NDArray[np.uint8]]]:
        """One frame after another for a stream, with what is known of its request.

        Raises:
            VideoDecodeError: the video is truncated or damaged.
        """
        index = self.start_frame
        frames = reader.timed()
        while True:
            started = time.perf_counter()
            item = next(frames, None)
            if item is None:
                return
            request = Request(
                inputs={},
                frames=1,
                context=f"frame {index} of {self.path.name}",
                read_ms=(time.perf_counter() - started) * 1e3,
                timestamps=np.array([item[0]]),
            )
            yield request, item[1]
            index += self.frame_stride


def single_request(frames: object, options: GazeOptions) -> Request:
    """The request for an array of frames or the bytes of an encoded video.

    Raises:
        InvalidInputError: another type, or bad frames.
    """
    if isinstance(frames, bytes | bytearray | memoryview):
        return Request(video_tensors(bytes(frames), options))
    clip = as_frames(frames)
    if clip is not None:
        return Request(clip_tensors(clip, options), frames=len(clip))
    raise InvalidInputError(
        f"frames is a {type(frames).__name__}; pass uint8 frames [T, H, W, 3 or 4] as a numpy, torch or CuPy array, "
        "the path of a video, or the bytes of an encoded video"
    )


def check_not_of_a_path(
    window_frames: int | None,
    start_frame: int,
    max_frames: int | None,
    frame_stride: int,
    as_stream: bool,
    in_flight: int | None,
    progress: bool,
) -> None:
    """Refuses, for an array or bytes, the arguments that only a path has.

    Raises:
        InvalidInputError: one of them was given.
    """
    given = {
        "window_frames": (window_frames, window_frames is not None),
        "start_frame": (start_frame, start_frame != 0),
        "max_frames": (max_frames, max_frames is not None),
        "frame_stride": (frame_stride, frame_stride != 1),
        "as_stream": (as_stream, bool(as_stream)),
        "in_flight": (in_flight, in_flight is not None),
        "progress": (progress, bool(progress)),
    }
    for name, (value, is_given) in given.items():
        if is_given:
            raise InvalidInputError(
                f"{name} is {value}, but only a path is read in windows here, while an array or bytes are one request; "
                "slice the array, or pass the video's path"
            )


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
    timestamps = request.timestamps
    if timestamps is not None and len(timestamps) != result.source_size.frames:
        raise InferenceError(
            f"the response is of {result.source_size.frames} frames, but {len(timestamps)} were sent: the server is "
            "of another version than this client"
        )
    return replace(result, timings=timings, timestamps=timestamps)


def streamed_frame(result: GazeResult, request: Request) -> GazeResult:
    """The result of a stream's frame, with what the video knows of it."""
    timings = replace(result.timings, read_ms=request.read_ms)
    return replace(result, timings=timings, timestamps=request.timestamps)


def in_context(error: AutoGazeError, request: Request) -> AutoGazeError:
    """The same error, saying which frames of which video failed."""
    return type(error)(f"{request.context}: {error}") if request.context else error


def video_source(
    path: object,
    options: GazeOptions,
    *,
    window_frames: int | None,
    start_frame: int,
    max_frames: int | None,
    frame_stride: int,
    as_stream: bool,
    in_flight: int | None,
    priority: int | None = None,
) -> VideoSource:
    """The windows of the video at ``path``, or its frames as a stream.

    Raises:
        InvalidInputError: it is no path, a number is below 1, or an argument does not go with ``as_stream``.
    """
    if not isinstance(path, str | Path):
        raise InvalidInputError(
            f"path is a {type(path).__name__}; only a video's path is read in windows: pass one, or give the array or "
            "bytes to gaze()"
        )
    if as_stream:
        if priority is not None:
            raise InvalidInputError(
                f"priority is {priority}, but the frames of streams are served in the order in which they come; "
                "leave it out"
            )
        if in_flight is not None:
            raise InvalidInputError(
                f"in_flight is {in_flight}, but the frames of a stream depend on each other and go one at a time; "
                "leave it out"
            )
        for name in ("gazing_ratio", "max_gaze_tokens_each_frame"):
            if np.ndim(getattr(options, name)) > 0:
                raise InvalidInputError(
                    f"{name} is a list, but a stream's frames are requests of their own; pass one number for all"
                )
    windows = WINDOW_FRAMES if window_frames is None else window_frames
    flight = IN_FLIGHT if in_flight is None else in_flight
    return VideoSource(Path(path), windows, start_frame, max_frames, frame_stride, flight, as_stream)
