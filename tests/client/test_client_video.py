from __future__ import annotations

import builtins
import shutil

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
                packet.pts -= round(0.4 / packet.time_base)
                packet.dts -= round(0.4 / packet.time_base)
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
    with pytest.raises(VideoDecodeError, match="not a video that FFmpeg reads"):
        VideoReader(text)


def test_a_file_without_its_index(tmp_path, video):
    cut = tmp_path / "cut.mp4"
    content = video.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoDecodeError, match="or truncated"):
        VideoReader(cut)


def test_sound_alone(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
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
