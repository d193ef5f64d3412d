"""What ONNX Runtime runs on a GPU, on the CPU: the masked graphs, and a cache in a device's memory.

The device is the CPU, which keeps values of its own as well; only the provider's name is pretended.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autogaze_backend import GazeModel, onnxruntime_engine
from autogaze_backend.bundle import Bundle
from autogaze_backend.devices import Device
from autogaze_backend.engines import choose_engine
from autogaze_backend.onnxruntime_cache import DeviceCache
from autogaze_backend.onnxruntime_engine import OnnxRuntimeEngine
from autogaze_client import CheckpointError, ServerUnavailableError
from goldens.tokens import assert_golden


@pytest.fixture(scope="module")
def as_on_a_gpu() -> Any:
    """Opens a bundle as on a GPU; sessions, values and arithmetic are ONNX Runtime's own on the CPU."""
    ort = onnxruntime_engine.ort
    cuda = onnxruntime_engine._CUDA

    class Session(ort.InferenceSession):
        opened: list[tuple[bytes, Any]] = []  # noqa: RUF012

        def __init__(self, graph: bytes, options: Any, providers: list[Any]) -> None:
            self.opened.append((graph, providers))
            super().__init__(graph, options, providers=providers[1:])

        def get_providers(self) -> list[str]:
            return [cuda, *super().get_providers()]

    def cache(spec: Any, dtype: Any, device: str, index: int, values: Any) -> DeviceCache:
        assert (device, index) == ("cuda", 1)
        return DeviceCache(spec, dtype, "cpu", 0, values)

    def open_engine(bundle: Bundle) -> OnnxRuntimeEngine:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ort, "get_available_providers", lambda: [cuda, "CPUExecutionProvider"])
            patch.setattr(ort, "preload_dlls", lambda: None)
            patch.setattr(ort, "InferenceSession", Session)
            return OnnxRuntimeEngine(bundle, gpu=1)

    with pytest.MonkeyPatch.context() as patch:
        # Engines on the CPU have another cache.
        patch.setattr(onnxruntime_engine, "DeviceCache", cache)
        yield open_engine, Session.opened


@pytest.fixture(scope="module")
def on_device(bundle, as_on_a_gpu) -> Any:
    """Loads a layout as on a GPU, once."""
    open_engine, _ = as_on_a_gpu
    loaded: dict[str, Any] = {}

    def load(layout: str = "release") -> Any:
        if layout not in loaded:
            own = Bundle.load(bundle(layout))
            loaded[layout] = GazeModel(own, open_engine(own))
        return loaded[layout]

    return load


def test_the_graphs_of_a_gpu_are_the_encoder_and_the_masked_ones(bundle, as_on_a_gpu):
    open_engine, opened = as_on_a_gpu
    own = Bundle.load(bundle("release"))
    opened.clear()
    open_engine(own).close()
    names = ("encoder.onnx", "prefill.masked.onnx", "step.masked.onnx")
    assert [graph for graph, _ in opened] == [(own.path / name).read_bytes() for name in names]
    for _, providers in opened:
        # Float32 stays float32 in the products; the GPU is the one that was named.
        assert providers[0] == ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": "0"})


@pytest.mark.parametrize(
    "name", ["whole_clip", "ratio_list", "batch_fixed", "loss_only", "single_scale", "target_392_14"]
)
def test_tokens_are_those_of_the_published_model(name, golden, on_device):
    """With buffers that grow, and buffers that another row left."""
    case = golden(name)
    for _ in range(2):
        generated = on_device(case.settings.get("layout", "release")).generate(case.video, **case.knobs)
        assert_golden(generated, case.expected)


@pytest.mark.parametrize("horizon", [1, 2])
def test_a_stream_past_its_horizon_is_that_of_the_host(horizon, golden, on_device, model):
    video = golden("streaming").video
    found = []
    for loaded in (on_device(), model()):
        with loaded.open_stream(horizon=horizon) as stream:
            push = partial(stream.push, max_gaze_tokens_each_frame=20)
            found.append(np.concatenate([push(video[:, t : t + 1]).gazing_pos for t in range(4)], axis=1))
    np.testing.assert_array_equal(*found)


def test_a_buffer_grows_twofold_and_keeps_what_it_holds(model):
    spec = model().spec
    cache = DeviceCache(spec, np.float32, "cpu", 0)
    cache.reserve(1)
    assert cache.capacity == 512
    pattern = np.random.default_rng(0).standard_normal(cache.values[0].shape()).astype(np.float32)
    for value in cache.values:
        value.update_inplace(pattern)
    cache.reserve(512)
    assert cache.capacity == 512
    cache.reserve(513)
    assert cache.capacity == 1024
    for value in cache.values:
        np.testing.assert_array_equal(value.numpy()[:, :, :512], pattern)
        assert not value.numpy()[:, :, 512:].any()


