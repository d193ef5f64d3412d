"""Commands against a real server: ``autogaze bench`` and ``autogaze gaze`` with a stream."""

from __future__ import annotations

import json

import numpy as np
import pytest
from autogaze_client._cli import main

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    "way", [["--way", "wire"], ["--way", "encoded", "--mode", "tiled"], ["--stream"]], ids=lambda way: way[-1]
)
def test_the_command_against_a_real_server(server, tmp_path, capsys, way):
    path = tmp_path / "bench.json"
    arguments = ["--clients", "1,2", "--seconds", "0.3", "--size", "320x240", "--frames", "2"]
    arguments += ["--gazing-ratio", "0.05", "--json", str(path), *way]
    assert main(["bench", "--url", server.url, *arguments]) == 0
    written = json.loads(path.read_text())
    assert [row["clients"] for row in written["rows"]] == [1, 2]
    tokens = 4 * 13 if "tiled" in way else 13
    for row in written["rows"]:
        assert row["requests"] >= row["clients"]
        assert row["tokens_per_frame"] == tokens
        assert 0 < row["server_ms"] < row["p99_ms"]
    assert "frames/s" in capsys.readouterr().out


def test_gaze_through_a_stream(server, bunny, tmp_path, capsys):
    arguments = ["--frames", "4", "--frame-stride", "5", "--stream", "--gazing-ratio", "0.05"]
    assert main(["gaze", str(bunny), "--url", server.url, "--out", str(tmp_path), *arguments]) == 0
    written = json.loads((tmp_path / "gaze.json").read_text())
    assert written["tokens_per_frame"] == [13] * 4
    assert np.diff(written["timestamps"]).tolist() == pytest.approx([5 / 25] * 3)
    assert written["timings"]["server_ms"] > 0
    assert "server autogaze_stream ms" in capsys.readouterr().out
