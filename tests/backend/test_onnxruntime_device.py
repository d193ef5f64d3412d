"""ONNX Runtime with its cache in a device's memory; the device is the CPU, which keeps values of its own as well."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from autogaze_backend import GazeModel, onnxruntime_engine
from autogaze_backend.onnxruntime_cache import DeviceCache
from autogaze_client import ServerUnavailableError


@pytest.fixture(scope="module")
def on_device(bundle) -> Any:
    """A model whose caches are ``DeviceCache``."""
    loaded = GazeModel.load(bundle("release"), device="cpu", engine="onnxruntime")
    engine: Any = loaded.engine
    engine._new_cache = lambda spare: DeviceCache(engine.spec, engine._cache_dtype, "cpu", 0, spare)
    return loaded


@pytest.mark.parametrize("name", ["whole_clip", "ratio_list", "batch_fixed"])
def test_tokens_are_those_of_the_published_model(name, golden, on_device):
    """With buffers that grow, and buffers that another row left."""
    case = golden(name)
    for _ in range(2):
        generated = on_device.generate(case.video, **case.knobs)
        np.testing.assert_array_equal(generated.gazing_pos, case.expected["gazing_pos"])
        np.testing.assert_array_equal(generated.num_gazing_each_frame, case.expected["num_gazing_each_frame"])


@pytest.mark.parametrize("horizon", [1, 2])
def test_a_stream_past_its_horizon_is_that_of_the_host(horizon, golden, on_device, model):
    video = golden("streaming").video
    found = []
    for loaded in (on_device, model()):
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


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime_engine.ort.get_available_providers(),
    reason="onnxruntime-gpu is installed",
)
def test_a_build_of_onnx_runtime_for_the_cpu_says_what_a_gpu_needs(bundle):
    from autogaze_backend.bundle import Bundle

    with pytest.raises(
        ServerUnavailableError, match=r"cannot use cuda:1: install onnxruntime-gpu in place of"
    ):
        onnxruntime_engine.OnnxRuntimeEngine(Bundle.load(bundle("release")), gpu=1)
