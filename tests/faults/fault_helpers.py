"""What the fault tests share: a server of their own, and clients that ask all the time and keep what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_client import AutoGazeError, GazeClient, StreamExpired, Timeouts
from goldens import clips

KNOBS = {"gazing_ratio": 0.2, "task_loss_requirement": 0.7}
# Far above anything that a loaded machine needs, and below what pytest's user would call hanging.
LONG = 120.0


def clip(frames: int, seed: int = 5, size: tuple[int, int] = (90, 160)) -> np.ndarray:
    return clips.synthetic_clip(frames, *size, seed)


def config(
    bundle: Path,
    repository: Path | None = None,
    *,
    settings: dict[str, Any] | None = None,
    **environment: str,
):
    return TritonServerConfig(
        repository or model_repository_path(),
        0,
        0,
        0,
        environment={"AUTOGAZE_BUNDLE": str(bundle), **environment},
        **(settings or {}),
    )


@contextmanager
def serving(bundle: Path, **environment: str) -> Iterator[TritonServer]:
    with TritonServer(config(bundle, **environment), on_log=lambda line: None) as server:
        server.wait_until_ready(LONG)
        yield server


def eventually(condition: Callable[[], Any], what: str, timeout: float = LONG) -> Any:
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)
    return result


def metric(server: TritonServer, name: str, **labels: str) -> float:
    """The sum of a metric's series that carry the labels."""
    with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
        lines = page.read().decode().splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(f"{name}{{") and all(label in line for label in wanted)
    )


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def signal_stub(server: TritonServer, model: str, number: int) -> int:
    """Sends a signal to one process of a model."""
    pid = min(stub.pid for stub in server.stubs() if Path(stub.model).parents[1].name == model)
    os.kill(pid, number)
    return pid


@dataclass(frozen=True)
class Outcome:
    """One call of a user: when it began and ended, and the error that it got."""

    kind: str
    began: float
    ended: float
    error: AutoGazeError | None
    tokens: np.ndarray | None = None


class Users:
    """Clients that send clips and frames without a pause, and try again after an error, as an application would.

    Args:
        url: of the server.
        clips: users that send clips of ``frames`` frames.
        streams: users that push frames, the same one again and again.
        timeout: of a request; what hits it hung.
    """

    def __init__(
        self, url: str, clips: int = 2, streams: int = 1, frames: int = 4, timeout: float = LONG
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._url, self._frames, self._timeouts = url, frames, Timeouts(request=timeout)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send_clips) for _ in range(clips)]
        self._threads += [threading.Thread(target=self._push_frames) for _ in range(streams)]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LONG + 30)
            assert not thread.is_alive(), "a call hangs"

    def served(self, kind: str, since: float = 0.0) -> int:
        """Calls that succeeded."""
        return sum(
            outcome.error is None and outcome.kind == kind and outcome.began >= since
            for outcome in self.outcomes
        )

    def errors(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    def wait_until_served(self, *kinds: str, since: float = 0.0, times: int = 1) -> None:
        for kind in kinds:
            eventually(
                lambda kind=kind: self.served(kind, since) >= times,
                f"{kind} served; saw {self.errors()[-5:]}",
            )

    def _send_clips(self) -> None:
        frames = clip(self._frames)
        with GazeClient(self._url, timeouts=self._timeouts) as client:
            self._repeat("clip", lambda: client.gaze(frames, **KNOBS).generated.gazing_pos)

    def _push_frames(self) -> None:
        frame = clip(1)[0]
        with GazeClient(self._url, timeouts=self._timeouts) as client:
            stream = client.stream(**KNOBS)
            self._repeat("frame", lambda: stream.push(frame).generated.gazing_pos)
            stream.close()

    def _repeat(self, kind: str, call: Callable[[], np.ndarray]) -> None:
        while not self._stop.is_set():
            began, error, tokens = time.monotonic(), None, None
            try:
                tokens = call()
            except AutoGazeError as caught:
                error = caught
            self.outcomes.append(Outcome(kind, began, time.monotonic(), error, tokens))
            # A stream that is to start anew does so at once; a server that is away is not asked too often.
            if error is not None and not isinstance(error, StreamExpired):
                self._stop.wait(0.1)


def run_in_namespace(mounts: str, script: Path, *arguments: object, timeout: float = 300) -> str:
    """Runs a script of this folder where ``mounts`` (shell) hold for it alone; skips where that is not allowed."""
    unshare = (
        ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    )
    try:
        allowed = subprocess.run([*unshare, "sh", "-c", mounts], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux)")
    if allowed.returncode:
        pytest.skip(f"private mounts are not allowed here: {allowed.stderr.strip()}")
    command = " ".join(["exec", sys.executable, str(script), *map(str, arguments)])
    done = subprocess.run(
        [*unshare, "sh", "-c", f"{mounts} && {command}"],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(code: str, *arguments: object, **settings: Any) -> subprocess.Popen[str]:
    """A process that runs some lines."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **settings)
