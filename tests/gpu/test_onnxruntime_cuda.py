"""ONNX Runtime on a real GPU: the published model's tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from goldens.tokens import assert_golden

from gpu.test_torch_cuda import CASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="needs onnxruntime-gpu in place of onnxruntime",
    ),
]


@pytest.fixture(scope="module")
def gpu_model(
    seeded_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """Loads a layout on the GPU, once."""
    from autogaze_backend import GazeModel
    from autogaze_export import build

    loaded: dict[str, Any] = {}

    def load(layout: str) -> Any:
        if layout not in loaded:
            bundle = build(seeded_checkpoint(layout), tmp_path_factory.mktemp("gpu") / layout)
            loaded[layout] = GazeModel.load(bundle, device="cuda", engine="onnxruntime")
        return loaded[layout]

    return load


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_published_model(name, golden, gpu_model):
    case = golden(name)
    generated = gpu_model(case.settings.get("layout", "release")).generate(case.video, **case.knobs)
    assert_golden(generated, case.expected)


def test_a_stream_past_its_horizon_is_the_cpus(golden, gpu_model, model):
    """Which moves what the cache holds."""
    video = golden("streaming").video
    found = []
    for loaded in (gpu_model("release"), model()):
        with loaded.open_stream(horizon=2) as stream:
            frames = [stream.push(video[:, t : t + 1], max_gaze_tokens_each_frame=20) for t in range(5)]
        found.append(np.concatenate([frame.gazing_pos for frame in frames], axis=1))
    np.testing.assert_array_equal(*found)
