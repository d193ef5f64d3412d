"""Compiles all kernels of an engine side by side, before anything is launched.

Triton compiles a kernel at its first launch, one after another: some 50 variants, 20 s. Threads help little, because
much of it holds the interpreter's lock, and more of them than a few hinder each other. So a process that has no GPU
(``compile_worker``) forks for each variant and fills Triton's cache on disk, from which this process then reads.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from triton import knobs
from triton.runtime import driver
from triton.runtime.cache import triton_key

from autogaze_backend.torch_engine.compile_worker import compile_variant

_LOG = logging.getLogger("autogaze")

# Triton has one hook for all threads.
_PLANNING = threading.Lock()

# With more there is nothing to gain: the longest variant alone takes as long as all others on so many cores.
_MOST_PROCESSES = 24

# More threads hinder each other: 16 took half as long again as two.
_THREADS = 4

# All variants of an engine take 20 s on one core.
_TIMEOUT_SECONDS = 300.0

# What the worker imports before it knows of any variant; a kernel elsewhere is imported when it is compiled.
_MODULES = tuple(
    f"autogaze_backend.torch_engine.{name}_kernels"
    for name in ("attention", "encoder", "linear", "open", "preprocessing", "selection")
)


@dataclass(frozen=True)
class Variant:
    """A kernel for one set of argument types and constants.

    Attributes:
        module: where the kernel is.
        name: of the kernel in it.
        data: Triton's own description of the variant (``JITFunction.preload``).
        signature: types of its arguments; variants that share them share what passes arguments.
    """

    module: str
    name: str
    data: str
    signature: str


@dataclass(frozen=True)
class CompileReport:
    """What ``KernelCompiler.finish`` did.

    Attributes:
        variants: everything that was planned, in the order of compilation.
        failures: what the worker could not compile, and why; this process then compiled it.
        cause: why the worker did not run to its end, or None where it did.
        seconds: from the first plan on.
    """

    variants: tuple[Variant, ...]
    failures: dict[Variant, str]
    cause: str | None
    seconds: float


class KernelCompiler:
    """Finds out which kernels calls will launch, and compiles them.

    Whatever launches through Triton can be planned, by making the call itself::

        compiler = KernelCompiler()
        with compiler.plan():
            ops.step(8)
        compiler.finish()

    The worker starts at once, and compiles while the next calls are planned. Where it cannot run, the kernels are
    compiled by threads of this process, and a warning tells why.
    """

    def __init__(self, *, processes: int | None = None) -> None:
        """Starts the worker.

        Args:
            processes: how many variants are compiled at once; None takes the cores that this process may use.
        """
        if processes is None:
            processes = min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)
        self._variants: dict[Variant, None] = {}
        self._launchers: set[tuple[str, str, str]] = set()
        self._with_launcher: set[Variant] = set()
        self._started: float | None = None
        self._cause: str | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._start(processes)

    @contextmanager
    def plan(self) -> Iterator[None]:
        """Inside, kernels that are not compiled are noted instead of launched; those that are compiled run.

        So the calls must be harmless, and what they return means nothing. Other threads are not concerned.
        """
        found: dict[Variant, int] = {}
        thread = threading.get_ident()

        def note(**facts: Any) -> bool | None:
            if threading.get_ident() != thread:
                return before(**facts) if before is not None else None
            described = facts["compile"]
            signature = json.dumps(list(described["signature"].values()), default=str)
            kernel = facts["fn"]
            variant = Variant(kernel.module, kernel.name, described["specialization_data"], signature)
            found[variant] = len(kernel.jit_function.src)
            # Triton then neither compiles nor launches.
            return True

        with _PLANNING:
            before = knobs.runtime.jit_cache_hook
            knobs.runtime.jit_cache_hook = note
            try:
                yield
            finally:
                knobs.runtime.jit_cache_hook = before
        self._started = self._started or time.perf_counter()
        new = [variant for variant in found if variant not in self._variants]
        # The longest sources take longest, and what is begun last should be short.
        new.sort(key=found.__getitem__, reverse=True)
        for variant in new:
            self._variants[variant] = None
            shared = (variant.module, variant.name, variant.signature)
            if shared not in self._launchers:
                self._launchers.add(shared)
                self._with_launcher.add(variant)
        self._send(new)

    def finish(self, device: Any = None) -> CompileReport:
        """Compiles what was planned; afterwards nothing of it is compiled at a launch.

        Args:
            device: the CUDA device of the calls; None is Triton's current one.

        Returns:
            What was done.

        Raises:
            Exception: Triton's own, where a kernel cannot be compiled at all.
        """
        # Reads the whole of Triton once, which its cache asks for.
        triton_key()
        failures = self._wait()
        variants = tuple(self._variants)
        if self._cause is not None and variants:
            _LOG.warning(
                "threads of this process compile the kernels, which takes longer, because the process for that did "
                "not: %s",
                self._cause,
            )
        for variant, error in failures.items():
            _LOG.warning("%s is compiled here, because a process of its own failed: %s", variant.name, error)
        self._load(variants, device)
        seconds = 0.0 if self._started is None else time.perf_counter() - self._started
        _LOG.info("%d kernel variants are ready after %.1f s", len(variants), seconds)
        return CompileReport(variants, failures, self._cause, seconds)

    def close(self) -> None:
        """Ends the worker, whatever it is doing. Idempotent."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        with suppress(OSError):
            worker.kill()
        if worker.stdin is not None:
            # What was not written any more is not flushed either.
            with suppress(OSError, ValueError):
                worker.stdin.close()
        worker.wait()
        self._out.close()
        self._errors.close()

    def __del__(self) -> None:
        # Where the engine could not be made.
        self.close()

    def _start(self, processes: int) -> None:
        interpreter = worker_interpreter()
        if interpreter is None:
            self._cause = f"{sys.executable!r} is no Python interpreter, and {sys.prefix} has none"
            return
        # The modules of this process, whichever way it found them, and none of the working directory.
        modules = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "PYTHONPATH": modules, "PYTHONSAFEPATH": "1"}
        # A process that forks should have one thread; numpy would start one a core.
        environment.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        try:
            # Files, not pipes: the worker never waits for this process to read.
            self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
            self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
            self._worker = subprocess.Popen(
                [interpreter, "-m", "autogaze_backend.torch_engine.compile_worker"],
                stdin=subprocess.PIPE,
                stdout=self._out,
                stderr=self._errors,
                env=environment,
            )
        except OSError as error:
            self._cause = str(error)
            return
        self._write({"processes": processes, "modules": _MODULES})

    def _send(self, variants: Sequence[Variant]) -> None:
        if not variants or self._worker is None:
            return
        target = driver.active.get_current_target()
        if target.backend != "cuda":
            self._cause = f"it compiles for NVIDIA GPUs, and the target is {target.backend!r}"
            self.close()
            return
        for variant in variants:
            self._write(
                {
                    "module": variant.module,
                    "name": variant.name,
                    "data": variant.data,
                    "launcher": variant in self._with_launcher,
                    "target": [target.backend, target.arch, target.warp_size],
                }
            )

    def _write(self, line: Any) -> None:
        if self._worker is None or self._cause is not None:
            return
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(json.dumps(line).encode() + b"\n")
            self._worker.stdin.flush()
        except OSError as error:
            # ``_wait`` reads what the worker said as it ended.
            self._cause = str(error)

    def _wait(self) -> dict[Variant, str]:
        worker = self._worker
        if worker is None:
            return {}
        if not self._variants:
            self.close()
            return {}
        assert worker.stdin is not None
        try:
            with suppress(OSError):
                worker.stdin.close()
            status = worker.wait(_TIMEOUT_SECONDS)
            if status:
                self._cause = f"it ended with status {status}: {_last_line(self._errors)}"
        except subprocess.TimeoutExpired:
            self._cause = f"it was not done after {_TIMEOUT_SECONDS:.0f} s"
        self._out.seek(0)
        told: list[dict[str, Any]] = []
        # A line that was cut, as on a full disk, is one that was not told.
        with suppress(ValueError):
            told += map(json.loads, self._out.read().splitlines())
        self.close()
        order = tuple(self._variants)
        failures = {order[line["index"]]: line["error"] for line in told if line["error"] is not None}
        if self._cause is None and len(told) != len(order):
            self._cause = f"it told of {len(told)} of {len(order)} kernels"
        return failures

    def _load(self, variants: Sequence[Variant], device: Any) -> None:
        """Reads the variants from Triton's cache, and compiles what is not there."""

        def load(variant: Variant) -> None:
            # The current device is a thread's own.
            with _current(device):
                compile_variant(variant.module, variant.name, variant.data, variant in self._with_launcher)

        with ThreadPoolExecutor(_THREADS) as pool:
            for done in [pool.submit(load, variant) for variant in variants]:
                done.result()


def worker_interpreter() -> str | None:
    """A Python that imports what this process does, or None.

    In Triton's stub of the python backend and in other programs that embed Python, ``sys.executable`` may be the
    program, which must not be started a second time.
    """
    for candidate in (sys.executable, str(Path(sys.prefix) / "bin" / "python3")):
        if (
            candidate
            and re.fullmatch(r"python(\d(\.\d+)?)?", Path(candidate).name)
            and os.access(candidate, os.X_OK)
        ):
            return candidate
    return None


@contextmanager
def _current(device: Any) -> Iterator[None]:
    if device is None or device.type != "cuda":
        yield
        return
    import torch

    with torch.cuda.device(device):
        yield


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
