"""Decoding shows what a player shows: upright, with square pixels, in the file's colours."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from autogaze_client import VideoDecodeError, VideoReader, VideoWriter
from video_helpers import BLUE, BT601, BT709, BT2020, GREEN, GREY, RED, quarters, tagged_video

ONE = 1 << 16
TRUE_COLOURS = np.array([RED, GREEN, BLUE, GREY])


def first(content: bytes) -> np.ndarray:
    return next(iter(VideoReader(content)))


def assert_close(actual, expected, levels=3):
    assert actual.shape == expected.shape
    # Edges of colours are smoothed by the encoder; what counts are the areas.
    far = np.abs(actual.astype(int) - expected.astype(int)).max(axis=2) > levels
    assert far.mean() < 0.1


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_turned_frames_are_upright(container, rotation):
    content = tagged_video(rotation=rotation, container=container)
    expected = np.rot90(quarters(), rotation // 90)
    reader = VideoReader(content)
    assert (reader.height, reader.width) == expected.shape[:2]
    frames = list(reader)
    assert len(frames) == 3
    for frame in frames:
        assert frame.flags.c_contiguous
        assert_close(frame, expected)


def test_every_orientation_of_a_camera():
    """The eight display matrices that EXIF numbers, and the picture that each must give."""
    stored = quarters()
    cases = {
        (ONE, 0, 0, ONE): stored,
        (-ONE, 0, 0, ONE): stored[:, ::-1],
        (-ONE, 0, 0, -ONE): stored[::-1, ::-1],
        (ONE, 0, 0, -ONE): stored[::-1],
        (0, ONE, ONE, 0): stored.transpose(1, 0, 2),
        (0, ONE, -ONE, 0): np.rot90(stored, -1),
        (0, -ONE, -ONE, 0): np.rot90(stored.transpose(1, 0, 2), 2),
        (0, -ONE, ONE, 0): np.rot90(stored),
    }
    for (xx, xy, yx, yy), expected in cases.items():
        content = tagged_video(display_matrix=[xx, xy, 0, yx, yy, 0, 0, 0, 1 << 30])
        assert_close(first(content), expected)


def test_a_matrix_that_is_no_quarter_turn_is_refused():
    reader = VideoReader(tagged_video(rotation=30))
    with pytest.raises(VideoDecodeError, match="no quarter turn or mirror image; re-encode"):
        list(reader)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(
    ("aspect", "width"), [((4, 3), 85), ((3, 4), 48), ((16, 11), 93), ((1, 1), 64), ((129, 128), 65)]
)
def test_pixels_become_square(container, aspect, width):
    reader = VideoReader(tagged_video(pixel_aspect=Fraction(*aspect), container=container))
    assert (reader.height, reader.width) == (48, width)
    assert_close(next(iter(reader)), quarters(48, width), 4)


def test_pixels_become_square_before_the_turn():
    reader = VideoReader(tagged_video(pixel_aspect=Fraction(4, 3), rotation=90))
    assert (reader.height, reader.width) == (85, 48)
    assert_close(next(iter(reader)), np.rot90(quarters(48, 85)), 4)


def test_absurd_pixels_are_refused():
    with pytest.raises(
        VideoDecodeError, match=r"sample aspect ratio is 20:1; it must be between 1:16 and 16:1"
    ):
        VideoReader(tagged_video(pixel_aspect=Fraction(20, 1)))


def colours(content: bytes) -> np.ndarray:
    """The centres of the four areas."""
    frame = first(content)
    height, width = frame.shape[:2]
    return frame[[height // 4, height // 4, 3 * height // 4, 3 * height // 4]][
        [0, 1, 2, 3], [width // 4, 3 * width // 4, width // 4, 3 * width // 4]
    ].astype(int)


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [BT601, BT709, BT2020])
def test_tagged_colours_come_back(matrix, full, pix_fmt):
    if matrix == BT2020 and int(av.__version__.split(".")[0]) < 18:
        pytest.skip(f"PyAV {av.__version__} reads BT.2020, but cannot write the file of this test")
    found = colours(tagged_video(matrix=matrix, full=full, pix_fmt=pix_fmt))
    assert np.abs(found - TRUE_COLOURS).max() <= 3


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p"])
@pytest.mark.parametrize("level", [0, 20, 98, 200, 255])
def test_grey_keeps_its_level(level, pix_fmt):
    picture = np.full((48, 64, 3), level, np.uint8)
    frame = first(tagged_video(picture=picture, pix_fmt=pix_fmt))
    assert np.abs(frame.astype(int) - level).max() <= 1


@pytest.mark.parametrize(("height", "matrix", "other"), [(48, BT601, BT709), (720, BT709, BT601)])
def test_untagged_colours_are_taken_as_players_do(height, matrix, other):
    picture = quarters(height)
    assert (
        np.abs(colours(tagged_video(picture=picture, matrix=matrix, tagged=False)) - TRUE_COLOURS).max() <= 3
    )
    # The matrices differ enough for this to mean something.
    assert np.abs(colours(tagged_video(picture=picture, matrix=other, tagged=False)) - TRUE_COLOURS).max() > 8


def test_rgb_and_jpeg_files_without_a_range_are_full_range():
    lossless = tagged_video(container="matroska", codec="ffv1", pix_fmt="bgr0", tagged=False, full=True)
    np.testing.assert_array_equal(first(lossless), quarters())
    jpeg = tagged_video(container="avi", codec="mjpeg", pix_fmt="yuvj444p", full=True)
    assert np.abs(colours(jpeg) - TRUE_COLOURS).max() <= 6


@pytest.mark.parametrize("height", [48, 720])
def test_what_the_writer_writes_has_its_colours(tmp_path, height):
    with VideoWriter(tmp_path / "a.mp4", quality=1) as writer:
        writer.write(quarters(height))
    found = colours((tmp_path / "a.mp4").read_bytes())
    assert np.abs(found - TRUE_COLOURS).max() <= 3
