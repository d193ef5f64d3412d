"""The sections and the process that each runs in: one that fails, hangs or crashes does not stop the others."""

from __future__ import annotations

import importlib
import traceback
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.gpu.context import Context, Settings
from benchmarks.gpu.record import Record, Section

# What a section may run over its time before it is ended.
GRACE = 20.0


@dataclass(frozen=True)
class Plan:
    """The sections of a benchmark.

    Attributes:
        modules: of each section, in order: its module, whose ``run`` takes a ``Context`` and yields rows.
        seconds: of each, in a run of eight minutes; other lengths are shared out alike.
    """

    modules: Mapping[str, str]
    seconds: Mapping[str, float]

    def run(self, record: Record, settings: Settings, minutes: float) -> None:
        """Runs the record's sections."""
        record.write()
        left = minutes * 60
        waiting = sum(self.seconds[section.name] for section in record.sections)
        for section in record.sections:
            # What a section leaves goes to those after it.
            share = self.seconds[section.name] / waiting
            waiting -= self.seconds[section.name]
            run_section(section, self.modules[section.name], settings, left * share, record)
            left -= section.elapsed()
            print(f"{section.name}: {section.state}, {section.elapsed():.0f} s", flush=True)

    def chosen(self, only: str | None, parser: ArgumentParser) -> list[Section]:
        """The sections that ``--only`` names, in its order; all of them without it."""
        names = (
            list(self.modules) if only is None else [name.strip() for name in only.split(",") if name.strip()]
        )
        if unknown := [name for name in names if name not in self.modules]:
            parser.error(f"--only names {', '.join(unknown)}; sections are {', '.join(self.modules)}")
        return [Section(name) for name in names]


def measure(sender: Connection, module: str, settings: Settings, seconds: float) -> None:
    """One section, in its own process: sends ("row", …) as they come, then ("end", notes) or ("error", text)."""
    context = Context(settings, seconds)
    try:
        for row in importlib.import_module(module).run(context):
            sender.send(("row", row))
        sender.send(("end", context.notes))
    except BaseException:
        sender.send(("error", traceback.format_exc()))


def run_section(section: Section, module: str, settings: Settings, seconds: float, record: Record) -> None:
    """Runs it and records what comes; ends it when its time and the grace are over."""
    spawn = get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=measure, args=(sender, module, settings, seconds))
    section.begin(seconds)
    process.start()
    sender.close()
    try:
        while True:
            left = seconds + GRACE - section.elapsed()
            if left <= 0 or not receiver.poll(left):
                section.fail(f"ended after {section.elapsed():.0f} s: it had {seconds:.0f} s")
                break
            try:
                kind, content = receiver.recv()
            except EOFError:
                process.join(10)
                section.fail(f"its process ended with status {process.exitcode}")
                break
            if kind == "row":
                section.rows.append(content)
                record.write()
                continue
            if kind == "end":
                section.end(content)
            else:
                section.fail(content)
            break
    finally:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        record.write()


def add_common_arguments(parser: ArgumentParser, plan: Plan, out: Path) -> None:
    """What both benchmarks of a GPU are told."""
    parser.add_argument("--only", help=f"sections, in order (default: {','.join(plan.modules)})")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all sections (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=out, help="default: %(default)s")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: %(default)s)")
    parser.add_argument("--engine", help="of ours (default: torch on cuda, onnxruntime on the cpu)")
    parser.add_argument("--precision", default="exact,fast", help="of ours (default: %(default)s)")
    parser.add_argument(
        "--tiny", action="store_true", help="as little as possible, to try the benchmark itself"
    )


def default_engine(device: str) -> str:
    """What runs ours on a device."""
    return "torch" if device.startswith("cuda") else "onnxruntime"
