from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from autogaze_backend.callers import Caller
from autogaze_backend.ingest import ingest
from autogaze_backend.limits import IngestLimits
from autogaze_backend.requests import Knobs
from autogaze_client import (
    AutoGazeInferenceMode,
    InvalidInputError,
    RequestCancelledError,
    VideoDecodeError,
    VideoReader,
    VideoWriter,
)
from video_helpers import BT709, BT2020, tagged_video

FRAMES = np.zeros((2, 8, 12, 3), np.uint8)


def test_every_knob_is_filled_in():
    tensors = Knobs().to_tensors()
    assert tensors["MODE"].tolist() == [0]
    assert math.isnan(tensors["GAZING_RATIO"][0])
    assert math.isnan(tensors["TASK_LOSS_REQUIREMENT"][0])
    assert [
        tensors[name].tolist() for name in ("MAX_GAZE_TOKENS", "TOP_K", "TARGET_SCALES", "TARGET_PATCH_SIZE")
    ] == [[-1]] * 4
    assert {array.dtype.name for array in tensors.values()} == {"int32", "float32"}


def test_knobs_survive_the_way_over_the_wire():
    given = {
        "MODE": np.array([2], np.int32),
        "GAZING_RATIO": np.array([0.5, 0.25], np.float32),
        "TASK_LOSS_REQUIREMENT": np.array([0.75], np.float32),
        "MAX_GAZE_TOKENS": np.array([7, 8], np.int32),
        "TOP_K": np.array([3], np.int32),
        "TARGET_SCALES": np.array([56, 112], np.int32),
        "TARGET_PATCH_SIZE": np.array([14], np.int32),
    }
    knobs = Knobs.from_tensors(Knobs.from_tensors(given).to_tensors())
    assert knobs.mode is AutoGazeInferenceMode.TILED_FULL_RESOLUTION
    assert knobs.gazing_ratio.tolist() == [0.5, 0.25]
    assert knobs.task_loss_requirement == 0.75
    assert knobs.max_gaze_tokens.tolist() == [7, 8]
    assert (knobs.top_k, knobs.target_scales, knobs.target_patch_size) == (3, (56, 112), 14)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("TOP_K", np.array([np.inf], np.float32), "int32"), ("GAZING_RATIO", np.array([0.5]), "float32")],
)
def test_a_knob_of_another_type_is_refused(name, value, wanted):
    with pytest.raises(InvalidInputError, match=f"{name} is {value.dtype}; it must be {wanted}"):
        Knobs.from_tensors({name: value})


@pytest.mark.parametrize("unset", [np.zeros(0, np.float32), np.full(2, np.nan, np.float32)])
def test_empty_and_nan_mean_unset(unset):
    assert Knobs.from_tensors({"GAZING_RATIO": unset}).gazing_ratio is None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_frames": 1}, "2 frames; this server takes 1"),
        ({"max_pixels": 95}, "96 pixels; this server takes 95"),
        ({"max_clip_bytes": 575}, "576 bytes; this server takes 575"),
    ],
)
def test_a_clip_over_a_limit_is_refused(limits, message):
    with pytest.raises(InvalidInputError, match=message):
        IngestLimits(**limits).check(2, 8, 12)


def test_a_video_whose_caller_has_gone_is_not_begun(undecoded):
    with pytest.raises(RequestCancelledError, match="before it began"):
        ingest({"VIDEO": np.zeros(10, np.uint8)}, IngestLimits(), Caller(lambda: True))


