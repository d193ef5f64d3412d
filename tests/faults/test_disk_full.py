"""`autogaze build` where there is no room: it says so, leaves nothing half, and keeps what was there."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from autogaze_backend import Bundle
from faults.fault_helpers import run_in_namespace

MEBI = 1 << 20


def build_command(checkpoint: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "autogaze_client._cli", "build", str(checkpoint), str(out)]


def check(returncode: int, errors: str, out: Path, reason: str) -> None:
    assert returncode == 1
    assert f"cannot write the bundle {out}: there is no room" in errors
    assert f"({reason}); free some or choose another folder" in errors
    assert "Traceback" not in errors


# Where it stops: in the weights, and, with all but a few bytes of them allowed, at their very end.
@pytest.mark.parametrize("limit", [MEBI, 12 * MEBI])
@pytest.mark.parametrize("before", [False, True])
def test_a_file_that_may_not_grow_leaves_no_half_bundle(limit, before, bundle, seeded_checkpoint, tmp_path):
    out = tmp_path / "bundle"
    if before:
        shutil.copytree(bundle("single"), out)

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        build_command(seeded_checkpoint(), out), capture_output=True, text=True, preexec_fn=restrict
    )
    check(done.returncode, done.stderr, out, "EFBIG")
    assert [path.name for path in tmp_path.iterdir()] == (["bundle"] if before else [])
    if before:
        assert Bundle.load(out).spec.group_size == 1


@pytest.mark.parametrize("kibibytes", [64, 4000])
def test_a_disk_that_is_full_leaves_nothing_and_serves_again_when_it_is_free(
    kibibytes, seeded_checkpoint, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import os, subprocess, sys
from pathlib import Path
command, disk = {build_command(seeded_checkpoint(), disk / "bundle")!r}, Path({str(disk)!r})
done = subprocess.run(command, capture_output=True, text=True)
print(done.returncode, sorted(path.name for path in disk.iterdir()), flush=True)
print(done.stderr.strip().splitlines()[-1], flush=True)
subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
again = subprocess.run(command, capture_output=True, text=True)
print(again.returncode, again.stderr, sorted(path.name for path in disk.iterdir()), flush=True)
"""
    )
    first, errors, again = run_in_namespace(
        f"mount -t tmpfs -o size={kibibytes}k tmpfs {disk}", script
    ).splitlines()
    assert first == "1 []"
    check(1, errors, disk / "bundle", "ENOSPC")
    assert again == "0  ['bundle']"


def test_other_faults_of_the_disk_keep_their_own_words(seeded_checkpoint, tmp_path):
    if os.getuid() == 0:
        pytest.skip("root may write anywhere")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    done = subprocess.run(
        build_command(seeded_checkpoint(), closed / "bundle"), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no room" not in done.stderr
