"""``make bench``: every benchmark of this machine, as tables, and as JSON in ``build/bench``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import generate, memory, preprocess, readout, streams, transport, visualization
from benchmarks.report import table, write

BENCHMARKS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "generate": generate.run,
    "streams": streams.run,
    "memory": memory.run,
    "transport": transport.run,
    "preprocess": preprocess.run,
    "readout": readout.run,
    "visualization": visualization.run,
}


def main() -> None:
    """Runs them in order."""
    for name, run in BENCHMARKS.items():
        rows = run()
        path = Path("build") / "bench" / f"{name}.json"
        write(path, name, rows)
        print(f"{name}\n{table(rows)}\nwrote {path}\n")


if __name__ == "__main__":
    main()
