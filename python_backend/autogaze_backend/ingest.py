"""Encoded video to frames, under limits. On the CPU, in several instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from autogaze_client._errors import InvalidInputError
from numpy.typing import NDArray

from autogaze_backend.callers import Caller
from autogaze_backend.limits import IngestLimits
from autogaze_backend.preprocessing import Frames

Array = NDArray[Any]


def ingest(
    tensors: Mapping[str, Array], limits: IngestLimits, caller: Caller | None = None
) -> dict[str, Array]:
    """Serves a request of ``autogaze_ingest``.

    Args:
        tensors: ``VIDEO`` uint8 ``[N]``, an encoded file.
        limits: of this server.
        caller: asked before the video is decoded and between two frames whether to go on; None = always.

    Returns:
        ``DECODED`` uint8 ``[T, H, W, 3]``.

    Raises:
        InvalidInputError: a wrong shape, or over a limit.
        VideoDecodeError: ``VIDEO`` cannot be decoded.
        RequestCancelledError: the caller has gone.
        DeadlineExceededError: the caller's time is over.
    """
    if caller is not None:
        caller.check()
    return {"DECODED": decode_video(tensors["VIDEO"], limits, caller)}


def decode_video(data: Array, limits: IngestLimits, caller: Caller | None = None) -> Frames:
    """Decodes an encoded video into uint8 ``[T, H, W, 3]``.

    Every limit is checked before what it is about is allocated: what the file declares before anything is
    decoded, the decoder's own picture size before a picture is, and each frame before it becomes RGB.

    Raises:
        InvalidInputError: ``data`` is no uint8 ``[N]``, or breaks a limit.
        VideoDecodeError: it is no video, or damaged.
        RequestCancelledError: the caller has gone.
        DeadlineExceededError: the caller's time is over.
    """
    from autogaze_client.video import VideoReader

    if data.dtype != np.uint8 or data.ndim != 1:
        raise InvalidInputError(
            f"VIDEO is {data.dtype} {list(data.shape)}; it must be uint8 [N], the bytes of a video file"
        )
    limits.check_video_bytes(data.size)
    frames: list[Frames | None] = []
    with VideoReader(data.tobytes(), max_pixels=limits.max_pixels, check=limits.check) as reader:
        limits.check_seconds(reader.seconds or 0)
        first = None
        for seconds, frame in reader.timed():
            first = seconds if first is None else first
            limits.check_seconds(seconds - first)
            frames.append(frame)
            if caller is not None:
                caller.check(f"after {len(frames)} decoded frames")
    assert frames[0] is not None  # A reader gives a frame or raises.
    clip = np.empty((len(frames), *frames[0].shape), np.uint8)
    for index, picture in enumerate(frames):
        clip[index] = picture
        frames[index] = None  # Freed one by one, so that the clip is not held twice.
    return clip
