"""Reading and writing video files with PyAV (extra ``video``), a few frames in memory at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError, MissingExtraError, VideoDecodeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["VideoReader", "VideoWriter"]


def _import_av(feature: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError.for_extra(feature, "video", error) from error
    return av


class VideoReader:
    """Frames of a video file as RGB, in presentation order, as stored (rotation metadata is not applied).

    Iterating opens the file anew, so a reader can be read more than once.

    Args:
        source: the path of a file that FFmpeg reads, or the bytes of one.
        start_frame: frames to skip first.
        max_frames: frames to read at most; None = all.

    Raises:
        VideoDecodeError: the file is missing, is no video, or has no video stream.
        InvalidInputError: ``start_frame`` is negative or ``max_frames`` below 1.
        MissingExtraError: PyAV is not installed.

    Example:
        >>> for window in VideoReader("clip.mp4").windows(16):  # doctest: +SKIP
        ...     print(window.shape)  # (16, 720, 1280, 3)
    """

    def __init__(
        self, source: str | Path | bytes, *, start_frame: int = 0, max_frames: int | None = None
    ) -> None:
        if start_frame < 0:
            raise InvalidInputError(f"start_frame is {start_frame}; it must be 0 or more")
        if max_frames is not None and max_frames < 1:
            raise InvalidInputError(
                f"max_frames is {max_frames}; it must be 1 or more, or None for all frames"
            )
        self._source = source if isinstance(source, bytes) else Path(source)
        self.name = "the encoded video" if isinstance(source, bytes) else str(source)
        self._start = start_frame
        self._max = max_frames
        with self._open() as container:
            stream = container.streams.video[0]
            self.width: int = stream.width
            self.height: int = stream.height
            self.fps: Fraction = stream.average_rate or stream.guessed_rate or Fraction(25)
            self.declared_frames: int | None = _declared_frames(stream)
            total = self.declared_frames
            if total is None and container.duration:
                total = round(container.duration / 1_000_000 * self.fps)
        self.frame_count: int | None = None if total is None else max(total - start_frame, 0)
        """Frames this reader will give, as the file declares or its duration suggests; None = unknown."""
        if self.frame_count is not None and max_frames is not None:
            self.frame_count = min(self.frame_count, max_frames)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing stays open between iterations; the file is closed with each iterator."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yields uint8 ``[H, W, 3]`` frames.

        Raises:
            VideoDecodeError: the file is truncated or damaged, or has no frame ``start_frame``. It is
                raised after the frames that could be read.
        """
        decoded = given = 0
        for frame in self._decoded():
            decoded += 1
            if decoded <= self._start:
                continue
            given += 1
            yield frame.to_ndarray(format="rgb24")
            if given == self._max:
                return
        if given == 0:
            raise VideoDecodeError(
                f"{self.name}: start_frame is {self._start}, but the video has {decoded} frames; "
                "start earlier"
                if decoded
                else f"{self.name}: no frame could be decoded; the video stream is empty or damaged"
            )

    def windows(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yields consecutive uint8 ``[t, H, W, 3]`` clips of ``size`` frames; the last may be shorter.

        Raises:
            VideoDecodeError: as iterating does.
            InvalidInputError: ``size`` is below 1.
        """
        if size < 1:
            raise InvalidInputError(f"the window has {size} frames; it must have at least 1")
        window: list[NDArray[np.uint8]] = []
        for frame in self:
            if window and frame.shape != window[0].shape:
                raise VideoDecodeError(
                    f"{self.name}: the frame size changes from {window[0].shape[1::-1]} to "
                    f"{frame.shape[1::-1]}; "
                    "re-encode the video at one size"
                )
            window.append(frame)
            if len(window) == size:
                yield np.stack(window)
                window = []
        if window:
            yield np.stack(window)

    def _decoded(self) -> Iterator[Any]:
        """Every decoded frame from the start of the file; raises where the file ends early."""
        av = _import_av("reading a video")
        decoded = 0
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for packet in container.demux(stream):
                    if packet.is_corrupt:
                        raise self._truncated(decoded, "a packet is cut short")
                    for frame in packet.decode():
                        decoded += 1
                        yield frame
            except av.error.FFmpegError as error:
                raise self._truncated(decoded, f"{error.strerror}") from error
        declared = self.declared_frames
        if declared is not None and decoded < declared and self._stored_packets() < declared:
            raise self._truncated(decoded, "the file ends there")

    def _stored_packets(self) -> int:
        """Frames that the file really holds, those that an edit list hides included."""
        with self._open(ignore_editlist=True) as container:
            return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)

    def _truncated(self, decoded: int, reason: str) -> VideoDecodeError:
        of = f" of {self.declared_frames}" if self.declared_frames is not None else ""
        return VideoDecodeError(
            f"{self.name}: truncated or damaged: {decoded}{of} frames could be read ({reason}); "
            f"get the whole file again, or read no more than max_frames={decoded}"
        )

    def _open(self, *, ignore_editlist: bool = False) -> InputContainer:
        av = _import_av("reading a video")
        if isinstance(self._source, Path) and not self._source.is_file():
            raise VideoDecodeError(f"{self.name}: there is no such file; check the path")
        options = {"ignore_editlist": "1"} if ignore_editlist else {}
        try:
            file = io.BytesIO(self._source) if isinstance(self._source, bytes) else str(self._source)
            container: InputContainer = av.open(file, options=options)
        except (av.error.FFmpegError, UnicodeDecodeError) as error:
            raise VideoDecodeError(
                f"{self.name}: not a video that FFmpeg reads, or truncated ({error})"
            ) from error
        if not container.streams.video:
            container.close()
            raise VideoDecodeError(f"{self.name}: has no video stream; pass a file with pictures")
        return container


def _declared_frames(stream: VideoStream) -> int | None:
    if stream.frames:
        return int(stream.frames)
    # Matroska has no field for it; its usual muxer leaves a tag.
    for name, value in stream.metadata.items():
        if name.upper().startswith("NUMBER_OF_FRAMES") and value.isdigit():
            return int(value)
    return None


class VideoWriter:
    """Writes RGB frames to an H.264 MP4 (libx264, yuv420p), a context manager.

    4:2:0 needs even sides: an odd frame is padded by repeating its last column or row.

    Args:
        path: the file to write; its folder must exist.
        fps: frames a second.
        quality: x264's constant rate factor; lower is better, 18 is visually lossless.

    Raises:
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: str | Path, *, fps: Fraction | int = 25, quality: int = 20) -> None:
        self._av = _import_av("writing a video")
        self.path = Path(path)
        self._fps = Fraction(fps)
        self._quality = quality
        self._container: Any = None
        self._stream: Any = None
        self._shape: tuple[int, ...] = ()

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Appends a uint8 ``[H, W, 3]`` frame; every frame has the size of the first.

        Raises:
            InvalidInputError: another type, shape or size.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise InvalidInputError(f"the frame is {frame.dtype} {frame.shape}; it must be uint8 [H, W, 3]")
        height, width = frame.shape[:2]
        if self._container is None:
            self._container = self._av.open(str(self.path), "w")
            self._stream = self._container.add_stream("libx264", rate=self._fps)
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": str(self._quality), "preset": "veryfast"}
            self._shape = frame.shape
        if frame.shape != self._shape:
            raise InvalidInputError(
                f"the frame is {width}x{height}, but the video is {self._shape[1]}x{self._shape[0]}; "
                "write one video for each size"
            )
        padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Flushes the encoder and closes the file. Without a frame, no file was made."""
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
