"""A fresh process, from its start to the first answer; with an empty and with a filled cache of compiled kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.context import ROOT, Context

_MARK = "FIRST_ANSWER "
_PROGRAM = f"""
import json, sys, time
started = time.perf_counter()
import numpy as np
from autogaze_backend import GazeModel
imported = time.perf_counter()
model = GazeModel.load(sys.argv[1], device=sys.argv[2], engine=sys.argv[3])
loaded = time.perf_counter()
model.warm_up()
warm = time.perf_counter()
schedule = json.loads(sys.argv[4])
video = np.random.default_rng(0).standard_normal((1, len(schedule), 3, 224, 224), np.float32)
times = []
for _ in range(3):
    before = time.perf_counter()
    model.generate(video, max_gaze_tokens_each_frame=schedule)
    times.append(time.perf_counter() - before)
print({_MARK!r} + json.dumps({{
    "import, s": imported - started,
    "load, s": loaded - imported,
    "warm up, s": warm - loaded,
    "first clip, s": times[0],
    "third clip, s": times[2],
}}))
"""


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Twice a precision: torch and Triton keep compiled kernels on disk, so the second start is the usual one."""
    for precision in context.settings.precisions:
        try:
            bundle = context.bundle(precision)
        except Exception as error:
            context.notes[precision] = f"{type(error).__name__}: {error}"
            continue
        with tempfile.TemporaryDirectory() as cache:
            for name in ("empty", "filled"):
                if context.cut(f"{precision}, {name}"):
                    continue
                yield {"precision": precision, "kernel cache": name, **_start(context, str(bundle), cache)}


def _start(context: Context, bundle: str, cache: str) -> dict[str, Any]:
    schedule = json.dumps(context.schedule())
    command = [
        sys.executable,
        "-c",
        _PROGRAM,
        bundle,
        context.settings.device,
        context.settings.engine,
        schedule,
    ]
    folders = {
        name: f"{cache}/{name.lower()}"
        for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "CUDA_CACHE_PATH")
    }
    started = time.perf_counter()
    limit = max(context.left() + 10, 15)
    try:
        outcome = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | folders,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # What it has compiled by then serves the next start.
        return {"process, s": None, "ended": f"no answer after {limit:.0f} s"}
    seconds = time.perf_counter() - started
    lines = [line for line in outcome.stdout.splitlines() if line.startswith(_MARK)]
    if outcome.returncode != 0 or not lines:
        raise RuntimeError(f"the process ended with {outcome.returncode}: {outcome.stderr[-2000:]}")
    return {"process, s": seconds, **json.loads(lines[0].removeprefix(_MARK))}
