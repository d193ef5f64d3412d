"""Runs one program and makes sure that nothing of it outlives the process that asked for it.

A program of its own, run as ``python -I -S _guard.py PARENT GRACE SHM_PREFIX COMMAND...`` with a pipe on
its standard input. It ends the command when the pipe closes, when PARENT is no longer its parent (killed,
say), or on SIGTERM: first politely, after GRACE seconds or on a second SIGTERM by force. As the reaper of its
descendants it also ends those that the command left behind: Triton's python stubs survive a killed server.
Last it removes the shared memory regions that a killed server could not. It exits as the command did.

It is a separate, single-threaded process because a "die with the parent" signal can be set safely neither
from a process with threads nor for a grandchild.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.1
_ORPHAN_GRACE_SECONDS = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


class _Guard:
    def __init__(self, parent: int, grace: float, shm_prefix: str) -> None:
        self._parent = parent
        self._grace = grace
        self._shm_prefix = shm_prefix
        self._signals = 0

    def run(self, command: list[str]) -> int:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._count)
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_guard)
        except OSError as error:
            os.write(2, f"error: cannot run {command[0]}: {error}\n".encode())
            return 127
        while child.poll() is None and not self._is_over():
            pass
        if child.poll() is None:
            self._end(child)
        _end_descendants()
        self._remove_shared_memory()
        code = child.returncode
        return code if code >= 0 else 128 - code

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _is_over(self) -> bool:
        # Nobody writes to the pipe: it turns readable when the parent closes it or ends.
        closed, _, _ = select.select([0], [], [], _POLL_SECONDS)
        return bool(closed or self._signals or os.getppid() != self._parent)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        orphaned = os.getppid() != self._parent
        deadline = time.monotonic() + (min(self._grace, _ORPHAN_GRACE_SECONDS) if orphaned else self._grace)
        before = self._signals
        child.send_signal(signal.SIGTERM)
        while child.poll() is None and time.monotonic() < deadline and self._signals <= max(before, 1):
            time.sleep(_POLL_SECONDS / 2)
        if child.poll() is None:
            child.kill()
            child.wait()

    def _remove_shared_memory(self) -> None:
        for region in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)


def _die_with_guard() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end_descendants() -> None:
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)  # a child that is not reaped yet keeps its number
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    me = str(os.getpid())
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except OSError:
            continue
        # The name in brackets may hold anything; the fields after it are state and parent.
        if text.rpartition(")")[2].split()[1] == me:
            found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    guard = _Guard(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
    sys.exit(guard.run(sys.argv[4:]))
