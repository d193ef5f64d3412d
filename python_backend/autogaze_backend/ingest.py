"""The first stage: limits, decoding, and every knob filled in. Runs on the CPU, in several instances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from autogaze_client._errors import InvalidInputError
from numpy.typing import NDArray

from autogaze_backend.limits import read_limits
from autogaze_backend.preprocessing import Frames, check_frames
from autogaze_backend.requests import Knobs

Array = NDArray[Any]


@dataclass(frozen=True)
class IngestLimits:
    """What a request may ask for; checked before anything is decoded or copied.

    Attributes:
        max_frames: frames of a clip.
        max_pixels: pixels of a frame.
        max_clip_bytes: bytes of all frames of a clip, decoded.
    """

    max_frames: int = 256
    max_pixels: int = 8192 * 8192
    max_clip_bytes: int = 2 * 1024**3

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> IngestLimits:
        """Reads the limits that config.pbtxt sets; others keep their defaults.

        Raises:
            InvalidInputError: a limit is no integer of at least 1.
        """
        return read_limits(cls, parameters)

    def check(self, frames: int, height: int, width: int) -> None:
        """Raises InvalidInputError where a clip of this size breaks a limit."""
        if frames > self.max_frames:
            raise InvalidInputError(
                f"the clip has {frames} frames; this server takes {self.max_frames} (max_frames); "
                "send the video in windows"
            )
        if height * width > self.max_pixels:
            raise InvalidInputError(
                f"frames of {width}×{height} have {height * width} pixels; this server takes "
                f"{self.max_pixels} (max_pixels); send smaller frames"
            )
        if frames * height * width * 3 > self.max_clip_bytes:
            raise InvalidInputError(
                f"{frames} frames of {width}×{height} are {frames * height * width * 3} bytes; this server takes "
                f"{self.max_clip_bytes} (max_clip_bytes); send the video in windows"
            )


def ingest(tensors: Mapping[str, Array], limits: IngestLimits) -> dict[str, Array]:
    """Turns a request's inputs into those of ``autogaze_generate``.

    Args:
        tensors: ``FRAMES`` uint8 ``[T, H, W, 3 or 4]`` or ``VIDEO`` uint8 ``[N]``, and any knobs.
        limits: of this server.

    Returns:
        ``FRAMES`` uint8 ``[T, H, W, 3 or 4]``, ``SOURCE_SIZE`` int32 ``[3]`` (T, H, W), and every knob.

    Raises:
        InvalidInputError: both or neither of the inputs, a wrong shape, over a limit, or a bad knob.
        VideoDecodeError: ``VIDEO`` cannot be decoded.
    """
    knobs = Knobs.from_tensors(tensors)
    if ("FRAMES" in tensors) == ("VIDEO" in tensors):
        raise InvalidInputError(
            "send either FRAMES (uint8 [T, H, W, 3 or 4]) or VIDEO (an encoded file), not both or none"
        )
    if "FRAMES" in tensors:
        frames = check_frames(tensors["FRAMES"])
        limits.check(*frames.shape[:3])
    else:
        frames = decode_video(tensors["VIDEO"], limits)
    return {
        "FRAMES": frames,
        "SOURCE_SIZE": np.array(frames.shape[:3], np.int32),
        **knobs.to_tensors(),
    }


def decode_video(data: Array, limits: IngestLimits) -> Frames:
    """Decodes an encoded video into uint8 ``[T, H, W, 3]``, stopping as soon as a limit is broken."""
    from autogaze_client.video import VideoReader

    frames: list[Frames] = []
    with VideoReader(data.tobytes(), max_frames=limits.max_frames + 1) as reader:
        limits.check(1, reader.height, reader.width)
        for frame in reader:
            frames.append(frame)
            limits.check(len(frames), *frame.shape[:2])
    return np.stack(frames)
