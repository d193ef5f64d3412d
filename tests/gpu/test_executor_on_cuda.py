"""The TensorRT executor on a real GPU with torch's kernels: CUDA memory, copies, captured graphs, golden tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from autogaze_backend import GazeModel
from autogaze_backend.bundle import Bundle
from autogaze_backend.plan_selection import Machine
from autogaze_backend.plans import EngineKind
from autogaze_backend.tensorrt_engine import TensorRtEngine
from autogaze_backend.tensorrt_engine.api import TensorRt
from autogaze_backend.tensorrt_engine.cuda import Cuda, Slab
from backend.tensorrt_doubles import write_plans
from backend.test_goldens import CASES
from goldens import clips

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("cuda.bindings.runtime", reason="the extra cuda is not installed")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not Machine.probe().gpus, reason="torch or CUDA finds no GPU"
)


def executor(bundle, folder, *, plans=None, **settings) -> GazeModel:
    from gpu.torch_plans import TorchTensorRt

    loaded = Bundle.load(bundle)
    written = write_plans(bundle, folder / "plans", **(plans or {}))
    trt = TensorRt(EngineKind.TENSORRT, TorchTensorRt(**settings))
    return GazeModel(loaded, TensorRtEngine(loaded.spec, written, trt, Cuda(0)))


@pytest.fixture(scope="module")
def captured(bundle, tmp_path_factory):
    made: dict[str, GazeModel] = {}

    def make(layout: str = "release") -> GazeModel:
        if layout not in made:
            made[layout] = executor(bundle(layout), tmp_path_factory.mktemp(layout))
        return made[layout]

    yield make
    for one in made.values():
        one.engine.close()


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_published_model(name, golden, captured):
    case = golden(name)
    loaded = captured(case.settings.get("layout", "release"))
    assert loaded.engine.fallbacks == {}, "every plan must be a CUDA graph"
    generated = loaded.generate(case.video, **case.knobs)
    np.testing.assert_array_equal(generated.gazing_pos, case.expected["gazing_pos"])
    np.testing.assert_array_equal(generated.if_padded_gazing, case.expected["if_padded_gazing"])


def test_what_cannot_be_captured_still_runs(bundle, golden, tmp_path):
    small = {"rows": (1, 4), "lengths": (1024,), "frames": (1,)}
    loaded = executor(bundle("release"), tmp_path, plans=small, capturable=False)
    assert len(loaded.engine.fallbacks) == 6
    case = golden("row_a")
    np.testing.assert_array_equal(
        loaded.generate(case.video, **case.knobs).gazing_pos, case.expected["gazing_pos"]
    )
    loaded.engine.close()


def test_streams_that_are_parked_moved_and_grown_equal_streams_alone(bundle, captured, tmp_path):
    """Five streams on two places past their horizon, against each alone on places of its own."""
    small = {"rows": (1, 2), "lengths": (256, 512, 1024), "frames": (1,)}
    crowded = executor(bundle("release"), tmp_path, plans=small)
    alone = captured()
    streams = [[loaded.open_stream(horizon=2) for _ in range(5)] for loaded in (crowded, alone)]
    random = np.random.default_rng(5)
    for turn in range(10):
        chosen = random.permutation(5)[: random.integers(1, 5)]
        frames = [
            clips.normalise(clips.synthetic_clip(1, 224, 224, 10 * turn + int(index))) for index in chosen
        ]
        knobs = {"gazing_ratio": float(random.uniform(0.05, 0.4)), "task_loss_requirement": 0.7}
        found = crowded.step_streams(
            [(streams[0][i], f) for i, f in zip(chosen, frames, strict=True)], **knobs
        )
        for index, frame, one in zip(chosen, frames, found, strict=True):
            other = streams[1][index].step(frame, **knobs)
            np.testing.assert_array_equal(one.gazing_pos, other.gazing_pos)
            np.testing.assert_allclose(one.task_loss_predictions, other.task_loss_predictions, atol=1e-4)
    assert crowded.engine._pool.moved_rows > 5
    for stream in itertools.chain(*streams):
        stream.close()
    crowded.engine.close()


def test_a_slab_is_copied_as_it_says():
    cuda = Cuda(0)
    blocks, rows, pitch = 3, 4, 64
    size = blocks * rows * pitch
    source, target = cuda.allocate(size), cuda.allocate(2 * size)
    address, view = cuda.allocate_host(2 * size)
    view[:size] = np.random.default_rng(0).integers(0, 256, size)
    cuda.synchronize()
    written = view[:size].reshape(blocks, rows, pitch).copy()
    cuda.upload(source, address, size)
    cuda.copy_slab(Slab(target + 8, 2 * pitch, rows), Slab(source + 4, pitch, rows), 20, 3, blocks)
    cuda.download(address, target, 2 * size)
    cuda.synchronize()
    expected = np.zeros((blocks, rows, 2 * pitch), np.uint8)
    expected[:, :3, 8:28] = written[:, :3, 4:24]
    np.testing.assert_array_equal(view.reshape(expected.shape), expected)
    free = cuda.free_memory()
    cuda.close()
    assert Cuda(0).free_memory() >= free
