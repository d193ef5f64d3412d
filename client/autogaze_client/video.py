"""Reading video files with PyAV (extra ``video``), a few frames in memory at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._av import import_av
from autogaze_client._declared import DeclaredEnd, declared_frames
from autogaze_client._errors import InvalidInputError, VideoDecodeError
from autogaze_client._pictures import Orientation, square_width, to_rgb

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = ["VideoReader"]

# FFmpeg also opens playlists and session descriptions, which name other files and hosts to read. Bytes may come
# from anyone, so they get containers that hold their pictures themselves; files, a few more of that kind.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg"
_FILE_CONTAINERS = f"{_CONTAINERS},apng,asf,gif,h264,hevc,ivf,mpegvideo,mxf,yuv4mpegpipe"


def _metadata_arguments(av: Any) -> dict[str, str]:
    """Titles that are no UTF-8 must not stop a video: PyAV before 19 has to be told, later ones do not decode them."""
    return {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class VideoReader:
    """Frames of a video file as RGB, in presentation order, as a player shows them (docs/video.md).

    Rotation metadata is applied, pixels are made square by changing the width, and colours are converted with
    the file's matrix and range. The server decodes with this class, too, so its frames are these byte for byte.

    Iterating opens the file anew, so a reader can be read more than once. Nothing but the source itself is read:
    playlists, session descriptions and URLs, which lead to other files and hosts, are refused.

    A file that was cut short is told by what it declares: a number of frames (MP4, MOV, AVI, IVF, MXF) or a
    duration (Matroska, WebM, FLV). MPEG-TS, MPEG-PS, Ogg, ASF and raw streams store neither, so a cut between
    two of their packets cannot be seen: they read as a shorter video.

    Args:
        source: the path of a local video file, or the bytes of one (MP4, MOV, Matroska, WebM, AVI, MPEG-TS,
            MPEG-PS, FLV or Ogg).
        start_frame: frames to skip first.
        max_frames: frames to read at most; None = all.
        frame_stride: read every n-th frame, from ``start_frame`` on; the others are decoded only.
        max_pixels: pixels that a frame may have, stored or shown; None = any number. Decoders refuse larger
            pictures before they allocate them.
        check: called with (frames, height, width) before anything of that size is allocated: with the declared
            size and 1 frame at opening, then for each frame; what it raises ends the reading.

    Raises:
        VideoDecodeError: the file is missing, is no video, has no video stream, or declares frames above
            ``max_pixels``.
        InvalidInputError: ``start_frame`` is negative, or another number below 1.
        MissingExtraError: PyAV is not installed.

    Example:
        >>> for window in VideoReader("clip.mp4").windows(16):  # doctest: +SKIP
        ...     print(window.shape)  # (16, 720, 1280, 3)
    """

    def __init__(
        self,
        source: str | Path | bytes,
        *,
        start_frame: int = 0,
        max_frames: int | None = None,
        frame_stride: int = 1,
        max_pixels: int | None = None,
        check: Callable[[int, int, int], None] | None = None,
    ) -> None:
        if start_frame < 0:
            raise InvalidInputError(f"start_frame is {start_frame}; it must be 0 or more")
        if max_frames is not None and max_frames < 1:
            raise InvalidInputError(
                f"max_frames is {max_frames}; it must be 1 or more, or None for all frames"
            )
        if frame_stride < 1:
            raise InvalidInputError(f"frame_stride is {frame_stride}; it must be 1 (every frame) or more")
        if max_pixels is not None and max_pixels < 1:
            raise InvalidInputError(
                f"max_pixels is {max_pixels}; it must be 1 or more, or None for any number"
            )
        self._source = source if isinstance(source, bytes) else Path(source)
        self.name = "the encoded video" if isinstance(source, bytes) else str(source)
        self._start = start_frame
        self._max = max_frames
        self._stride = frame_stride
        self._max_pixels = max_pixels
        self._check = check
        self._pixel_aspect: Fraction | None = None
        if max_pixels is not None:
            # Opening decodes, too, and containers that announce no streams give the limit to no decoder then.
            self._check_size(1, *self._parsed_size())
        with self._open() as container:
            stream = container.streams.video[0]
            self._stored_size: tuple[int, int] = stream.height, stream.width
            aspect = stream.sample_aspect_ratio
            # PyAV 19 has a rational type of its own.
            self._pixel_aspect = Fraction(aspect.numerator, aspect.denominator) if aspect else None
            self._check_size(1, *self._stored_size)
            rate = stream.average_rate or stream.guessed_rate
            self.fps: Fraction = Fraction(rate.numerator, rate.denominator) if rate else Fraction(25)
            self.seconds: float | None = container.duration / 1e6 if container.duration else None
            """Duration that the file declares or its timestamps suggest; None = unknown."""
            self.declared_frames: int | None = declared_frames(stream)
            total = self.declared_frames
            if total is None and container.duration:
                total = round(Fraction(container.duration, 1_000_000) * self.fps)
        self.frame_count: int | None = None
        """Frames this reader will give, as the file declares or its duration suggests; None = unknown."""
        if total is not None:
            self.frame_count = -(-max(total - start_frame, 0) // frame_stride)
            if max_frames is not None:
                self.frame_count = min(self.frame_count, max_frames)

    @property
    def height(self) -> int:
        """Rows of the frames that this reader gives."""
        return self._shown_size[0]

    @property
    def width(self) -> int:
        """Columns of the frames that this reader gives."""
        return self._shown_size[1]

    @cached_property
    def _shown_size(self) -> tuple[int, int]:
        """Only frames tell how they are turned, so this decodes one."""
        height, width = self._stored_size
        width = self._square_width(width)
        try:
            frame = next(self._decoded(threads=False), None)
            return (height, width) if frame is None else self._size_of(frame)[1]
        except VideoDecodeError:
            return height, width  # Reading will say what is wrong.

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
            VideoDecodeError: the file is truncated or damaged, has no frame ``start_frame``, or changes
                its frame size. It is raised after the frames that could be read.
        """
        for _, frame in self.timed():
            yield frame

    def timed(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Yields each frame with the second at which it is shown, on the file's own clock.

        Where the file stores no time for a frame, its number over the frame rate stands in.

        Raises:
            VideoDecodeError: as iterating does.
        """
        from av.video.reformatter import VideoReformatter

        decoded = given = 0
        reformatter = VideoReformatter()
        size: tuple[int, int] | None = None
        for frame in self._decoded():
            index, decoded = decoded, decoded + 1
            if index < self._start or (index - self._start) % self._stride:
                continue
            turn, shown = self._size_of(frame)
            if size is not None and size != shown:
                raise VideoDecodeError(
                    f"{self.name}: the frame size changes from {size[1]}x{size[0]} to {shown[1]}x{shown[0]} "
                    f"at frame {index}; re-encode the video at one size"
                )
            size = shown
            given += 1
            self._check_size(given, *shown)
            seconds = float(frame.pts * frame.time_base) if frame.pts is not None else float(index / self.fps)
            yield seconds, self._picture(frame, turn, reformatter)
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
        for _, window in self.timed_windows(size):
            yield window

    def timed_windows(self, size: int) -> Iterator[tuple[NDArray[np.float64], NDArray[np.uint8]]]:
        """Yields ``windows`` with the seconds of their frames, float64 ``[t]``; see ``timed``.

        Raises:
            VideoDecodeError: as iterating does.
            InvalidInputError: ``size`` is below 1.
        """
        if size < 1:
            raise InvalidInputError(f"the window has {size} frames; it must have at least 1")
        window: list[tuple[float, NDArray[np.uint8]]] = []
        for item in self.timed():
            window.append(item)
            if len(window) == size:
                yield _stacked(window)
                window = []
        if window:
            yield _stacked(window)

    def _square_width(self, width: int) -> int:
        try:
            return square_width(width, self._pixel_aspect)
        except VideoDecodeError as error:
            raise VideoDecodeError(f"{self.name}: {error}") from error

    def _size_of(self, frame: Any) -> tuple[Orientation, tuple[int, int]]:
        """How a decoded frame is turned, and its (height, width) then."""
        try:
            turn = Orientation.of(frame)
        except VideoDecodeError as error:
            raise VideoDecodeError(f"{self.name}: {error}") from error
        return turn, turn.size(frame.height, self._square_width(frame.width))

    def _picture(self, frame: Any, turn: Orientation, reformatter: Any) -> NDArray[np.uint8]:
        av = import_av("reading a video")
        try:
            return turn.apply(to_rgb(frame, self._square_width(frame.width), reformatter))
        except VideoDecodeError as error:
            raise VideoDecodeError(f"{self.name}: {error}") from error
        except av.error.FFmpegError as error:
            raise VideoDecodeError(
                f"{self.name}: pixels of format {frame.format.name} cannot be converted to RGB ({error.strerror}); "
                "re-encode the video in yuv420p"
            ) from error

    def _check_size(self, frames: int, height: int, width: int) -> None:
        """Refuses a size, as it is and with square pixels, before anything of it is allocated."""
        sizes = [(height, width)] if frames > 1 else [(height, width), (height, self._square_width(width))]
        for rows, columns in sizes:
            if self._check is not None:
                self._check(frames, rows, columns)
            if self._max_pixels is not None and rows * columns > self._max_pixels:
                raise VideoDecodeError(
                    f"{self.name}: frames of {columns}x{rows} have {rows * columns} pixels; at most "
                    f"{self._max_pixels} are taken (max_pixels); send smaller frames"
                )

    def _decoded(self, *, threads: bool = True) -> Iterator[Any]:
        """Every decoded frame from the start of the file; raises where the file ends early."""
        av = import_av("reading a video")
        decoded = 0
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO" if threads else "SLICE"
            stream.codec_context.options = self._decoder_options()
            end = None if self.declared_frames is not None else DeclaredEnd.of(container, stream, self.fps)
            try:
                for packet in container.demux(*([stream] if end is None else end.streams)):
                    if packet.is_corrupt:
                        raise self._truncated(decoded, "a packet is cut short")
                    if end is not None:
                        end.see(packet)
                    if packet.stream.index != stream.index:
                        continue
                    for frame in packet.decode():
                        decoded += 1
                        yield frame
            except av.error.FFmpegError as error:
                reason = f"{error.strerror}"
                if self._max_pixels is not None and isinstance(error, ValueError):  # EINVAL
                    reason += f", or its pictures are larger than max_pixels={self._max_pixels} allows"
                raise self._truncated(decoded, reason) from error
            if end is not None and end.is_missed:
                raise self._truncated(
                    decoded, f"the file ends at {float(end.reached):.2f} s of {float(end.seconds):.2f} s"
                )
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

    def _open(self, *, ignore_editlist: bool = False, parsed_only: bool = False) -> InputContainer:
        av = import_av("reading a video")
        if isinstance(self._source, Path) and not self._source.is_file():
            raise VideoDecodeError(f"{self.name}: there is no such file; check the path")
        options = {"ignore_editlist": "1"} if ignore_editlist else {}
        options |= self._decoder_options()
        if parsed_only:
            # Without decoders FFmpeg would look for the rest in the whole of its 5 MB.
            options |= {"codec_whitelist": "none", "probesize": str(1 << 17)}
        file: io.BytesIO | str
        if isinstance(self._source, bytes):
            # PyAV reads the bytes itself, which needs none of FFmpeg's protocols.
            file = io.BytesIO(self._source)
            options |= {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
        else:
            # An absolute path is never taken for a URL, whatever the file's name.
            file = str(self._source.absolute())
            options |= {"format_whitelist": _FILE_CONTAINERS, "protocol_whitelist": "file"}
        try:
            container: InputContainer = av.open(file, options=options, **_metadata_arguments(av))
        except (av.error.FFmpegError, UnicodeDecodeError) as error:
            raise VideoDecodeError(
                f"{self.name}: not a video in a supported container (MP4, MOV, Matroska, WebM, AVI, MPEG-TS, "
                f"MPEG-PS, FLV, Ogg), or truncated ({getattr(error, 'strerror', error)})"
            ) from error
        if not container.streams.video:
            container.close()
            raise VideoDecodeError(f"{self.name}: has no video stream; pass a file with pictures")
        if container.streams.video[0].codec_context is None:
            container.close()
            raise VideoDecodeError(f"{self.name}: its codec is unknown; re-encode the video as H.264")
        return container

    def _parsed_size(self) -> tuple[int, int]:
        """Height and width that the headers tell without decoding; 0 where they do not."""
        try:
            with self._open(parsed_only=True) as container:
                return container.streams.video[0].height, container.streams.video[0].width
        except VideoDecodeError:
            return 0, 0  # Opening for decoding will say what is wrong.

    def _decoder_options(self) -> dict[str, str]:
        """What keeps decoders from allocating pictures above the limit.

        They count whole blocks of up to 128 pixels a side, hence the margin; ``_check_size`` is exact.
        """
        if self._max_pixels is None:
            return {}
        return {"max_pixels": str(2 * self._max_pixels + 256 * 256)}


def _stacked(
    window: list[tuple[float, NDArray[np.uint8]]],
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    return np.array([seconds for seconds, _ in window]), np.stack([frame for _, frame in window])
