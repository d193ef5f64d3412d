"""NVIDIA's perf_analyzer against the ensemble: its input file, its command line, and the table that it writes.

Through shared memory it takes no model with optional inputs. So it asks an ensemble of its own, made of the
shipped one: the same steps, with the two inputs that are sent as the only ones. Its shared memory has fixed
names, so two of them on one machine write into each other's requests: run one at a time.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MODEL = "autogaze_perf"
_SENT = ("FRAMES", "MAX_GAZE_TOKENS")
# Bytes of each output's region: the longest output of a clip is far below it.
_OUTPUT_BYTES = 1 << 20
_REQUESTS = 50
# It reports over this many windows, and nothing at all where they differ by more than the tolerance: so none is
# asked, and the percentiles show the spread.
_WINDOWS = 3
_STABLE_PERCENT = 999


@dataclass(frozen=True)
class PerfRow:
    """One concurrency.

    Attributes:
        concurrency: requests in flight.
        requests_per_s: answered.
        p50_ms: of a request.
        p99_ms: likewise.
    """

    concurrency: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float


def add_ensemble(repository: Path, sent: Sequence[str] = _SENT) -> None:
    """Adds the ensemble without optional inputs to a copy of the shipped repository.

    Args:
        repository: the copy.
        sent: the inputs that it has.
    """
    text = (repository / "autogaze" / "config.pbtxt").read_text(encoding="utf-8")
    head, _, rest = text.partition("input [")
    declared, _, tail = rest.partition("\n]")
    lines = [line.strip().rstrip(",") for line in declared.splitlines()]
    kept = [line for line in lines if any(f'name: "{name}"' in line for name in sent)]
    inputs = ",\n  ".join(line.replace(" optional: true", "") for line in kept)
    # A knob that is not sent reaches no step: the ensemble gives its inputs on under their own names.
    names = [line.split('"')[1] for line in lines if line and line not in kept]
    tail = "\n".join(
        line
        for line in tail.splitlines()
        if not any(f'input_map {{ key: "{name}" value: "{name}" }}' in line for name in names)
    )
    head = head.replace('name: "autogaze"', f'name: "{MODEL}"')
    folder = repository / MODEL
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(f"{head}input [\n  {inputs}\n]{tail}\n", encoding="utf-8")


def write_inputs(path: Path, clips: Sequence[NDArray[np.uint8]], schedule: Sequence[int]) -> Path:
    """The clips as perf_analyzer's JSON; requests take them in turn."""
    data = [
        {
            "FRAMES": {"content": _encoded(clip), "shape": list(clip.shape)},
            "MAX_GAZE_TOKENS": {
                "content": _encoded(np.asarray(schedule, np.int32)),
                "shape": [len(schedule)],
            },
        }
        for clip in clips
    ]
    path.write_text(json.dumps({"data": data}), encoding="utf-8")
    return path


def _encoded(array: NDArray[np.generic]) -> dict[str, str]:
    return {"b64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}


def measure(
    program: str, libraries: str | None, url: str, inputs: Path, concurrency: int, timeout: float
) -> PerfRow:
    """Runs it with system shared memory at one concurrency.

    Raises:
        RuntimeError: it failed or took too long; the message holds the end of what it said.
    """
    environment = dict(os.environ)
    if libraries:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(
            part for part in (libraries, environment.get("LD_LIBRARY_PATH")) if part
        )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        command = [program, "-m", MODEL, "-u", url, "-i", "grpc", "-b", "1", "-f", str(report)]
        command += ["--input-data", str(inputs), "--shared-memory", "system"]
        command += ["--output-shared-memory-size", str(_OUTPUT_BYTES)]
        command += ["--concurrency-range", f"{concurrency}:{concurrency}", "--percentile", "50"]
        command += ["--measurement-mode", "count_windows", "--max-trials", str(_WINDOWS)]
        command += ["--measurement-request-count", str(max(_REQUESTS, 8 * concurrency))]
        command += ["--stability-percentage", str(_STABLE_PERCENT)]
        try:
            outcome = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"perf_analyzer: {error}") from error
        if outcome.returncode != 0 or not report.is_file():
            said = (outcome.stdout + outcome.stderr)[-1500:]
            raise RuntimeError(f"perf_analyzer ended with {outcome.returncode}: {said}")
        return read_report(report.read_text(encoding="utf-8"))


def read_report(text: str) -> PerfRow:
    """The only row of its CSV; it counts in microseconds."""
    (row,) = csv.DictReader(text.splitlines())
    return PerfRow(
        concurrency=int(row["Concurrency"]),
        requests_per_s=float(row["Inferences/Second"]),
        p50_ms=float(row["p50 latency"]) / 1e3,
        p99_ms=float(row["p99 latency"]) / 1e3,
    )
