"""The Makefile's own logic, with a python that behaves as Debian's does without its package python3-venv."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"
# "-c" asks for the version; "-m venv FOLDER" copies the interpreter and then fails at ensurepip.
PYTHON = """#!/bin/sh
if [ "$1" = -m ]; then mkdir -p "$3/bin" && : > "$3/bin/python" && exit 1; fi
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("existed", [False, True])
def test_a_venv_that_failed_is_not_taken_for_a_finished_one(tmp_path, existed):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    if existed:
        (tmp_path / "venv").mkdir()
        (tmp_path / "venv" / "notes.txt").touch()
    for _ in range(2):
        done = subprocess.run(
            ["make", "-f", str(MAKEFILE), f"PYTHON={python}", "VENV=venv", "setup"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0
        assert "apt install python3-venv" in done.stderr
        assert not (tmp_path / "venv" / "bin" / "python").exists()
        # What was there before is not ours to remove.
        assert (tmp_path / "venv" / "notes.txt").exists() == existed
