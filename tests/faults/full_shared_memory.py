"""Run by test_full_memory.py where /dev/shm is a small file system of its own: fills it, asks, frees it, asks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from autogaze_backend.serving import ServerStartError, TritonServer
from autogaze_client import AutoGazeError, GazeClient
from faults.fault_helpers import LONG, config, serving

SMALL = np.zeros((1, 64, 64, 3), np.uint8)
BIG = np.zeros((16, 480, 640, 3), np.uint8)
FILLER = Path("/dev/shm/filler")
LEFT_BYTES = 3 << 20


def ask(client: GazeClient, frames: np.ndarray) -> str:
    try:
        client.gaze(frames, gazing_ratio=0.1)
    except AutoGazeError as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


def fill() -> None:
    space = os.statvfs("/dev/shm")
    FILLER.write_bytes(bytes(space.f_bavail * space.f_frsize - LEFT_BYTES))


def main(bundle: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    with serving(bundle) as server:
        with GazeClient(server.url, shared_memory=False) as wire, GazeClient(server.url) as sharing:
            fill()
            found["small, full"] = ask(wire, SMALL)
            found["big, full"] = ask(wire, BIG)
            found["big through shared memory, full"] = ask(sharing, BIG)
            found["small again, full"] = ask(wire, SMALL)
            FILLER.unlink()
            found["big, freed"] = ask(wire, BIG)
            found["big through shared memory, freed"] = ask(sharing, BIG)
        found["alive"] = server.poll() is None and len(server.stubs())
    fill()
    try:
        with TritonServer(config(bundle), on_log=lambda line: None) as server:
            server.wait_until_ready(LONG)
            found["start, full"] = "ok"
    except ServerStartError as error:
        found["start, full"] = str(error)
    FILLER.unlink()
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
