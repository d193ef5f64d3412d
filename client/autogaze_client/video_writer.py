"""Writing video files with PyAV (extra ``video``), a frame in memory at a time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._av import import_av
from autogaze_client._errors import InvalidInputError

__all__ = ["VideoWriter"]

# What is written, in FFmpeg's numbers.
_BT709, _LIMITED = 1, 1


class VideoWriter:
    """Writes RGB frames to an H.264 MP4 (libx264, yuv420p, BT.709), a context manager.

    4:2:0 needs even sides: an odd frame is padded by repeating its last column or row.

    Args:
        path: the file to write; its folder must exist.
        fps: frames a second.
        quality: x264's constant rate factor; lower is better, 18 is visually lossless.

    Raises:
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: str | Path, *, fps: Fraction | int = 25, quality: int = 20) -> None:
        self._av = import_av("writing a video")
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
            context = self._stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
            self._stream.options = {"crf": str(self._quality), "preset": "veryfast"}
            self._shape = frame.shape
        if frame.shape != self._shape:
            raise InvalidInputError(
                f"the frame is {width}x{height}, but the video is {self._shape[1]}x{self._shape[0]}; "
                "write one video for each size"
            )
        padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        rgb = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        picture = rgb.reformat(
            format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
        )
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
