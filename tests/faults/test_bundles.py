"""Bundles that were damaged or exchanged: loading refuses, and what is loaded already goes on serving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_backend.serving import ModelControlMode, ServerStartError, TritonServer, model_repository_path
from autogaze_client import GazeClient
from autogaze_export import build
from faults.fault_helpers import KNOBS, LONG, clip, config
from goldens import checkpoint
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A bundle of another checkpoint of the same architecture: every file fits, but not its manifest's hash."""
    folder = tmp_path_factory.mktemp("other")
    return build(checkpoint.write_checkpoint(folder / "checkpoint", seed=8), folder / "bundle")


def truncate(name: str):
    def damage(bundle: Path, other: Path) -> None:
        content = (bundle / name).read_bytes()
        (bundle / name).write_bytes(content[: len(content) // 2])

    return damage


def exchange(name: str):
    return lambda bundle, other: shutil.copyfile(other / name, bundle / name)


def forge(bundle: Path, other: Path) -> None:
    """The manifest agrees with the graph, but the graph is cut short: only the engine itself can tell."""
    truncate("step.onnx")(bundle, other)
    from autogaze_backend.bundle import file_sha256

    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["step"]["sha256"] = file_sha256(bundle / "step.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def touch(server: TritonServer, name: str) -> None:
    """Triton loads again only what has changed, and a bundle is no file of the model."""
    (server.config.model_repository / name / "1" / "model.py").touch()


DAMAGES = {
    "truncated graph": (truncate("step.onnx"), r"step\.onnx has SHA-256 .*autogaze build"),
    "truncated weights": (
        truncate("weights.safetensors"),
        r"weights\.safetensors has SHA-256 .*autogaze build",
    ),
    "another checkpoint's weights": (exchange("weights.safetensors"), r"weights\.safetensors has SHA-256"),
    "truncated manifest": (truncate("manifest.json"), r"manifest\.json is no valid JSON .*autogaze build"),
    "forged manifest": (forge, r"step\.onnx cannot be loaded by ONNX Runtime .*autogaze build"),
}


def cases(*fast: str) -> list:
    """The names of all damages, those that are not ``fast`` for ``make test-faults`` only."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.faults) for name in DAMAGES]


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory):
    """A server that loads what it is told, and the bundle that it serves, which tests may damage."""
    folder = shutil.copytree(bundle(), tmp_path_factory.mktemp("served") / "bundle")
    models = ("autogaze", "autogaze_stream")
    settings = {"model_control_mode": ModelControlMode.EXPLICIT, "load_models": models}
    repository = shutil.copytree(model_repository_path(), folder.parent / "repository")
    with TritonServer(config(folder, repository, settings=settings), on_log=lambda line: None) as server:
        server.wait_until_ready(LONG)
        yield server, folder


@pytest.mark.parametrize("name", cases("truncated graph", "another checkpoint's weights"))
def test_a_damaged_bundle_is_not_loaded_and_the_loaded_one_serves_on(name, served, bundle, other, model):
    server, folder = served
    damage, message = DAMAGES[name]
    damage(folder, other)
    frames = clip(2)
    wanted = model().gaze(frames, **KNOBS).generated.gazing_pos
    try:
        with triton.InferenceServerClient(server.url) as control, GazeClient(server.url) as client:
            for served_model in ("autogaze_generate", "autogaze_stream"):
                touch(server, served_model)
                with pytest.raises(
                    InferenceServerException, match=rf"(?s)load failed for model '{served_model}'.*{message}"
                ):
                    control.load_model(served_model)
                np.testing.assert_array_equal(client.gaze(frames, **KNOBS).generated.gazing_pos, wanted)
                with client.stream(**KNOBS) as stream:
                    assert stream.push(frames[0]).tokens_per_frame.sum() > 0
            assert client.is_ready()
    finally:
        for path in bundle().iterdir():
            shutil.copyfile(path, folder / path.name)
    with triton.InferenceServerClient(server.url) as control, GazeClient(server.url) as client:
        touch(server, "autogaze_generate")
        control.load_model("autogaze_generate")
        np.testing.assert_array_equal(client.gaze(frames, **KNOBS).generated.gazing_pos, wanted)


@pytest.mark.parametrize("name", cases("truncated graph"))
def test_a_server_does_not_start_with_a_damaged_bundle(name, bundle, other, tmp_path):
    folder = shutil.copytree(bundle(), tmp_path / "bundle")
    damage, message = DAMAGES[name]
    damage(folder, other)
    with (
        TritonServer(config(folder), on_log=lambda line: None) as server,
        pytest.raises(ServerStartError, match=f"(?s){message}"),
    ):
        server.wait_until_ready(LONG)
