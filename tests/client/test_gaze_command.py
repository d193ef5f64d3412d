from __future__ import annotations

import json
import sys

import autogaze_client._client as client_module
import pytest
from autogaze_client import _cli
from autogaze_client._commands import gaze as gaze_command
from client_helpers import FakeServer


@pytest.fixture
def server(monkeypatch) -> FakeServer:
    server = FakeServer()
    monkeypatch.setattr(client_module, "GrpcTransport", lambda address: server)
    monkeypatch.setattr(_cli, "entry_points", lambda group: [Entry()])
    return server


class Entry:
    name = "gaze"

    @staticmethod
    def load():
        return gaze_command.Command


def test_gaze_writes_its_report_and_prints_a_table(server, video, tmp_path, capsys):
    status = _cli.main(
        ["gaze", str(video), "--out", str(tmp_path), "--frames", "20", "--gazing-ratio", "0.25",
         "--task-loss-requirement", "0.7", "--max-gaze-tokens", "50", "--timeout", "9"]
    )  # fmt: skip
    assert status == 0
    printed = capsys.readouterr().out
    assert "20 (64x48)" in printed
    assert "2.0 (min 2, max 2)" in printed
    assert "0.8%" in printed
    assert "server autogaze ms" in printed
    assert {path.name for path in tmp_path.iterdir()} == {
        "gaze.json",
        "metrics.json",
        "mask.mp4",
        "contact_sheet.png",
    }
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["timings"]["server_ms"] == 6.0
    assert metrics["stage_ms"]["server autogaze"] == 3.0
    request = server.requests[0]
    assert request["GAZING_RATIO"].item() == 0.25
    assert request["MAX_GAZE_TOKENS"].item() == 50
    assert server.timeouts == [9.0, 9.0]


def test_an_expected_error_is_one_line(server, video, tmp_path, capsys):
    assert _cli.main(["gaze", str(video), "--out", str(tmp_path), "--gazing-ratio", "3"]) == 1
    assert capsys.readouterr().err.startswith("autogaze gaze: gazing_ratio is 3.0")
    assert _cli.main(["gaze", "missing.mp4", "--out", str(tmp_path)]) == 1
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "extra"), [("PIL", "viz"), ("av", "video")])
def test_a_missing_extra_is_found_before_anything_is_sent(
    server, video, tmp_path, capsys, monkeypatch, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    assert _cli.main(["gaze", str(video), "--out", str(tmp_path / "out")]) == 1
    assert f"pip install 'autogaze-triton[{extra}]'" in capsys.readouterr().err
    assert server.requests == []
    assert not (tmp_path / "out").exists()
