"""A process that fills Triton's cache on disk: ``python -m autogaze_backend.torch_engine.compile_worker``.

It never touches a GPU, so it may fork: it imports Triton and the kernels once, then forks for each variant. Input is
a line of JSON about the target, then a line a variant (``compiling.Variant``); output is a line of JSON for each that
is done. Both are private to ``compiling``, which starts it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

# A message longer than this is cut; it only tells an operator what failed.
_LONGEST = 2000


class TargetDriver:
    """What Triton asks a driver while it compiles; the device itself is not there."""

    def __init__(self, target: Any) -> None:
        from triton.backends.nvidia.driver import CudaLauncher

        self._target = target
        self.launcher_cls = CudaLauncher

    def get_current_target(self) -> Any:
        """What is compiled for."""
        return self._target

    def get_current_device(self) -> int:
        """The only device."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """The default stream; nothing is launched."""
        return 0


def compile_variant(module: str, name: str, data: str, launcher: bool) -> Any:
    """Compiles a kernel for the active driver's target, or reads it from Triton's cache on disk.

    Args:
        module: where the kernel is.
        name: of the kernel in it.
        data: Triton's own description of the variant (``JITFunction.preload``).
        launcher: also build the C function that passes its arguments; kernels of one signature share one.

    Returns:
        The compiled kernel.
    """
    from triton.runtime import driver

    kernel: Any = import_module(module)
    for part in name.split("."):
        kernel = getattr(kernel, part)
    compiled = kernel.preload(data)
    if launcher:
        driver.active.launcher_cls(compiled.src, compiled.metadata)
    return compiled


@contextlib.contextmanager
def _alone(data: str) -> Iterator[None]:
    """Others that compile the same variant into the same cache wait, and then find it there.

    Servers start several engines at once. Where the file system has no locks, each compiles for itself.
    """
    from triton import knobs

    with contextlib.ExitStack() as stack:
        try:
            folder = Path(knobs.cache.dir)
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / "autogaze-compiling.lock", "ab"))
            place = int.from_bytes(hashlib.sha256(data.encode()).digest()[:4], "big")
            # Released as the process ends.
            fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
        except OSError:
            pass
        yield


def _work(task: dict[str, Any]) -> str | None:
    """Compiles a task's variant; the error's text, or None."""
    try:
        with _alone(task["data"]):
            compile_variant(task["module"], task["name"], task["data"], task["launcher"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:_LONGEST]
    return None


class _Children:
    """The forked processes, one a task."""

    def __init__(self, most: int, out: int) -> None:
        self._most, self._out = most, out
        self._running: dict[int, int] = {}

    def start(self, index: int, task: dict[str, Any]) -> None:
        """Forks for a task, as soon as there is room."""
        while len(self._running) >= self._most:
            self.wait()
        child = os.fork()
        if child:
            self._running[child] = index
            return
        try:
            self._tell(index, _work(task))
            os._exit(0)
        finally:
            os._exit(1)

    def wait(self) -> None:
        """Waits for one of them."""
        child, status = os.wait()
        index = self._running.pop(child, None)
        code = os.waitstatus_to_exitcode(status)
        if index is not None and code:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
            self._tell(index, f"the process that compiled it {how}")

    def finish(self) -> None:
        """Waits for all of them."""
        while self._running:
            self.wait()

    def _tell(self, index: int, error: str | None) -> None:
        # One write: lines of processes that share the file do not mix.
        os.write(self._out, (json.dumps({"index": index, "error": error}) + "\n").encode())


def _prepare(modules: list[str]) -> Any:
    """Does once what every fork would do, while the engine still makes its buffers; the target's class."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaUtils
    from triton.runtime.cache import triton_key

    # Compiles a C module that the engine's process needs too. Without it, each kernel's error tells more.
    with contextlib.suppress(Exception):
        CudaUtils()
    for module in modules:
        import_module(module)
    # Reads the whole of Triton, which its cache asks for.
    triton_key()
    return GPUTarget


def main() -> None:
    """Compiles what standard input names, until it ends."""
    # Ctrl-C in a terminal reaches this process too; it ends with its input, when the engine's process does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Triton prints what a failing tool said to standard output, which here is for results.
    out = os.dup(1)
    os.dup2(2, 1)
    lines = iter(sys.stdin.readline, "")
    start = json.loads(next(lines))
    target_class = _prepare(start["modules"])
    children: _Children | None = None
    for index, line in enumerate(lines):
        task = json.loads(line)
        if children is None:
            from triton.runtime import driver

            driver.set_active(TargetDriver(target_class(*task["target"])))
            children = _Children(start["processes"], out)
        children.start(index, task)
    if children is not None:
        children.finish()


if __name__ == "__main__":
    main()
