from __future__ import annotations

import builtins
import io
import shutil
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from autogaze_client import InvalidInputError, MissingExtraError, VideoDecodeError, VideoReader, VideoWriter


def brightness(frames) -> list[int]:
    """The index that the ``video`` fixture painted into each frame."""
    return [round((float(frame.mean()) - 20) / 5) for frame in frames]


def test_frames_come_in_order(video):
    reader = VideoReader(video)
    assert (reader.width, reader.height, reader.fps, reader.frame_count) == (64, 48, 25, 37)
    assert type(reader.fps) is Fraction
    assert brightness(reader) == list(range(37))
    assert brightness(reader) == list(range(37))


@pytest.mark.parametrize(
    ("start", "most", "found"), [(5, 3, [5, 6, 7]), (35, None, [35, 36]), (0, 99, [*range(37)])]
)
def test_part_of_a_video(video, start, most, found):
    reader = VideoReader(video, start_frame=start, max_frames=most)
    assert brightness(reader) == found
    assert reader.frame_count == len(found)


def test_windows(video):
    windows = list(VideoReader(video).windows(16))
    assert [window.shape for window in windows] == [(16, 48, 64, 3), (16, 48, 64, 3), (5, 48, 64, 3)]
    assert all(window.dtype == np.uint8 for window in windows)
    assert brightness(np.concatenate(windows)) == list(range(37))


def test_start_beyond_the_end(video):
    with pytest.raises(VideoDecodeError, match="start_frame is 37, but the video has 37 frames"):
        list(VideoReader(video, start_frame=37))


def test_bytes_read_as_their_file_does(video, truncated):
    with VideoReader(video.read_bytes()) as reader:
        assert (reader.width, reader.height, reader.frame_count) == (64, 48, 37)
        assert brightness(reader) == list(range(37))
    with pytest.raises(VideoDecodeError, match=r"the encoded video: truncated or damaged: \d+ of 60 frames"):
        list(VideoReader(truncated.read_bytes()))
    with pytest.raises(VideoDecodeError, match="the encoded video: not a video"):
        VideoReader(b"not a video")


def test_truncation_is_never_silent(truncated):
    reader = VideoReader(truncated)
    frames = []
    with pytest.raises(
        VideoDecodeError, match=r"cut\.mp4: truncated or damaged: \d+ of 60 frames could be read"
    ) as info:
        frames.extend(reader)
    assert str(info.value).endswith("max_frames=" + str(info.value).split("damaged: ")[1].split(" of")[0])