def test_fast_agrees_with_float32_as_it_does_on_the_cpu(seeded_checkpoint, bundle, as_on_a_gpu, tmp_path):
    """Float16 caches, and weights of one type in both forms: choice by choice, the float32 history fed to it."""
    pytest.importorskip("onnx", reason="builds precision fast; pip install 'autogaze-triton[fast]'")
    from autogaze_export import build
    from autogaze_export.agreement import ShadowedEngine, sample_clips

    open_engine, _ = as_on_a_gpu
    fast = Bundle.load(build(seeded_checkpoint(), tmp_path / "fast", precision="fast"))
    candidate = open_engine(fast)
    assert candidate._cache_dtype == np.float16
    exact = Bundle.load(bundle("release"))
    engine = ShadowedEngine(OnnxRuntimeEngine(exact), candidate)
    GazeModel(exact, engine).generate(sample_clips(exact), gazing_ratio=0.75)
    found = engine.agreement("the CPU")
    engine.close()
    assert found.choices == fast.manifest["agreement"]["choices"]
    assert found.equal >= 0.98
    assert 0 < found.max_task_loss_difference < 0.01


@pytest.mark.parametrize(
    ("version", "right"),
    [("1.27.0", False), ("1.29.1", False), ("1.30.0", True), ("1.32.0.dev20261101", True), ("2.0", True)],
)
@pytest.mark.parametrize("gpu", [None, 0])
def test_an_onnx_runtime_that_chooses_other_tokens_is_refused(version, right, gpu, old_bundle, monkeypatch):
    monkeypatch.setattr(onnxruntime_engine.ort, "__version__", version)
    if right and gpu is None:
        OnnxRuntimeEngine(Bundle.load(old_bundle)).close()
        return
    # What is asked next on a GPU is the bundle's graphs.
    error, message = (
        (CheckpointError, "has no masked graphs")
        if right
        else (
            ServerUnavailableError,
            rf"ONNX Runtime {version} is installed, and 1\.30 is the oldest .*onnxruntime>=1\.30",
        )
    )
    with pytest.raises(error, match=message):
        OnnxRuntimeEngine(Bundle.load(old_bundle), gpu=gpu)


def test_the_oldest_onnx_runtime_is_the_one_that_the_package_asks_for():
    asked = {
        line.split(";")[0] for line in requires("autogaze-triton") or [] if line.startswith("onnxruntime>")
    }
    assert asked == {f"onnxruntime>={onnxruntime_engine._OLDEST}"}


@pytest.fixture
def old_bundle(bundle, tmp_path) -> Path:
    """As bundles were before there were masked graphs."""
    folder = shutil.copytree(bundle("release"), tmp_path / "old")
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest.pop("masked_graphs").values():
        (folder / entry["file"]).unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_old_bundle_runs_on_the_cpu_and_names_the_command_on_a_gpu(old_bundle, golden):
    case = golden("ratio_list")
    generated = GazeModel.load(old_bundle, engine="onnxruntime").generate(case.video, **case.knobs)
    np.testing.assert_array_equal(generated.gazing_pos, case.expected["gazing_pos"])
    message = (
        rf"{old_bundle} has no masked graphs, .* `autogaze build CHECKPOINT {old_bundle}`, or run it on the"
    )
    own = Bundle.load(old_bundle)
    with pytest.raises(CheckpointError, match=message):
        OnnxRuntimeEngine(own, gpu=0)
    with pytest.raises(CheckpointError, match=message):
        choose_engine(own, Device.parse("cuda"), "onnxruntime")
    assert choose_engine(own, Device.parse("auto"), "onnxruntime").name == "onnxruntime"


def test_a_changed_masked_graph_is_refused(bundle, tmp_path):
    broken = shutil.copytree(bundle("release"), tmp_path / "bundle")
    with (broken / "step.masked.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match=r"step\.masked\.onnx has SHA-256"):
        Bundle.load(broken)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime_engine.ort.get_available_providers(),
    reason="onnxruntime-gpu is installed",
)
def test_a_build_of_onnx_runtime_for_the_cpu_says_what_a_gpu_needs(bundle):
    with pytest.raises(
        ServerUnavailableError, match=r"cannot use cuda:1: install onnxruntime-gpu in place of"
    ):
        OnnxRuntimeEngine(Bundle.load(bundle("release")), gpu=1)
