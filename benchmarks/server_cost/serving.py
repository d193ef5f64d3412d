"""The shipped repository on the real server, its models run by the null engine, and what its processes use."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_export import build

from benchmarks.gpu_server.serving import cpu_seconds, places

ROOT = Path(__file__).resolve().parents[2]
_OPEN_CHECKPOINT = ROOT / "checkpoints" / "open"

_WRAPPER = '''"""The shipped model, with the null engine known."""

import sys

sys.path.insert(0, {root!r})
from benchmarks.server_cost import null_engine

null_engine.register()
exec(compile(open({shipped!r}, encoding="utf-8").read(), {shipped!r}, "exec"))
{profile}
'''

_PROFILE = """
import cProfile, os, pstats

_served = TritonPythonModel


class TritonPythonModel(_served):
    _profile, _calls = cProfile.Profile(), 0

    def execute(self, requests):
        try:
            return self._profile.runcall(super().execute, requests)
        finally:
            # Not at the end: a server that stops with open streams ends its stubs by force.
            self._calls += 1
            if self._calls % 200 == 0:
                with open({path!r} + f".{{os.getpid()}}", "w") as file:
                    pstats.Stats(self._profile, stream=file).sort_stats("tottime").print_stats(45)
"""


@dataclass(frozen=True)
class Running:
    """A server.

    Attributes:
        url: for gRPC.
        name: its id, which its stubs' command lines hold.
    """

    url: str
    name: str

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far of the server and of each model's processes together."""
        return cpu_seconds(self.name)


@contextmanager
def serving(folder: Path, environment: Mapping[str, str], profile: Path | None = None) -> Iterator[Running]:
    """Serves with the null engine.

    Args:
        folder: scratch.
        environment: variables of the server.
        profile: where each stub writes a profile of its ``execute``, its process's number at the end; None profiles
            nothing.
    """
    bundle = folder / "bundle"
    if not bundle.exists():
        build(_OPEN_CHECKPOINT, bundle)
    repository = folder / "models"
    if not repository.exists():
        shutil.copytree(model_repository_path(), repository, ignore=shutil.ignore_patterns("__pycache__"))
        for model in repository.glob("*/1/model.py"):
            shipped = model.rename(model.with_name("shipped.py"))
            text = "" if profile is None else _PROFILE.format(path=f"{profile}.{model.parents[1].name}")
            model.write_text(_WRAPPER.format(root=str(ROOT), shipped=str(shipped), profile=text))
        from benchmarks.gpu_server.perf_analyzer import add_ensemble

        add_ensemble(repository)
    settings = {
        "AUTOGAZE_BUNDLE": str(bundle),
        "AUTOGAZE_ENGINE": "null",
        **places(256, 64, environment),
        **environment,
    }
    config = TritonServerConfig(repository, 0, 0, 0, environment=settings)
    with TritonServer(config, on_log=_show) as server:
        server.wait_until_ready(120)
        time.sleep(1.0)
        yield Running(server.url, server.name)


def _show(line: str) -> None:
    if os.environ.get("AUTOGAZE_SHOW_LOG") or "Traceback" in line or line.startswith(("ERROR", "WARNING")):
        print(line, flush=True)
