"""The sections and the process that each runs in: one that fails, hangs or crashes does not stop the others."""

from __future__ import annotations

import importlib
import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection

from benchmarks.gpu.context import Context, Settings
from benchmarks.gpu.record import Record, Section

# The most important first; seconds of a run of eight minutes.
SECTIONS = {
    "parity": 110,
    "latency": 60,
    "throughput": 100,
    "agreement": 55,
    "profile": 35,
    "memory": 40,
    "cold_start": 45,
    "streams": 45,
}
MODULES = {"profile": "profiling"}
# What a section may run over its time before it is ended.
GRACE = 20.0


def measure(sender: Connection, name: str, settings: Settings, seconds: float) -> None:
    """One section, in its own process: sends ("row", …) as they come, then ("end", notes) or ("error", text)."""
    context = Context(settings, seconds)
    try:
        module = importlib.import_module(f"benchmarks.gpu.{MODULES.get(name, name)}")
        for row in module.run(context):
            sender.send(("row", row))
        sender.send(("end", context.notes))
    except BaseException:
        sender.send(("error", traceback.format_exc()))


def run_section(section: Section, settings: Settings, seconds: float, record: Record) -> None:
    """Runs it and records what comes; ends it when its time and the grace are over."""
    spawn = get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=measure, args=(sender, section.name, settings, seconds))
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
