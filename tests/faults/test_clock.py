"""The machine's clock jumps by a month, forwards and back, while streams are open."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend.serving import TritonServer
from autogaze_client import AutoGazeGenerateOutput, GazeClient, StreamExpired
from faults.fault_helpers import KNOBS, LONG, clip, config, eventually

pytestmark = pytest.mark.server

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
TTL = 8.0
DAY = 86400.0


def _end_the_rest(name: str) -> None:
    """Ends stubs of a server that has stopped: with this library in it, the guard may miss one, which then spins."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if name.encode() in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.mark.skipif(not _LIBRARIES, reason="needs libfaketime (Debian: apt install faketime)")
def test_a_clock_that_jumps_expires_no_stream_and_keeps_none(bundle, model, tmp_path):
    """The time of day of the server and its models really jumps; what they measure with does not."""
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    log: list[str] = []
    fake = {
        "LD_PRELOAD": str(_LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
        "AUTOGAZE_LOG_FORMAT": "json",
        "AUTOGAZE_TTL_SECONDS": str(TTL),
    }

    def days_off() -> float:
        """How far the model's clock is from ours, by its newest line about a request."""
        lines = [json.loads(line) for line in log if line.startswith("{") and "request served" in line]
        return (datetime.fromisoformat(lines[-1]["time"]).timestamp() - time.time()) / DAY if lines else 0.0

    frames = clip(4)
    with TritonServer(config(bundle(), **fake), on_log=log.append) as server:
        server.wait_until_ready(LONG)
        with GazeClient(server.url) as client:
            stream = client.stream(**KNOBS)
            results = []
            for frame, (jump, days) in zip(
                frames, [("+0", 0), ("+30d", 30), ("-30d", -30), ("+0", 0)], strict=True
            ):
                clock.write_text(f"{jump}\n")
                results.append(stream.push(frame))
                client.gaze(frame[None], **KNOBS)
                eventually(lambda days=days: abs(days_off() - days) < 1, f"a clock {days} days off")
            joined = AutoGazeGenerateOutput.concatenate([result.generated for result in results])
            # And a clock that was set back keeps no idle stream for ever.
            clock.write_text("-30d\n")
            time.sleep(TTL * 1.25)
            with pytest.raises(StreamExpired, match="has expired"):
                stream.push(frames[0])
        name = server.name
    _end_the_rest(name)
    loaded = model()
    wanted = loaded.generate(loaded.preprocess(frames)[None], **KNOBS).gazing_pos
    np.testing.assert_array_equal(joined.gazing_pos, wanted)
