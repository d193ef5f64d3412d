"""Kernels are compiled by a process of their own from inside Triton's stub too, where Python is embedded."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from autogaze_backend.serving import TritonInstallation, TritonServer
from serving.serving_helpers import double, free_ports, write_model

pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")
pytest.importorskip("triton", reason="needs triton; pip install --no-deps triton==3.6.0")

pytestmark = pytest.mark.server

_KERNELS = """
import triton
import triton.language as tl


@triton.jit
def fill_kernel(out, VALUE: tl.constexpr):
    tl.store(out + tl.arange(0, 32), VALUE)
"""

# As the engine does, for an H100; only the launcher is left out, which is linked with a GPU's driver.
_MODEL = """
import json
import sys
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from autogaze_backend.torch_engine.compile_worker import TargetDriver
from autogaze_backend.torch_engine.compiling import KernelCompiler

class Every:
    def __contains__(self, launcher):
        return True

class TritonPythonModel:
    def initialize(self, args):
        # A folder that only this process was told of.
        sys.path.append(str(Path(args["model_repository"]).parents[1] / "kernels"))
        import own_kernels

        hits = []
        knobs.compilation.listener = lambda **facts: hits.append(facts["cache_hit"])
        driver.set_active(TargetDriver(GPUTarget("cuda", 90, 32)))
        compiler = KernelCompiler(processes=1)
        compiler._launchers = Every()
        with compiler.plan():
            own_kernels.fill_kernel[(1,)](torch.zeros(32), VALUE=1.0)
        report = compiler.finish()
        told = {"cause": report.cause, "failures": list(report.failures.values()), "hits": hits}
        pb.Logger.log_warn("compiled: " + json.dumps(told))

    def execute(self, requests):
        arrays = [pb.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("OUT", array * np.float32(2))]) for array in arrays]
"""


def test_the_stub_starts_the_process_that_compiles(installation: TritonInstallation, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "own_kernels.py").write_text(textwrap.dedent(_KERNELS))
    config = free_ports(
        write_model(tmp_path / "repository", "echo", _MODEL),
        environment={"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )
    with TritonServer(config, installation=installation) as server:
        server.wait_until_ready()
        line = next(line for line in server.log_lines if "compiled: " in line)
        # The server's log escapes quotation marks.
        told = json.loads(line[line.index("{") : line.rindex("}") + 1].replace('\\"', '"'))
        assert told == {"cause": None, "failures": [], "hits": [True]}
        assert double(server.url, [1.5]) == [3.0]