def encode(
    target, container_format: str, frames: int, *, codec="libx264", width=64, sound_s=0.0, options=None
) -> None:
    """Noise, which no encoder shrinks: every frame is as long as the others."""
    rng = np.random.default_rng(0)
    with av.open(target, "w", format=container_format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "5", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
        sound = container.add_stream("aac", rate=8000, layout="mono") if sound_s else None
        for _ in range(frames):
            picture = rng.integers(0, 255, (48, width, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
        if sound is None:
            return
        for start in range(0, round(8000 * sound_s), 1024):
            noise = rng.uniform(-1, 1, (1, 1024)).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 8000, start
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))


def encoded(container_format: str, frames: int, **settings) -> bytes:
    file = io.BytesIO()
    encode(file, container_format, frames, **settings)
    return file.getvalue()


@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize(
    ("container_format", "settings"),
    [
        ("matroska", {}),
        ("matroska", {"sound_s": 4}),
        ("webm", {"codec": "libvpx-vp9"}),
        ("flv", {}),
        ("avi", {"codec": "mpeg4"}),
    ],
)
def test_a_cut_is_seen_where_frames_or_duration_are_declared(container_format, settings, share):
    content = encoded(container_format, 60, **settings)
    assert len(list(VideoReader(content))) == 60
    cut = VideoReader(content[: round(len(content) * share)])
    with pytest.raises(VideoDecodeError, match="truncated or damaged"):
        list(cut)


def without_tags(content: bytes) -> bytes:
    """The same Matroska file, its per-stream durations renamed: other muxers do not write them."""
    assert b"DURATION" in content
    return content.replace(b"DURATION", b"DURATI0N")


def test_a_longer_sound_track_is_no_truncation():
    content = without_tags(encoded("matroska", 25, sound_s=4))
    assert len(list(VideoReader(content))) == 25
    with pytest.raises(
        VideoDecodeError, match=r"25 frames could be read \(the file ends at [23]\.\d+ s of 4\.\d+"
    ):
        list(VideoReader(content[: round(len(content) * 0.9)]))


def test_a_file_that_starts_late_is_no_truncation(tmp_path):
    source, late = io.BytesIO(encoded("matroska", 30)), tmp_path / "late.mkv"
    with (
        av.open(source) as container,
        av.open(str(late), "w", options={"avoid_negative_ts": "disabled"}) as out,
    ):
        stream = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts + 10_000, packet.dts + 10_000
                packet.stream = stream
                out.mux(packet)
    assert len(list(VideoReader(late))) == 30
    late.write_bytes(late.read_bytes()[: late.stat().st_size * 6 // 10])
    with pytest.raises(VideoDecodeError, match="truncated"):
        list(VideoReader(late))


class Pipe(io.RawIOBase):
    """Nothing can be written back into the header, as when a stream is recorded."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.content += bytes(data)
        return len(data)


def test_a_recording_without_a_duration_reads_to_its_end():
    pipe = Pipe()
    encode(pipe, "matroska", 30, options={"live": "1"})
    reader = VideoReader(pipe.content)
    assert reader.frame_count is None
    assert len(list(reader)) == 30


def test_a_cut_transport_stream_reads_as_a_shorter_video():
    """Documented: MPEG-TS stores no duration that a cut could break."""
    content = encoded("mpegts", 60)
    assert 0 < len(list(VideoReader(content[: len(content) * 6 // 10 // 188 * 188]))) < 60


@pytest.mark.parametrize("read", [list, lambda reader: list(reader.windows(4))])
def test_a_change_of_size_is_refused(tmp_path, read):
    path = tmp_path / "two.h264"
    path.write_bytes(encoded("h264", 10) + encoded("h264", 10, width=32))
    with pytest.raises(VideoDecodeError, match="size changes from 64x48 to 32x48 at frame 10"):
        read(VideoReader(path))
    assert len(list(VideoReader(path, max_frames=10))) == 10


SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video 9 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
)
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.48,\nclip.mp4\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [("a.sdp", SDP), ("a.ffconcat", "ffconcat version 1.0\nfile clip.mp4\n"), ("a.m3u8", HLS)],
    ids=["sdp", "ffconcat", "hls"],
)
def test_a_file_that_leads_elsewhere_is_refused_at_once(tmp_path, monkeypatch, video, as_file, name, text):
    """An SDP text listens on the network, a playlist opens what it names."""
    shutil.copy(video, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text, newline="")
    started = time.monotonic()
    with pytest.raises(VideoDecodeError, match="not a video in a supported container"):
        list(VideoReader(tmp_path / name if as_file else text.encode()))
    assert time.monotonic() - started < 10, "it looked elsewhere"


def test_a_name_with_a_scheme_is_a_file(tmp_path, monkeypatch, video):
    monkeypatch.chdir(tmp_path)
    shutil.copy(video, "concat:a.mp4")
    assert len(list(VideoReader("concat:a.mp4"))) == 37


def test_the_readable_part_of_a_truncated_file_can_be_asked_for(truncated):
    assert len(list(VideoReader(truncated, max_frames=10))) == 10


def test_an_edit_list_is_no_truncation(tmp_path, video):
    """A trimmed MP4 declares the samples it holds, and shows fewer."""
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(video)) as source, av.open(str(trimmed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                # Negative timestamps become an edit list that hides the first frames.
                shift = round(0.4 * packet.time_base.denominator / packet.time_base.numerator)
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = stream
                target.mux(packet)
    reader = VideoReader(trimmed)
    assert 0 < len(list(reader)) < reader.declared_frames


def test_files_that_are_no_video(tmp_path):
    with pytest.raises(VideoDecodeError, match="there is no such file"):
        VideoReader(tmp_path / "missing.mp4")
    with pytest.raises(VideoDecodeError, match="no such file"):
        VideoReader(tmp_path)
    text = tmp_path / "text.mp4"
    text.write_text("not a video" * 100)
    with pytest.raises(VideoDecodeError, match="not a video in a supported container"):
        VideoReader(text)


def test_a_file_without_its_index(tmp_path, video):
    cut = tmp_path / "cut.mp4"
    content = video.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoDecodeError, match="or truncated"):
        VideoReader(cut)


def test_sound_alone(tmp_path):
    path = tmp_path / "sound.mka"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoDecodeError, match="no video stream"):
        VideoReader(path)


@pytest.mark.parametrize(
    ("knobs", "message"), [({"start_frame": -1}, "start_frame is -1"), ({"max_frames": 0}, "max_frames is 0")]
)
def test_bad_ranges(video, knobs, message):
    with pytest.raises(InvalidInputError, match=message):
        VideoReader(video, **knobs)


def test_odd_sizes_are_padded(tmp_path):
    frame = np.zeros((9, 11, 3), np.uint8)
    frame[:, -1] = 255
    with VideoWriter(tmp_path / "odd.mp4") as writer:
        writer.write(frame)
    (read,) = VideoReader(tmp_path / "odd.mp4")
    assert read.shape == (10, 12, 3)
    assert read[:, -1].mean() > 200


def test_bad_frames_are_not_written(tmp_path):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        with pytest.raises(InvalidInputError, match="must be uint8"):
            writer.write(np.zeros((4, 4, 3), np.float32))
        writer.write(np.zeros((16, 16, 3), np.uint8))
        with pytest.raises(InvalidInputError, match="the frame is 18x16, but the video is 16x16"):
            writer.write(np.zeros((16, 18, 3), np.uint8))


def test_without_pyav_the_extra_is_named(video, monkeypatch):
    real = builtins.__import__

    def without_av(name, *args, **kwargs):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(
        MissingExtraError, match=r"reading a video needs av: pip install 'autogaze-triton\[video\]'"
    ):
        VideoReader(video)
    with pytest.raises(MissingExtraError, match=r"autogaze-triton\[video\]"):
        VideoWriter(video.with_name("b.mp4"))


def test_a_copy_reads_the_same(tmp_path, video):
    copy = shutil.copy(video, tmp_path / "ünïcode name.mp4")
    assert brightness(VideoReader(copy)) == list(range(37))
