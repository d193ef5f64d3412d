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
        max_seconds: duration of an encoded video, as it declares and as its timestamps say.
    """

    max_frames: int = 256
    max_pixels: int = 8192 * 8192
    max_clip_bytes: int = 2 * 1024**3
    max_seconds: float = 600.0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> IngestLimits:
        """Reads the limits that config.pbtxt sets; others keep their defaults.

        Raises:
            InvalidInputError: a limit is no integer of at least 1, or ``max_seconds`` no number above 0.
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

    def check_seconds(self, seconds: float) -> None:
        """Raises InvalidInputError where a video of this duration breaks the limit."""
        if seconds > self.max_seconds:
            raise InvalidInputError(
                f"the video lasts {seconds:.2f} s; this server takes {self.max_seconds:g} s (max_seconds); "
                "send it in parts"
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
    """Decodes an encoded video into uint8 ``[T, H, W, 3]``.

    Every limit is checked before what it is about is allocated: what the file declares before anything is
    decoded, the decoder's own picture size before a picture is, and each frame before it becomes RGB.

    Raises:
        InvalidInputError: ``data`` is no uint8 ``[N]``, or breaks a limit.
        VideoDecodeError: it is no video, or damaged.
    """
    from autogaze_client.video import VideoReader

    if data.dtype != np.uint8 or data.ndim != 1:
        raise InvalidInputError(
            f"VIDEO is {data.dtype} {list(data.shape)}; it must be uint8 [N], the bytes of a video file"
        )
    frames: list[Frames | None] = []
    with VideoReader(data.tobytes(), max_pixels=limits.max_pixels, check=limits.check) as reader:
        limits.check_seconds(reader.seconds or 0)
        first = None
        for seconds, frame in reader.timed():
            first = seconds if first is None else first
            limits.check_seconds(seconds - first)
            frames.append(frame)
    assert frames[0] is not None  # A reader gives a frame or raises.
    clip = np.empty((len(frames), *frames[0].shape), np.uint8)
    for index, picture in enumerate(frames):
        clip[index] = picture
        frames[index] = None  # Freed one by one, so that the clip is not held twice.
    return clip
