"""Runs the sections, each in a process of its own, and keeps what each has measured as soon as it has.

``python -m benchmarks.gpu --only parity,latency --minutes 8 --out build/bench/gpu``. The published model
comes from the checkout that ``AUTOGAZE_SRC`` names. One file, ``gpu.json``, is written anew after every row.
A section that fails, hangs or crashes is recorded as such; the others run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.context import FULL, TINY, Settings
from benchmarks.gpu.record import Record
from benchmarks.gpu.sections import Plan, add_common_arguments, default_engine

# The most important first.
_SECONDS = {
    "parity": 110,
    "latency": 60,
    "throughput": 100,
    "agreement": 55,
    "profile": 35,
    "memory": 40,
    "cold_start": 45,
    "streams": 45,
}
_MODULES = {name: f"benchmarks.gpu.{name}" for name in _SECONDS} | {"profile": "benchmarks.gpu.profiling"}
PLAN = Plan(_MODULES, _SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a section failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add_common_arguments(parser, PLAN, Path("build/bench/gpu"))
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="NPY",
        default=os.environ.get("AUTOGAZE_FRAMES"),
        help="real frames, uint8 [clips, T, H, W, 3]",
    )
    args = parser.parse_args(arguments)
    published = os.environ.get("AUTOGAZE_SRC")
    record = Record(args.out / "gpu.json", PLAN.chosen(args.only, parser))
    with tempfile.TemporaryDirectory(prefix="autogaze-bench-") as scratch:
        settings = Settings(
            device=args.device,
            engine=args.engine or default_engine(args.device),
            precisions=tuple(args.precision.split(",")),
            sizes=TINY if args.tiny else FULL,
            folder=Path(scratch),
            frames=args.frames.absolute() if args.frames else None,
            published=Path(published).absolute() if published else None,
        )
        PLAN.run(record, settings, args.minutes)
    print(record.tables())
    return int(any(section.error for section in record.sections))


if __name__ == "__main__":
    sys.exit(main())
