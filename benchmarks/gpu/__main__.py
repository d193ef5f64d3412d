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
from benchmarks.gpu.record import Record, Section
from benchmarks.gpu.sections import SECTIONS, run_section


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a section failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="sections, in order (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="of all sections (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/bench/gpu"), help="default: %(default)s")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: %(default)s)")
    parser.add_argument("--engine", help="of ours (default: torch on cuda, onnxruntime on the cpu)")
    parser.add_argument("--precision", default="exact,fast", help="of ours (default: %(default)s)")
    parser.add_argument("--frames", type=Path, metavar="NPY", help="real frames, uint8 [clips, T, H, W, 3]")
    parser.add_argument(
        "--tiny", action="store_true", help="as little as possible, to try the benchmark itself"
    )
    args = parser.parse_args(arguments)
    names = [name.strip() for name in args.only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--only names {', '.join(unknown)}; sections are {', '.join(SECTIONS)}")
    published = os.environ.get("AUTOGAZE_SRC")
    record = Record(args.out / "gpu.json", [Section(name) for name in names])
    with tempfile.TemporaryDirectory(prefix="autogaze-bench-") as scratch:
        settings = Settings(
            device=args.device,
            engine=args.engine or ("torch" if args.device.startswith("cuda") else "onnxruntime"),
            precisions=tuple(args.precision.split(",")),
            sizes=TINY if args.tiny else FULL,
            folder=Path(scratch),
            frames=args.frames.absolute() if args.frames else None,
            published=Path(published).absolute() if published else None,
        )
        record.write()
        left = args.minutes * 60
        for section in record.sections:
            # What a section leaves goes to those after it.
            waiting = sum(SECTIONS[name] for name in names[names.index(section.name) :])
            run_section(section, settings, left * SECTIONS[section.name] / waiting, record)
            left -= section.elapsed()
            print(f"{section.name}: {section.state}, {section.elapsed():.0f} s", flush=True)
    print(record.tables())
    return int(any(section.error for section in record.sections))


if __name__ == "__main__":
    sys.exit(main())
