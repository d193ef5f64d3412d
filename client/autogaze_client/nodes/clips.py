"""Clips that travel through a pipeline (spec: pipeline §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import Array, to_numpy
from autogaze_client._errors import InvalidInputError

__all__ = [
    "AutoGazeClip",
    "AutoGazeRgbaClip",
    "AutoGazeRgbaClipShape",
    "AutoGazeRgbaFrameClip",
    "AutoGazeTensorClip",
]

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True, slots=True)
class AutoGazeRgbaClipShape:
    """Frames, height and width of an RGBA clip.

    Raises:
        InvalidInputError: one of them is below 1.
    """

    clip_len: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.clip_len, self.height, self.width) < 1:
            raise InvalidInputError(
                f"a clip of {self.clip_len} frames of {self.width}x{self.height} has no pixels; "
                "all three must be at least 1"
            )

    @property
    def byte_count(self) -> int:
        """clip_len · height · width · 4."""
        return self.clip_len * self.height * self.width * 4


class AutoGazeRgbaClip:
    """One clip of RGBA frames.

    Args:
        rgba: uint8 ``[T, H, W, 4]``, or its bytes.
        shape: its size; None takes the array's.

    Raises:
        InvalidInputError: the bytes do not fit the shape.

    Example:
        >>> AutoGazeRgbaClip(bytes(2 * 3 * 5 * 4), AutoGazeRgbaClipShape(2, 3, 5)).frames.shape
        (2, 3, 5, 4)
    """

    def __init__(
        self,
        rgba: NDArray[np.uint8] | bytes | bytearray | memoryview,
        shape: AutoGazeRgbaClipShape | None = None,
    ) -> None:
        values = rgba if isinstance(rgba, np.ndarray) else np.frombuffer(rgba, np.uint8)
        if shape is None:
            if values.ndim != 4:
                raise InvalidInputError(
                    f"the clip has shape {list(values.shape)}; pass uint8 [T, H, W, 4], or bytes and their shape"
                )
            shape = AutoGazeRgbaClipShape(*(int(size) for size in values.shape[:3]))
        if values.dtype != np.uint8 or values.size != shape.byte_count:
            raise InvalidInputError(
                f"the clip has {values.size} values of {values.dtype}; {shape.clip_len} frames of "
                f"{shape.width}x{shape.height} need {shape.byte_count} bytes"
            )
        self.shape = shape
        self.frames: NDArray[np.uint8] = values.reshape(shape.clip_len, shape.height, shape.width, 4)

    @property
    def batch(self) -> int:
        """Clips in it: 1."""
        return 1

    @property
    def clip_len(self) -> int:
        """Frames in it."""
        return self.shape.clip_len

    def rgb_frames(self, row: int) -> NDArray[np.uint8]:
        """The frames as an engine takes them, uint8 ``[T, H, W, 4]``; ``row`` is 0."""
        return self.frames

    def tensor(self) -> NDArray[np.float32]:
        """The frames' RGB in 0..1, float32 ``[1, T, 3, H, W]``."""
        return self.frames[None, ..., :3].transpose(0, 1, 4, 2, 3) / np.float32(255)


class AutoGazeRgbaFrameClip(AutoGazeRgbaClip):
    """The clip that a frame queue builds."""

    def last_frame(self) -> NDArray[np.uint8]:
        """The newest frame, uint8 ``[H, W, 4]``."""
        frame: NDArray[np.uint8] = self.frames[-1]
        return frame


class AutoGazeTensorClip:
    """Clips of normalised frames.

    An engine gets them as bytes, since that is what it serves: ``(v · std + mean + 1) · 127.5``, rounded. Clips
    that were made from bytes by upstream's processor come out as they were.

    Args:
        video: floating ``[B, T, 3, H, W]`` of numpy, torch or CuPy.

    Raises:
        InvalidInputError: another rank, or a dimension of 0.
    """

    def __init__(self, video: Array) -> None:
        shape = tuple(int(size) for size in video.shape)
        if len(shape) != 5 or 0 in shape:
            raise InvalidInputError(
                f"the clip has shape {list(shape)}; it must be [B, T, C, H, W], all nonzero"
            )
        self.video = video
        self.shape = shape

    @property
    def batch(self) -> int:
        """Clips in it."""
        return self.shape[0]

    @property
    def clip_len(self) -> int:
        """Frames of each."""
        return self.shape[1]

    def rgb_frames(self, row: int) -> NDArray[np.uint8]:
        """One clip's frames as an engine takes them, uint8 ``[T, H, W, 3]``.

        Raises:
            InvalidInputError: the clip has other than 3 channels, or values that are not finite.
        """
        if self.shape[2] != 3:
            raise InvalidInputError(f"the clip has {self.shape[2]} channels; an engine takes 3 (RGB)")
        values = to_numpy(self.video[row]).astype(np.float32).transpose(0, 2, 3, 1)
        if not np.isfinite(values).all():
            raise InvalidInputError("the clip holds NaN or infinite values; normalise it anew")
        levels = (values * _STD + _MEAN + np.float32(1)) * np.float32(127.5)
        frames: NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return frames

    def tensor(self) -> Any:
        """``video``."""
        return self.video


AutoGazeClip = AutoGazeRgbaClip | AutoGazeTensorClip
"""What an input node gives."""
