"""From a decoded frame to an upright RGB picture with square pixels, as the file's metadata says."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import VideoDecodeError

__all__ = ["Orientation", "square_width", "to_rgb"]

_LIMITED, _FULL = 1, 2
_HD_HEIGHT = 720
# From FFmpeg's AVColorSpace to the matrices of its scaler; 5 and 6 are the same BT.601.
_BT709, _BT601 = 1, 5
_MATRICES = {1: _BT709, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: 9, 10: 9}
_NAMES = {_BT709: "ITU709", 4: "FCC", _BT601: "ITU601", 7: "SMPTE240M"}
# Bilinear, full chroma, and roundings that are right and do not depend on the processor: FFmpeg's default is a
# level too dark for 4:2:0, and accurate rounding without full chroma two.
_SCALER = 0x2 | 0x2000 | 0x40000 | 0x80000
_WIDEST_PIXEL = 16
_SKEW = 0.02


def square_width(width: int, pixel_aspect: Fraction | None) -> int:
    """The width at which pixels are square while the height stays: ``width · aspect``, a half rounded up.

    Raises:
        VideoDecodeError: pixels are more than 16 times as wide as high, or as high as wide.
    """
    if pixel_aspect is None or pixel_aspect <= 0:
        return width
    if not Fraction(1, _WIDEST_PIXEL) <= pixel_aspect <= _WIDEST_PIXEL:
        raise VideoDecodeError(
            f"the sample aspect ratio is {pixel_aspect.numerator}:{pixel_aspect.denominator}; it must be between "
            f"1:{_WIDEST_PIXEL} and {_WIDEST_PIXEL}:1, so re-encode the video with square pixels"
        )
    return max(int(width * pixel_aspect + Fraction(1, 2)), 1)


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes upright: first transposed, then its rows and its columns reversed."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    @classmethod
    def of(cls, frame: Any) -> Orientation:
        """Reads the display matrix of a PyAV frame.

        Raises:
            VideoDecodeError: the matrix turns by something else than quarter turns.
        """
        try:
            data = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV knows no name for something else that the frame carries.
            return cls.of_quarter_turns(round(getattr(frame, "rotation", 0) / 90))
        if data is None:
            return cls()
        return cls.of_matrix(np.frombuffer(bytes(data), np.int32).tolist())

    @classmethod
    def of_quarter_turns(cls, turns: int) -> Orientation:
        """Counterclockwise, as FFmpeg counts."""
        return (cls(), cls(True, True), cls(False, True, True), cls(True, False, True))[turns % 4]

    @classmethod
    def of_matrix(cls, matrix: list[int]) -> Orientation:
        """From the nine numbers of a display matrix, of which only the directions count.

        Raises:
            VideoDecodeError: the matrix turns by something else than quarter turns.
        """
        xx, xy, _, yx, yy = matrix[:5]  # x' = xx·x + yx·y, y' = xy·x + yy·y
        if xx * yy == xy * yx:
            return cls()  # It would make the picture a line; players leave it as it is.
        straight, across = max(abs(xx), abs(yy)), max(abs(xy), abs(yx))
        if across <= _SKEW * straight:
            return cls(False, yy < 0, xx < 0)
        if straight <= _SKEW * across:
            return cls(True, xy < 0, yx < 0)
        raise VideoDecodeError(
            f"the display matrix {matrix[:2] + matrix[3:5]} is no quarter turn or mirror image; re-encode the video "
            "upright"
        )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a stored picture once it is upright."""
        return (width, height) if self.transposed else (height, width)

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The upright picture ``[h, w, 3]``, contiguous."""
        if self.transposed:
            picture = picture.transpose(1, 0, 2)
        rows = slice(None, None, -1 if self.rows_reversed else 1)
        columns = slice(None, None, -1 if self.columns_reversed else 1)
        return np.ascontiguousarray(picture[rows, columns])


def to_rgb(frame: Any, width: int, reformatter: Any) -> NDArray[np.uint8]:
    """A PyAV frame as full-range RGB uint8 ``[H, width, 3]``, not turned yet.

    Matrix and range are the frame's. Where it names no matrix, BT.709 from 720 rows on, else BT.601; where it
    names no range, limited for YUV and full for RGB, grey and the JPEG formats: what players assume.
    ``reformatter`` is a ``VideoReformatter``, which sets itself up once for frames of one kind.

    Raises:
        VideoDecodeError: this PyAV is too old for the matrix.
    """
    matrix = _MATRICES.get(int(frame.colorspace), _BT709 if frame.height >= _HD_HEIGHT else _BT601)
    wanted = {"width": width, "format": "rgb24"}
    source_range = _range_of(frame)
    try:
        converted = reformatter.reformat(
            frame,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=source_range,
            dst_color_range=_FULL,
            interpolation=_SCALER,
            **wanted,
        )
    except KeyError:  # Older versions of PyAV take names only, and one flag.
        name = _NAMES.get(matrix)
        if name is None:
            raise VideoDecodeError(
                "the BT.2020 matrix needs a newer PyAV; pip install --upgrade av"
            ) from None
        converted = reformatter.reformat(
            frame,
            src_colorspace=name,
            dst_colorspace=name,
            src_color_range="JPEG" if source_range == _FULL else "MPEG",
            dst_color_range="JPEG",
            interpolation="BILINEAR",
            **wanted,
        )
    return np.asarray(converted.to_ndarray(), np.uint8)


def _range_of(frame: Any) -> int:
    if int(frame.color_range) in (_LIMITED, _FULL):
        return int(frame.color_range)
    kind = frame.format
    is_full = kind.is_rgb or kind.has_palette or kind.name.startswith(("yuvj", "gray", "ya", "mono"))
    return _FULL if is_full else _LIMITED
