"""Starts the real server for a section, with everything that the section has to know about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path

from benchmarks.gpu.context import Context, Settings
from benchmarks.gpu_server.perf_analyzer import add_ensemble

_TICK = os.sysconf("SC_CLK_TCK")
_MODELS = ("autogaze_generate", "autogaze_stream", "autogaze_ingest")


@dataclass(frozen=True)
class ServerSettings(Settings):
    """What a run with a server was asked for.

    Attributes:
        environment: variables of the server, on top of ours.
        concurrencies: requests in flight, for saturation.
        cameras: streams at once.
        camera_seconds: that count, after the warm-up.
        processes: of the load generators.
        perf_analyzer: the program; None leaves it out.
        perf_libraries: a folder for its LD_LIBRARY_PATH.
    """

    environment: Mapping[str, str]
    concurrencies: tuple[int, ...]
    cameras: tuple[int, ...]
    camera_seconds: float
    processes: int
    perf_analyzer: str | None
    perf_libraries: str | None


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        url: for gRPC.
        ready: seconds from its start until every model answered.
        lines: its log so far.
        name: its id, which its stubs' command lines hold.
    """

    url: str
    ready: float
    lines: list[str]
    name: str

    def engines(self) -> list[str]:
        """What its models say of the engines that they opened."""
        return sorted(
            {line.split("engine ", 1)[1] for line in self.lines if " on " in line and "engine " in line}
        )


def server_settings(context: Context) -> ServerSettings:
    """The settings of a section of this benchmark."""
    if not isinstance(context.settings, ServerSettings):
        raise TypeError("sections of benchmarks.gpu_server need ServerSettings")
    return context.settings


def places(streams: int, clips: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for at least so many streams and clips at once, which the instances can share out evenly."""

    def shared(number: int, instances: str) -> str:
        count = int(environment.get(instances) or os.environ.get(instances) or 1)
        return str(-(-number // count) * count)

    return {
        "AUTOGAZE_MAX_STREAMS": shared(streams, "AUTOGAZE_STREAM_INSTANCES"),
        "AUTOGAZE_MAX_ACTIVE_CLIPS": shared(clips, "AUTOGAZE_CLIP_INSTANCES"),
    }


@contextmanager
def serving(context: Context, precision: str) -> Iterator[Served]:
    """The shipped repository, perf_analyzer's ensemble added, with the seeded bundle of a precision, on free ports."""
    settings = server_settings(context)
    streams = max(settings.cameras)
    environment = {
        "AUTOGAZE_BUNDLE": str(context.bundle(precision)),
        "AUTOGAZE_DEVICE": settings.device,
        **places(max(64, streams), max(settings.concurrencies), settings.environment),
        **settings.environment,
    }
    repository = settings.folder / "model_repository"
    if not repository.exists():
        shutil.copytree(model_repository_path(), repository)
        add_ensemble(repository)
    lines: list[str] = []
    started = time.perf_counter()
    config = TritonServerConfig(repository, 0, 0, 0, environment=environment)
    with TritonServer(config, on_log=lines.append) as server:
        server.wait_until_ready(max(context.left(), 60))
        yield Served(server.url, time.perf_counter() - started, lines, server.name)


def cpu_seconds(name: str) -> dict[str, float]:
    """CPU time so far of a server and of each model's processes together, by ``TritonServer.name``."""
    found: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if name not in command or "_guard.py" in command:
            continue
        process = process_name(int(folder.name))
        found[process] = found.get(process, 0.0) + (int(fields[11]) + int(fields[12])) / _TICK
    return found


def cores(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Cores that each process kept busy between two calls of ``cpu_seconds``."""
    return {
        f"{name}, cores": round((after[name] - before.get(name, 0.0)) / seconds, 2) for name in sorted(after)
    }


def gpu_memory() -> dict[str, float]:
    """MiB of GPU memory of each model's process and of all together, by the driver; empty without a GPU."""
    found: dict[str, float] = {}
    for line in _nvidia_smi("--query-compute-apps=pid,used_memory"):
        pid, _, used = line.partition(",")
        try:
            name, mib = process_name(int(pid)), float(used)
        except ValueError:  # "[N/A]" inside some containers and virtual machines
            continue
        found[name] = found.get(name, 0.0) + mib
    for line in _nvidia_smi("--query-gpu=memory.used")[:1]:
        found["the GPU in all"] = float(line)
    return found


def _nvidia_smi(query: str) -> list[str]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in outcome.stdout.splitlines() if line.strip()] if outcome.returncode == 0 else []


def process_name(pid: int) -> str:
    """The model that a python stub runs, else the program."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return f"process {pid}"
    for model in _MODELS:
        if any(f"/{model}/" in part for part in command):
            return model
    return Path(command[0]).name or f"process {pid}"
