"""``autogaze gaze`` with panels: files, columns, styles and the metrics JSON."""

from __future__ import annotations

import json

import autogaze_client._client as client_module
import numpy as np
import pytest
from autogaze_client import VideoReader, _cli
from autogaze_client._commands import gaze as gaze_command
from client_helpers import FakeServer
from PIL import Image


@pytest.fixture
def gaze(monkeypatch, video, tmp_path):
    """Runs the command on 12 frames of 64x48 and returns its exit status."""
    server = FakeServer()
    entry = type("Entry", (), {"name": "gaze", "load": staticmethod(lambda: gaze_command.Command)})
    monkeypatch.setattr(client_module, "GrpcTransport", lambda address: server)
    monkeypatch.setattr(_cli, "entry_points", lambda group: [entry])

    def run(*arguments: str) -> int:
        return _cli.main(["gaze", str(video), "--out", str(tmp_path), "--frames", "12", *arguments])

    run.server = server
    return run


def test_every_format(gaze, tmp_path, capsys):
    status = gaze(
        "--style", "scale-rows", "--geometry", "deduplicated", "--view", "interframe",
        "--panels", "input,mask,output", "--format", "mp4,gif,png", "--keyframe-interval", "5",
    )  # fmt: skip
    assert status == 0
    frames = list(VideoReader(tmp_path / "panels.mp4"))
    assert len(frames) == 12
    assert frames[0].shape == (48, 3 * 64 + 2 * 4, 3)
    assert Image.open(tmp_path / "panels.gif").n_frames == 12
    assert Image.open(tmp_path / "panels.png").size == (200, 4 * 48 + 3 * 4)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    panels = metrics["panels"]
    assert (panels["style"], panels["geometry"], panels["view"]) == (
        "scale-rows",
        "deduplicated",
        "interframe",
    )
    assert panels["keyframes"] == 3
    assert len(panels["update_ratio_per_frame"]) == 12
    assert [index for index, ratio in enumerate(panels["update_ratio_per_frame"]) if ratio == 1] == [0, 5, 10]
    assert panels["psnr_db_per_frame"][0] is None
    assert 5 < panels["psnr_db"] < 60
    for index, (mask, update) in enumerate(
        zip(panels["mask_ratio_per_frame"], panels["update_ratio_per_frame"], strict=True)
    ):
        assert update == (1 if index % 5 == 0 else mask)
    assert metrics["tokens_per_frame"] == [2] * 12
    assert set(metrics["fps"]) == {"client request", "elapsed in all", "read", "visualise", "encode"}
    printed = capsys.readouterr().out
    assert "update ratio" in printed
    assert "panels.gif" in printed


def test_the_output_takes_only_what_was_gazed_at(gaze, tmp_path):
    """The picture shows the interframe rule: the last output stays outside the cells."""
    assert gaze("--panels", "input,output", "--format", "png", "--keyframe-interval", "0") == 0
    picture = np.asarray(Image.open(tmp_path / "panels.png")).astype(int)
    last = picture[-48:]
    first_grey, last_grey = picture[0, 10, 0], last[0, 10, 0]
    values = set(np.unique(last[:, 68:, 0]))
    assert abs(last_grey - first_grey) > 30
    assert first_grey in values
    assert not (tmp_path / "panels.mp4").exists()


def test_a_stride_holds_for_what_is_drawn(gaze, tmp_path):
    assert gaze("--start-frame", "2", "--frame-stride", "3", "--panels", "input", "--format", "mp4") == 0
    levels = [float(frame.mean()) for frame in VideoReader(tmp_path / "panels.mp4")]
    assert np.abs(np.array(levels) - (5 * (2 + 3 * np.arange(12)) + 20)).max() < 4
    assert gaze.server.requests[0]["FRAMES"].mean(axis=(0, 2, 3, 4)) == pytest.approx(levels, abs=4)
    written = json.loads((tmp_path / "gaze.json").read_text())
    assert np.diff(written["timestamps"]).tolist() == pytest.approx([3 / 25] * 11)


@pytest.mark.parametrize("spelling", ["tiled", "tiled-full-resolution", "TILED_FULL_RESOLUTION"])
def test_tiled_is_a_mode(gaze, monkeypatch, spelling):
    asked = []
    monkeypatch.setattr(
        client_module.GazeClient, "gaze", lambda self, path, **knobs: asked.append(knobs["mode"])
    )
    with pytest.raises(AttributeError):
        gaze("--mode", spelling)
    assert asked == ["tiled_full_resolution"]


def test_an_unknown_mode_names_those_there_are(gaze, capsys):
    with pytest.raises(SystemExit):
        gaze("--mode", "mosaic")
    assert "'resize', 'tiled', 'tiled_resize_to_grid', 'tiled_full_resolution'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--panels", "input,sky"), "--panels holds 'sky'; it takes a comma-separated list of input, mask"),
        (("--format", "bmp"), "--format holds 'bmp'"),
        (("--format", ","), "there are no formats"),
        (("--keyframe-interval", "-1"), "keyframe_duration is -1"),
        (("--blend-alpha", "nan"), "blend_alpha is nan"),
    ],
)
def test_wrong_panels_are_found_before_anything_is_sent(gaze, capsys, arguments, message):
    assert gaze(*arguments) == 1
    assert message in capsys.readouterr().err
    assert gaze.server.requests == []
