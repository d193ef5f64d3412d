"""A bulk run that is told to end (make test-faults)."""

from __future__ import annotations

import uuid

import pytest
from backend.bulk_helpers import processes, results, start_command, wait_for, write_folder

pytest.importorskip("ray", reason="needs the extra bulk: pip install 'autogaze-triton[bulk]'")


@pytest.mark.faults
def test_a_run_that_is_told_to_end_leaves_what_is_whole(bundle, tmp_path):
    """SIGTERM, as process managers and Kubernetes send it; Ray would print a stack and exit with 15."""
    videos = write_folder(tmp_path / "videos")
    mark, out = uuid.uuid4().hex, tmp_path / "out"
    run = start_command(videos, out, bundle, mark)
    try:
        wait_for(lambda: list((out / ".parts").glob("*")), 60, "a video in hand")
        run.terminate()
        _, log = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130, log
    assert not (out / ".parts").exists()
    assert all(columns["frame"] for columns in results(out).values())
    wait_for(lambda: not processes(mark, "ray::"), 30, "end of Ray's processes")
    # The next run does the rest.
    again = start_command(videos, out, bundle, mark)
    _, log = again.communicate(timeout=120)
    assert again.returncode == 3, log
    assert len(results(out)) == 5