def test_a_video_over_a_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=5) as writer:
        for _ in range(6):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    data = np.frombuffer(path.read_bytes(), np.uint8)
    assert ingest({"VIDEO": data}, IngestLimits())["DECODED"].shape == (6, 48, 64, 3)
    with pytest.raises(InvalidInputError, match="frames; this server takes 4"):
        ingest({"VIDEO": data}, IngestLimits(max_frames=4))
    with pytest.raises(InvalidInputError, match="3072 pixels"):
        ingest({"VIDEO": data}, IngestLimits(max_pixels=3000))
    with pytest.raises(VideoDecodeError):
        ingest({"VIDEO": data[: len(data) // 3]}, IngestLimits())


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        ({}, (48, 64)),
        ({"rotation": 90}, (64, 48)),
        ({"rotation": 180, "mirrored": True}, (48, 64)),
        ({"pixel_aspect": Fraction(4, 3)}, (48, 85)),
        ({"pixel_aspect": Fraction(4, 3), "rotation": 270}, (85, 48)),
        ({"matrix": BT709, "full": True}, (48, 64)),
        ({"matrix": BT2020, "pix_fmt": "yuv420p"}, (48, 64)),
        ({"codec": "libvpx-vp9", "container": "webm", "pix_fmt": "yuv420p"}, (48, 64)),
    ],
    ids=str,
)
def test_the_server_decodes_to_the_bytes_of_the_client(tmp_path, metadata, size):
    content = tagged_video(**metadata)
    path = tmp_path / "clip"
    path.write_bytes(content)
    served = ingest({"VIDEO": np.frombuffer(content, np.uint8)}, IngestLimits())
    assert served["DECODED"].shape == (3, *size, 3)
    assert served["DECODED"].tobytes() == np.stack(list(VideoReader(path))).tobytes()


def bytes_of(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


@pytest.fixture
def undecoded(monkeypatch):
    """Fails where a frame is decoded or converted."""

    def never(*args, **kwargs):
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr(VideoReader, "_decoded", never)


def test_a_declared_size_over_the_limit_is_refused_before_decoding(undecoded):
    content = tagged_video(picture=np.zeros((1024, 1024, 3), np.uint8), frames=1, pix_fmt="yuv420p")
    assert len(content) < 4096
    with pytest.raises(
        InvalidInputError, match=r"frames of 1024×1024 have 1048576 pixels; this server takes 1000000"
    ):
        ingest({"VIDEO": bytes_of(content)}, IngestLimits(max_pixels=1_000_000))
    with pytest.raises(InvalidInputError, match="3145728 bytes; this server takes 3000000"):
        ingest({"VIDEO": bytes_of(content)}, IngestLimits(max_clip_bytes=3_000_000))


def test_wide_pixels_count_before_they_are_made_square(undecoded):
    content = bytes_of(tagged_video(pixel_aspect=Fraction(16, 1)))
    with pytest.raises(InvalidInputError, match="frames of 1024×48 have 49152 pixels"):
        ingest({"VIDEO": content}, IngestLimits(max_pixels=10_000))


def test_a_duration_over_the_limit_is_refused_before_decoding(undecoded):
    content = bytes_of(tagged_video(frames=50))
    with pytest.raises(
        InvalidInputError,
        match=r"lasts 2.00 s; this server takes 1.5 s .max_seconds; its operator may set AUTOGAZE_MAX_SECONDS.; send",
    ):
        ingest({"VIDEO": content}, IngestLimits(max_seconds=1.5))


def test_a_duration_that_only_the_timestamps_tell_is_refused():
    raw = tagged_video(container="matroska", times=[0, 40, 80, 5000])
    hidden = raw.replace(b"\x44\x89\x88", b"\x44\x8a\x88").replace(b"DURATION", b"DURATI0N")
    assert hidden != raw
    assert VideoReader(hidden).seconds != VideoReader(raw).seconds
    with pytest.raises(InvalidInputError, match=r"max_seconds"):
        ingest({"VIDEO": bytes_of(hidden)}, IngestLimits(max_seconds=3))
    assert ingest({"VIDEO": bytes_of(hidden)}, IngestLimits(max_seconds=6))["DECODED"].shape[0] == 4


def vp8_bomb() -> bytes:
    """A WebM of a kilobyte that declares 64x48, but whose pictures say 16383x16383."""
    content = tagged_video(container="webm", codec="libvpx", pix_fmt="yuv420p", tagged=False)
    picture = b"\x9d\x01\x2a" + (64).to_bytes(2, "little") + (48).to_bytes(2, "little")
    assert picture in content
    return content.replace(picture, b"\x9d\x01\x2a" + (16383).to_bytes(2, "little") * 2)


MEMORY = """
import resource, sys
import numpy as np
from autogaze_backend.ingest import IngestLimits, ingest
from autogaze_client import InvalidInputError
import av
content = np.frombuffer(sys.stdin.buffer.read(), np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    ingest({"VIDEO": content}, IngestLimits(max_pixels=1_000_000))
except InvalidInputError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def black(container: str) -> bytes:
    """A few kilobytes that hold pictures of 25 MB."""
    return tagged_video(
        picture=np.zeros((4096, 4096, 3), np.uint8), frames=2, container=container, pix_fmt="yuv420p"
    )


@pytest.mark.parametrize("container", ["mp4", "mpegts", "flv"])
def test_black_pictures_are_refused_before_one_is_allocated(container):
    """MPEG-TS and FLV announce no streams, so FFmpeg decodes as it opens them unless it is kept from it."""
    grown_kb, message = refused(black(container))
    assert grown_kb < 20_000
    assert "4096×4096 have 16777216 pixels" in message


def refused(content: bytes) -> tuple[int, str]:
    """By how many KiB a process grew that refused the file, and what it said."""
    assert len(content) < 8192
    run = subprocess.run(
        [sys.executable, "-c", MEMORY], input=content, capture_output=True, timeout=60, check=True
    )
    grown_kb, message = run.stdout.decode().split(maxsplit=1)
    return int(grown_kb), message


def test_a_decompression_bomb_is_refused_before_a_frame_is_allocated():
    grown_kb, message = refused(vp8_bomb())
    # A picture of that size has 403 MB in 4:2:0.
    assert grown_kb < 40_000
    assert "larger than max_pixels=1000000 allows" in message


@pytest.mark.parametrize(
    "video",
    [np.zeros(10, np.float32), np.zeros((2, 5), np.uint8), np.zeros(0, np.uint8)],
    ids=lambda v: str(v.shape),
)
def test_what_is_no_file_is_refused(video):
    with pytest.raises(InvalidInputError, match=r"VIDEO is|not a video"):
        ingest({"VIDEO": video}, IngestLimits())


def test_limits_come_from_the_environment_then_the_parameters(monkeypatch):
    assert IngestLimits.from_parameters({"max_frames": "9"}).max_frames == 9
    monkeypatch.setenv("AUTOGAZE_MAX_FRAMES", "5")
    assert IngestLimits.from_parameters({"max_frames": "9"}).max_frames == 5


@pytest.mark.parametrize("text", ["0", "-3", "many", "nan", "inf"])
def test_a_duration_that_is_no_number_above_0_is_refused(text):
    assert IngestLimits.from_parameters({"max_seconds": "1.5"}).max_seconds == 1.5
    with pytest.raises(InvalidInputError, match="limit max_seconds is"):
        IngestLimits.from_parameters({"max_seconds": text})


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5", ""])
def test_a_limit_that_is_no_positive_integer_is_refused(text):
    with pytest.raises(InvalidInputError, match="limit max_frames is"):
        IngestLimits.from_parameters({"max_frames": text})
