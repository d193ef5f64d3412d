"""What every benchmark reports: the machine, the versions, the date and the command, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated runs."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in milliseconds."""
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        """The fastest, in milliseconds."""
        return min(self.samples)


def alternate(
    runs: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 2
) -> dict[str, Timing]:
    """Times several things in turn, so that a noisy machine disturbs them alike.

    Args:
        runs: what to time, by name.
        repeats: samples of each.
        warmup: runs of each before the first sample.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            samples[name].append((time.perf_counter() - started) * 1e3)
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def machine() -> dict[str, Any]:
    """The processor, its cores, memory, and the versions that matter."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in ("autogaze-triton", "numpy", "onnxruntime", "torch", "transformers", "tritonclient"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "command": " ".join(["python", "-m", *sys.orig_argv[2:]] if "-m" in sys.orig_argv else sys.argv),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text; columns are the keys of all rows, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        # A small one keeps three digits: 0.995 is not 1.00.
        return f"{value:.2f}" if value == 0 or abs(value) >= 1 else f"{value:.3g}"
    return str(value)


def write(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a benchmark's rows with the machine they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "machine": machine(), "rows": list(rows)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
