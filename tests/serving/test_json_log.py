"""The server's log as JSON lines (AUTOGAZE_LOG_FORMAT=json)."""

from __future__ import annotations

import json
import os
import signal

import pytest
from autogaze_backend.serving.logs import as_json_line
from deploy.deploy_helpers import takes_longer
from serving.serving_helpers import run_command


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        ('I1124 18:49:30.411150 12232 model_lifecycle.cc:839] "successfully loaded \'probe\'"', "info",
         "successfully loaded 'probe'"),
        ('W1124 18:49:30.412118 12232 metrics.cc:798] "DCGM unable to start"', "warning", "DCGM unable to start"),
        ('E1124 18:49:30.412118 12232 server.cc:1] "one\\ntwo"', "error", "one\ntwo"),
        ("| probe | 1       | READY  |", "info", "| probe | 1       | READY  |"),
        ("{not json", "info", "{not json"),
    ],
)  # fmt: skip
def test_a_line_of_triton_becomes_an_object(line, level, message):
    fields = json.loads(as_json_line(line, 1_795_546_170.411150))
    assert fields == {
        "time": "2026-11-24T18:49:30.411150Z",
        "level": level,
        "logger": "tritonserver",
        "message": message,
    }


def test_a_line_of_a_model_stays_as_it_is():
    line = json.dumps({"level": "info", "message": "request served"})
    assert as_json_line(line, 0.0) == line


@takes_longer
@pytest.mark.server
def test_every_line_of_the_command_is_json(installation, echo_repository):
    process = run_command(
        "serve",
        *(
            f"--model-repository={echo_repository}",
            "--http-port=0",
            "--grpc-port=0",
            "--metrics-port=0",
            "--supervisor-port=0",
        ),
        env={**os.environ, "AUTOGAZE_LOG_FORMAT": "json", "AUTOGAZE_BUNDLE": ""},
    )
    try:
        for line in process.stdout:
            if " ready: " in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert any("successfully loaded 'echo'" in line["message"] for line in lines)
    rest = [line for line in errors.splitlines() if line.strip() and not line.startswith("{")]
    assert rest == []
