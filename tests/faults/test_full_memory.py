"""/dev/shm nearly full: a clear error for the calls that need it, others served, and all of them once it is free."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faults.fault_helpers import run_in_namespace

pytestmark = pytest.mark.server

# Smaller than what a starting server and one big clip take together, larger than each.
_MOUNT = "mount -t tmpfs -o size=160m tmpfs /dev/shm"


def test_shared_memory_that_is_full_refuses_big_clips_until_it_is_free(bundle):
    found = json.loads(
        run_in_namespace(_MOUNT, Path(__file__).with_name("full_shared_memory.py"), bundle()).splitlines()[-1]
    )
    for name in ("big, full", "big through shared memory, full"):
        assert found[name].startswith("ServerUnavailableError: "), found
        assert "Failed to increase the shared memory pool" in found[name]
        assert "/dev/shm of the server is full" in found[name]
    served = [name for name, answer in found.items() if answer == "ok"]
    assert served == [
        "small, full",
        "small again, full",
        "big, freed",
        "big through shared memory, freed",
    ]
    assert found["alive"] == 4, "no process was lost"
    # Each of the four processes of the models begins with a region of a mebibyte.
    assert "shared memory" in found["start, full"], found
    assert "exit status 1" in found["start, full"]
