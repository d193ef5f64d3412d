"""The results file: every section's rows, notes and errors, with the machine, the versions and the command."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import ROOT
from benchmarks.report import machine, table

_PACKAGES = ("triton", "accelerate", "safetensors", "nvidia-cublas", "nvidia-cudnn-cu13")


@dataclass
class Section:
    """One section's part of the record.

    Attributes:
        name: of the section.
        rows: measured so far.
        notes: what it says beside them, such as what was left out.
        error: what stopped it; None where nothing did.
        state: "waiting", "running", "done" or "failed".
        budget: seconds that it had.
    """

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    state: str = "waiting"
    budget: float = 0.0
    _started: float = 0.0
    _ended: float | None = None

    def begin(self, budget: float) -> None:
        """Starts its clock."""
        self.budget, self.state, self._started = budget, "running", time.monotonic()

    def elapsed(self) -> float:
        """Seconds so far, or that it took."""
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    def end(self, notes: dict[str, Any]) -> None:
        """It came to its end."""
        self.notes, self.state, self._ended = notes, "done", time.monotonic()

    def fail(self, error: str) -> None:
        """It did not."""
        self.error, self.state, self._ended = error, "failed", time.monotonic()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        part: dict[str, Any] = {"state": self.state, "rows": self.rows}
        if self.state != "waiting":
            part |= {"seconds": round(self.elapsed(), 1), "seconds allowed": round(self.budget, 1)}
        return (
            part
            | ({"notes": self.notes} if self.notes else {})
            | ({"error": self.error} if self.error else {})
        )


class Record:
    """All sections in one file, replaced whole at every write, so that a run that is cut keeps what it has.

    Args:
        path: of the file.
        sections: in the order they run.
        name: of the benchmark.
    """

    def __init__(self, path: Path, sections: list[Section], name: str = "gpu") -> None:
        self.path, self.sections = path, sections
        self._head = {"benchmark": name, "machine": gpu_machine()}
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Writes what there is now."""
        content = {**self._head, "sections": {section.name: section.to_dict() for section in self.sections}}
        staged = self.path.with_suffix(".part")
        staged.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
        os.replace(staged, self.path)

    def tables(self) -> str:
        """All sections as text; an error's last lines in place of what is missing."""
        parts = []
        for section in self.sections:
            parts.append(f"== {section.name}: {section.state} ({section.elapsed():.0f} s)")
            if section.rows:
                parts.append(table(section.rows))
            parts += [f"  {key}: {value}" for key, value in section.notes.items()]
            if section.error:
                parts.append("\n".join(section.error.strip().splitlines()[-6:]))
        return "\n".join([*parts, f"wrote {self.path}"])


def gpu_machine() -> dict[str, Any]:
    """``report.machine`` with the GPU, its driver, our variables, and the commit."""
    facts = machine()
    for package in _PACKAGES:
        try:
            facts["versions"][package] = version(package)
        except PackageNotFoundError:
            continue
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"]
    facts["gpus"] = _lines([*query, "--format=csv,noheader"])
    facts["environment"] = {
        name: os.environ[name] for name in sorted(os.environ) if name.startswith("AUTOGAZE_")
    }
    facts["commit"] = next(iter(_lines(["git", "-C", str(ROOT), "rev-parse", "HEAD"])), None)
    facts["uncommitted"] = bool(_lines(["git", "-C", str(ROOT), "status", "--porcelain"]))
    return facts


def _lines(command: list[str]) -> list[str]:
    """What a program prints; nothing where it is not here or fails."""
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [line.strip() for line in outcome.stdout.splitlines() if line.strip()]
        if outcome.returncode == 0
        else []
    )
