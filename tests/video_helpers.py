"""Small encoded videos with the metadata that tests ask for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

RED, GREEN, BLUE, GREY = (200, 60, 30), (20, 220, 90), (40, 50, 210), (128, 128, 128)
BT709, BT601, BT2020 = 1, 5, 9
"""FFmpeg's numbers of the matrices, the same for tags (6 is also BT.601) and the scaler."""


def quarters(height: int = 48, width: int = 64) -> np.ndarray:
    """Four colours: red at the top left, green at the top right, blue at the bottom left, grey."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = RED, GREEN
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = BLUE, GREY
    return picture


def tagged_video(
    *,
    picture: np.ndarray | None = None,
    frames: int = 3,
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv444p",
    matrix: int = BT601,
    full: bool = False,
    tagged: bool = True,
    rotation: int | None = None,
    mirrored: bool = False,
    display_matrix: Sequence[int] | None = None,
    pixel_aspect: Fraction | None = None,
    times: Sequence[int] | None = None,
) -> bytes:
    """A file whose pixels follow ``matrix`` and the range, and say so where ``tagged``.

    ``times`` are the frames' milliseconds; without them the rate is 25 a second.
    """
    picture = quarters() if picture is None else picture
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options={"crf": "1"} if codec == "libx264" else {})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        if times is not None:
            stream.time_base = context.time_base = Fraction(1, 1000)
        if tagged:
            context.colorspace, context.color_range = matrix, 2 if full else 1
        if pixel_aspect is not None:
            context.sample_aspect_ratio = pixel_aspect
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirrored)
        if display_matrix is not None:
            stream.set_display_matrix(display_matrix)
        for index in range(frames if times is None else len(times)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=matrix, src_color_range=2, dst_color_range=2 if full else 1
            )
            if not tagged:
                frame.colorspace, frame.color_range = 2, 0
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()
