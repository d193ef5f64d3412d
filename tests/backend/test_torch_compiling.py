"""The kernels of the torch engine are compiled side by side, for a GPU that is not there.

Each test is a process of its own: Triton reads its settings as it is imported, and here the interpreter is off.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.torch_kernel_names import DECODER, ENCODER

pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")
triton = pytest.importorskip("triton", reason="needs triton; pip install --no-deps triton==3.6.0")

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="Triton compiles its launchers with gcc")

# A driver that compiles for an H100 and keeps a list of what would have run there.
PRELUDE = """
import json, logging, os, sys, threading
from pathlib import Path
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime import driver
import triton.runtime.build
from autogaze_backend.torch_engine import compiling
from autogaze_backend.torch_engine.compile_worker import TargetDriver
from autogaze_backend.torch_engine.compiling import KernelCompiler

launched, built, hits, messages = [], [], [], []


class Launcher(CudaLauncher):
    def __init__(self, src, metadata):
        super().__init__(src, metadata)
        self.name = src.fn.__name__

    def __call__(self, *arguments):
        launched.append(self.name)


class Device(TargetDriver):
    class utils:
        load_binary = staticmethod(lambda *_: (0, 0, 0, 0, 1024))
        get_device_properties = staticmethod(lambda _: {"max_shared_mem": 227 * 1024})

    def __init__(self):
        super().__init__(GPUTarget("cuda", 90, 32))
        self.launcher_cls = Launcher


class Messages(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())


driver.set_active(Device())
logging.getLogger("autogaze").addHandler(Messages())
knobs.compilation.listener = lambda **facts: hits.append((facts["src"].name, facts["cache_hit"]))
build = triton.runtime.build._build
triton.runtime.build._build = lambda name, *rest: built.append(name) or build(name, *rest)


def cubins():
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    return {str(path.relative_to(folder)): path.read_bytes().hex() for path in folder.glob("*/*.cubin")}


def tell(**facts):
    print(json.dumps({"launched": launched, "built": built, "hits": hits, "messages": messages, **facts}))
"""

# Kernels that live outside the package, as those of another program would.
KERNELS = """
import os, signal, sys
import triton
import triton.language as tl

if os.environ.get("KILL_WORKER") and "compile_worker" in sys.argv[0]:
    os.kill(os.getpid(), signal.SIGKILL)


@triton.jit
def fill_kernel(out, VALUE: tl.constexpr):
    tl.store(out + tl.arange(0, 32), VALUE)


@triton.jit
def copy_kernel(source, out, count):
    at = tl.arange(0, 32)
    tl.store(out + at, tl.load(source + at, mask=at < count))


@triton.jit
def broken_kernel(out):
    tl.static_assert(False, "it cannot be compiled")
