"""Watches the processes of a server and this one: memory, file handles, shared memory. Reads Linux's /proc."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """One look.

    Attributes:
        at: seconds, of the monotonic clock.
        server_mib: private memory of the server and its stubs: shared libraries and regions are left out.
        client_mib: of this process.
        shm_mib: what the two hold in /dev/shm.
        server_handles: open files of the server and its stubs.
        client_handles: of this process.
    """

    at: float
    server_mib: float
    client_mib: float
    shm_mib: float
    server_handles: int
    client_handles: int


class Watch:
    """Looks every few seconds, from a thread, while it is entered.

    Args:
        server: the server's id, which its processes bear among their arguments.
        every: seconds between two looks.
    """

    def __init__(self, server: str, every: float) -> None:
        self._server, self._every = server, every
        self.samples: list[Sample] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="soak-watch", daemon=True)

    def __enter__(self) -> Watch:
        """Starts looking."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops looking."""
        self._over.set()
        self._thread.join()

    def look(self) -> Sample:
        """One look, now."""
        server = self._processes()
        return Sample(
            at=time.monotonic(),
            server_mib=sum(_private_mib(pid) for pid in server),
            client_mib=_private_mib(os.getpid()),
            shm_mib=_shared_mib((self._server, f"autogaze-client-{os.getpid()}-")),
            server_handles=sum(_handles(pid) for pid in server),
            client_handles=_handles(os.getpid()),
        )

    def _look(self) -> None:
        while not self._over.wait(self._every):
            self.samples.append(self.look())

    def _processes(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if self._server.encode() in command:
                found.append(int(folder.name))
        return found


def _shared_mib(prefixes: tuple[str, ...]) -> float:
    """Pages of the regions whose names begin so; the machine's other servers have others."""
    total = 0
    for region in os.scandir("/dev/shm"):
        if region.name.startswith(prefixes):
            try:
                total += region.stat().st_blocks * 512
            except OSError:
                continue  # it has just gone
    return total / _MIB


def _private_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0  # it has just ended
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _handles(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
