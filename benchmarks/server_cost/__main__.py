"""``python -m benchmarks.server_cost``: rate, latency, and CPU time a request of each process, with the null engine.

The CPU time of a process counts what it does, whatever else runs on the machine, so a small machine can tell what a
large one will take.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.context import random_pixels
from benchmarks.gpu_server import clip_load, perf_analyzer
from benchmarks.perf_analyzer import PerfAnalyzer
from benchmarks.report import table, write
from benchmarks.server_cost import streams
from benchmarks.server_cost.serving import Running, serving

SCHEDULE = [198] + [10] * 15


def each(before: Mapping[str, float], after: Mapping[str, float], requests: int) -> dict[str, float]:
    """CPU milliseconds a request of each process that used some."""
    return {
        f"{name}, CPU ms": round(1e3 * (after[name] - before.get(name, 0.0)) / max(requests, 1), 4)
        for name in sorted(after)
        if after[name] - before.get(name, 0.0) > 0.02
    }


def stream_rows(server: Running, counts: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """A row for each number of streams."""
    rows = []
    for count in counts:
        marks: list[dict[str, float]] = []
        answers = streams.measure(
            server.url,
            count,
            seconds,
            on_start=lambda marks=marks: marks.append(server.cpu_seconds()),
            on_end=lambda marks=marks: marks.append(server.cpu_seconds()),
        )
        rows.append(
            {
                "load": "frames of streams",
                "in flight": count,
                "requests/s": answers.frames / answers.seconds,
                "p50, ms": float(np.median(answers.latencies)) * 1e3,
                "p99, ms": float(np.percentile(answers.latencies, 99)) * 1e3,
                **each(marks[0], marks[1], answers.frames),
            }
        )
    return rows


def clip_rows(server: Running, counts: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """A row for each number of clips in flight, by our own client through system shared memory."""
    rows = []
    for count in counts:
        before = server.cpu_seconds()
        # Warm-up and start cost CPU too, so CPU is counted over everything that was asked.
        asked = clip_load.measure(server.url, count, 2, SCHEDULE, seconds)
        after = server.cpu_seconds()
        requests = round(asked[0] * (seconds + 2.0))
        rows.append(
            {
                "load": "clips",
                "in flight": count,
                "requests/s": asked[0],
                "p50, ms": asked[1],
                "p99, ms": asked[2],
                **each(before, after, requests),
            }
        )
    return rows


def analyzed_rows(server: Running, folder: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each number of clips in flight, by perf_analyzer, which costs next to nothing itself."""
    analyzer = PerfAnalyzer.fetched()
    clips = [random_pixels(len(SCHEDULE), seed) for seed in range(4)]
    inputs = perf_analyzer.write_inputs(folder / "clips-in.json", clips, SCHEDULE)
    rows = []
    for count in counts:
        found = perf_analyzer.measure(
            str(analyzer.program), str(analyzer.libraries), server.url, inputs, count, 60
        )
        rows.append(
            {
                "load": "clips, perf_analyzer",
                "in flight": count,
                "requests/s": found.requests_per_s,
                "p50, ms": found.p50_ms,
                "p99, ms": found.p99_ms,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server_cost", description=__doc__)
    parser.add_argument("--only", default="streams,clips", help="default: %(default)s")
    parser.add_argument("--streams", default="1,64", help="streams at once (default: %(default)s)")
    parser.add_argument("--clips", default="1,8", help="clips in flight (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="of the server")
    parser.add_argument("--analyzer", action="store_true", help="clips by perf_analyzer, too")
    parser.add_argument("--profile", type=Path, help="where the stubs write profiles of execute")
    parser.add_argument("--out", type=Path, help="a results file")
    args = parser.parse_args(arguments)
    environment = dict(entry.split("=", 1) for entry in args.env)
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="autogaze-cost-") as folder,
        serving(Path(folder), environment, args.profile) as server,
    ):
        if "streams" in args.only:
            rows += stream_rows(server, _numbers(args.streams), args.seconds)
        if "clips" in args.only:
            rows += clip_rows(server, _numbers(args.clips), args.seconds)
        if args.analyzer:
            rows += analyzed_rows(server, Path(folder), _numbers(args.clips))
    for load in ("frames of streams", "clips", "clips, perf_analyzer"):
        part = [row for row in rows if row["load"] == load]
        if part:
            print(table(part))
    if args.out:
        write(args.out, "server_cost", rows)
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