"""


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Triton's launchers are linked with; no GPU's driver need be installed."""
    backend = Path(triton.__file__).parent / "backends" / "nvidia"
    source = (backend / "driver.py").read_text() + (backend / "driver.c").read_text()
    names = sorted(
        {word for word in source.replace("(", " ").split() if word.startswith("cu") and word.isalnum()}
    )
    names += ["cuOccupancyMaxActiveClusters"]
    folder = tmp_path_factory.mktemp("libcuda")
    names = [name for name in dict.fromkeys(names) if name[2:3].isupper()]
    (folder / "stub.c").write_text("\n".join(f"int {name}(void) {{ return 0; }}" for name in names))
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "stub.c"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def run(libcuda: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs code after the prelude; what its last line tells."""
    (tmp_path / "own_kernels.py").write_text(KERNELS)

    def start(code: str, *arguments: object, cache: str = "cache", **variables: str) -> subprocess.Popen[str]:
        folders = [str(tmp_path), str(Path(__file__).resolve().parents[1])]
        environment = {
            **os.environ,
            "TRITON_CACHE_DIR": str(tmp_path / cache),
            "TRITON_LIBCUDA_PATH": str(libcuda),
            "LD_LIBRARY_PATH": str(libcuda),
            "PYTHONPATH": os.pathsep.join(folders),
            **variables,
        }
        environment.pop("TRITON_INTERPRET", None)
        command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(process: subprocess.Popen[str]) -> Any:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        return json.loads(out.splitlines()[-1])

    def run(code: str, *arguments: object, **settings: Any) -> Any:
        return finish(start(code, *arguments, **settings))

    run.start, run.finish = start, finish
    return run


ENGINE = """
    import numpy as np
    from autogaze_backend.adaptation import TargetScales
    from autogaze_backend.bundle import Bundle
    from autogaze_backend.tiling import TileLayout
    from autogaze_backend.torch_engine import preprocessing_kernels
    from autogaze_backend.torch_engine.engine import TorchEngine
    from autogaze_backend.torch_engine.opening import TorchSettings
    from autogaze_client.modes import AutoGazeInferenceMode

    torch.set_num_threads(1)
    compiler = KernelCompiler()
    settings = TorchSettings(slots=5, rows=5, cache_gib=0.1, max_positions=4096)
    engine = TorchEngine(Bundle.load(sys.argv[1]), device="cpu", settings=settings, kernels=True)
    # As on an H100.
    engine._calls._ops._chained = True
    engine.preprocessing._ops = preprocessing_kernels
    engine._frames._make_buffers()
    hits.clear()
    finish = compiler.finish
    reports = []
    compiler.finish = lambda device: reports.append(finish(device))
    engine._compile(compiler)
    report, = reports
    before = len(launched), len(hits)
    built.clear()
    # From here on a kernel that is not compiled yet is noted, and so is a launcher that must be built.
    missing = []
    knobs.runtime.jit_cache_hook = lambda **facts: missing.append(facts["fn"].name) or True
    engine._calls.run()
    engine._frames.run()
    pre, side = engine.preprocessing, engine.spec.input_size
    for height, width in ((side, side), (side + 90, side), (side, side + 33), (137, 302), (480, 640)):
        for channels in (3, 4):
            frames = np.zeros((2, height, width, channels), np.uint8)
            pre.clip(frames)
            pre.tiles(frames, TileLayout(AutoGazeInferenceMode.TILED_RESIZE_TO_GRID, height, width, side))
            pre.tiles(frames, TileLayout(AutoGazeInferenceMode.TILED_FULL_RESOLUTION, height, width, side))
            pre.target_tiles(frames, TargetScales((56, 112, 196, 392), 14, 2, 196))
    tell(
        missing=missing,
        before=before,
        kernels=[[variant.name, variant.signature] for variant in report.variants],
        failures=list(report.failures.values()),
        cause=report.cause,
    )
"""


def test_no_call_of_an_engine_finds_a_kernel_that_is_not_compiled(run, bundle):
    """Not the decoder, not the encoder, not the preprocessing; nor is a launcher left to build."""
    found = run(ENGINE, bundle())
    assert found["cause"] is None
    assert found["failures"] == []
    names = {name for name, _ in found["kernels"]}
    assert names >= DECODER | ENCODER | {"cut_kernel", "resize_pass_kernel"}
    # Planning launched nothing, and all that the worker made is what this process looked for.
    assert found["before"] == [0, len(found["kernels"])]
    assert {name for name, hit in found["hits"] if hit} == names
    assert all(hit for _, hit in found["hits"])
    assert found["missing"] == []
    assert found["built"] == []
    assert set(found["launched"]) == names


# Plans two kernels outside the package; compiles one that was not planned in a thread meanwhile.
OWN = """
    import own_kernels

    values = torch.zeros(32)
    compiler = KernelCompiler(processes=2)

    def fill(value):
        own_kernels.fill_kernel[(1,)](values, VALUE=value)

    with compiler.plan():
        fill(1.0)
        fill(2.0)
        own_kernels.copy_kernel[(1,)](values, values, 3)
        planned = len(launched)
        other = threading.Thread(target=fill, args=(3.0,))
        other.start()
        other.join()
    others = launched[planned:]
    hits.clear()
    report = compiler.finish()
    tell(
        planned=planned,
        others=others,
        names=[variant.name for variant in report.variants],
        failures=list(report.failures.values()),
        cause=report.cause,
        cubins=cubins(),
    )
"""


def test_other_threads_launch_while_calls_are_planned(run):
    found = run(OWN)
    assert found["planned"] == 0
    assert found["others"] == ["fill_kernel"]
    assert sorted(found["names"]) == ["copy_kernel", "fill_kernel", "fill_kernel"]
    assert found["cause"] is None
    assert found["failures"] == []
    assert [hit for _, hit in found["hits"]] == [True, True, True]


def test_a_process_that_dies_is_told_and_its_kernels_are_compiled_all_the_same(run):
    """The same machine code, and what killed the process."""
    expected = run(OWN)
    found = run(OWN, cache="other", KILL_WORKER="1")
    assert found["failures"] == ["the process that compiled it was ended by signal 9"] * 3
    assert found["cause"] is None
    assert [hit for _, hit in found["hits"]] == [False, False, False]
    assert len([text for text in found["messages"] if "ended by signal 9" in text]) == 3
    assert len(expected["cubins"]) == 4
    assert found["cubins"] == expected["cubins"]


@pytest.mark.parametrize(
    ("before", "cause"),
    [
        ("sys.executable, sys.prefix = '/opt/tritonserver/stub', '/nowhere'", "is no Python interpreter"),
        ("compiling._MODULES = ('autogaze_backend.absent',)", "No module named 'autogaze_backend.absent'"),
        ("compiling.worker_interpreter = lambda: '/nowhere/python3'", "No such file or directory"),
        ("compiling._TIMEOUT_SECONDS = 0.0", "was not done after 0 s"),
    ],
    ids=["embedded", "broken", "absent", "hangs"],
)
def test_without_the_worker_threads_compile_and_a_warning_tells_why(run, before, cause):
    found = run(textwrap.dedent(before) + "\n" + textwrap.dedent(OWN))
    assert cause in found["cause"]
    warnings = [text for text in found["messages"] if text.startswith("threads of this process")]
    assert len(warnings) == 1
    assert cause in warnings[0]
    assert sorted(found["names"]) == ["copy_kernel", "fill_kernel", "fill_kernel"]
    assert sorted(name for name, _ in found["hits"]) == ["copy_kernel", "fill_kernel", "fill_kernel"]


def test_a_kernel_that_cannot_be_compiled_is_tritons_own_error(run):
    code = """
        import own_kernels

        hook = knobs.runtime.jit_cache_hook = lambda **facts: None
        compiler = KernelCompiler(processes=1)
        try:
            with compiler.plan():
                raise ValueError
        except ValueError:
            pass
        restored = knobs.runtime.jit_cache_hook is hook
        with compiler.plan():
            own_kernels.broken_kernel[(1,)](torch.zeros(32))
        try:
            compiler.finish()
        except Exception as error:
            tell(kind=type(error).__name__, error=str(error), restored=restored)
    """
    found = run(code)
    assert "it cannot be compiled" in found["error"]
    assert found["kind"] == "CompileTimeAssertionFailure"
    # A plan that fails leaves Triton's hook as it was.
    assert found["restored"]
    told = [text for text in found["messages"] if text.startswith("broken_kernel is compiled here")]
    assert len(told) == 1
    assert "it cannot be compiled" in told[0]


def test_engines_that_start_together_compile_each_kernel_once(run, tmp_path):
    """As the models of a server do, which share Triton's cache."""
    real = triton.knobs.nvidia.ptxas.path
    assembler = tmp_path / "ptxas"
    log = tmp_path / "assembled"
    # Slow, so that the other engine always comes while a kernel is being compiled.
    assembler.write_text(
        f'#!/bin/sh\ncase "$*" in *gpu-name*) echo once >> {log}; sleep 2;; esac\nexec {real} "$@"\n'
    )
    assembler.chmod(0o755)
    code = """
        import own_kernels, time

        compiler = KernelCompiler(processes=2)
        with compiler.plan():
            own_kernels.fill_kernel[(1,)](torch.zeros(32), VALUE=1.0)
            own_kernels.fill_kernel[(1,)](torch.zeros(32), VALUE=2.0)
        report = compiler.finish()
        tell(cause=report.cause)
    """
    processes = [run.start(code, TRITON_PTXAS_PATH=str(assembler)) for _ in range(2)]
    for found in map(run.finish, processes):
        assert found["cause"] is None
        assert [hit for _, hit in found["hits"]] == [True, True]
    assert log.read_text().splitlines() == ["once"] * 2
