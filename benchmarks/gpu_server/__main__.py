"""Runs the sections against the real server; see ``benchmarks.gpu`` for how sections are run and recorded.

``python -m benchmarks.gpu_server --only ready,clips,cameras --out build/bench/gpu_server``. perf_analyzer comes from
``--perf-analyzer``, ``AUTOGAZE_PERF_ANALYZER`` or the PATH; ``--env NAME=VALUE`` goes to the server.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from autogaze_backend.serving import MultiProcessService

from benchmarks.gpu.context import FULL, TINY
from benchmarks.gpu.record import Record
from benchmarks.gpu.sections import Plan, add_common_arguments, default_engine
from benchmarks.gpu_server.serving import ServerSettings

_SECONDS = {"cameras": 150, "clips": 220, "ready": 110}
PLAN = Plan({name: f"benchmarks.gpu_server.{name}" for name in _SECONDS}, _SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a section failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_server", description=__doc__)
    add_common_arguments(parser, PLAN, Path("build/bench/gpu_server"))
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="of the server")
    parser.add_argument("--mps", action="store_true", help="the server's processes use the GPU side by side")
    parser.add_argument("--concurrency", default="1,2,4,8,16,32,64", help="default: %(default)s")
    parser.add_argument("--cameras", default="64,128,256", help="streams at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each number of cameras")
    parser.add_argument("--processes", type=int, help="of the load generators (default: half of the cores)")
    parser.add_argument(
        "--perf-analyzer", default=os.environ.get("AUTOGAZE_PERF_ANALYZER") or shutil.which("perf_analyzer")
    )
    args = parser.parse_args(arguments)
    environment = dict(entry.split("=", 1) for entry in args.env)
    record = Record(args.out / "gpu_server.json", PLAN.chosen(args.only, parser), "gpu_server")
    with tempfile.TemporaryDirectory(prefix="autogaze-bench-") as scratch, ExitStack() as stack:
        if args.mps:
            environment |= stack.enter_context(MultiProcessService()).environment
        settings = ServerSettings(
            device=args.device,
            engine=args.engine or default_engine(args.device),
            precisions=tuple(args.precision.split(",")),
            sizes=TINY if args.tiny else FULL,
            folder=Path(scratch),
            frames=None,
            published=None,
            environment=environment,
            concurrencies=(1, 2) if args.tiny else _numbers(args.concurrency),
            cameras=(2,) if args.tiny else _numbers(args.cameras),
            camera_seconds=2.0 if args.tiny else args.seconds,
            processes=args.processes or max(1, len(os.sched_getaffinity(0)) // 2),
            perf_analyzer=args.perf_analyzer,
            perf_libraries=os.environ.get("AUTOGAZE_PERF_LIBRARIES"),
        )
        PLAN.run(record, settings, args.minutes)
    print(record.tables())
    return int(any(section.error for section in record.sections))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
