"""The benchmark of the server's own cost, on the real server with the engine that computes nothing."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu_server.serving import places
from benchmarks.server_cost.__main__ import main


def test_places_can_be_shared_out_by_any_number_of_instances():
    said = {"AUTOGAZE_STREAM_INSTANCES": "4", "AUTOGAZE_CLIP_INSTANCES": "3"}
    assert places(250, 64, said) == {"AUTOGAZE_MAX_STREAMS": "252", "AUTOGAZE_MAX_ACTIVE_CLIPS": "66"}
    assert places(64, 2, {}) == {"AUTOGAZE_MAX_STREAMS": "64", "AUTOGAZE_MAX_ACTIVE_CLIPS": "2"}


@pytest.mark.server
def test_clips_are_measured_with_several_instances(tmp_path, capsys):
    out = tmp_path / "cost.json"
    instances = ["--env", "AUTOGAZE_CLIP_INSTANCES=3"]
    assert main(["--only", "clips", "--clips", "2", "--seconds", "1", *instances, "--out", str(out)]) == 0
    assert "autogaze_generate, CPU ms" in capsys.readouterr().out
    text = json.dumps(json.loads(out.read_text()))
    assert '"requests/s"' in text
