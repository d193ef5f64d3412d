"""The containers' probe before a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROBE = Path(__file__).parents[2] / "deploy" / "probe.py"


def probe(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(_PROBE), *arguments], capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.server
def test_a_server_whose_models_are_ready_passes(server):
    assert probe(f"http://{server.http_url}") == (0, "")
    assert probe(f"http://{server.http_url}/", "autogaze", "autogaze_ingest") == (0, "")


@pytest.mark.server
def test_a_model_that_is_not_ready_is_named(server):
    code, said = probe(f"http://{server.http_url}", "autogaze_generate", "autogaze_v7")
    assert code == 1
    assert said.startswith("not ready: ")
    assert "/v2/models/autogaze_v7/ready: status 400" in said


def test_no_server_is_not_ready():
    code, said = probe("http://127.0.0.1:9")
    assert code == 1
    assert "/v2/health/ready" in said
