from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from autogaze_backend.serving import TritonInstallation, TritonServer, ensure_installation
from serving.serving_helpers import free_ports, write_model

# Doubles its input; says where its packages come from and what its environment names.
_ECHO = """
import os
import sys

import numpy as np
import triton_python_backend_utils as pb

import autogaze_backend

class TritonPythonModel:
    def initialize(self, args):
        pb.Logger.log_info(f"echo: prefix={sys.prefix} backend={autogaze_backend.__file__}")
        pb.Logger.log_warn(f"echo: bundle={os.environ.get('AUTOGAZE_BUNDLE')}")

    def execute(self, requests):
        arrays = [pb.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("OUT", array * np.float32(2))]) for array in arrays]
"""

_BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("the bundle is for compute capability 8.9, this GPU has 9.0")
"""


@pytest.fixture(scope="session")
def installation() -> TritonInstallation:
    """The embedded server, fetched once a machine."""
    return ensure_installation()


@pytest.fixture(scope="session")
def echo_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("repository"), "echo", _ECHO)


@pytest.fixture
def broken_repository(tmp_path: Path) -> Path:
    return write_model(tmp_path, "broken", _BROKEN)


@pytest.fixture(scope="session")
def echo_server(installation: TritonInstallation, echo_repository: Path) -> Iterator[TritonServer]:
    """One server for every test that only asks it something."""
    with TritonServer(free_ports(echo_repository), installation=installation) as server:
        server.wait_until_ready(60)
        yield server


@pytest.fixture
def blank_bundle(tmp_path: Path) -> Path:
    """What passes for a bundle where no model reads it."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder
