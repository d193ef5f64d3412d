"""Equal knobs are read once, and mean what they would mean if they were read again."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from autogaze_backend.clips import read_plan
from autogaze_backend.requests import Knobs, Remembered
from autogaze_client import InvalidInputError


@pytest.fixture
def spec(model):
    return model().spec


def tensors(**knobs) -> dict[str, np.ndarray]:
    return {"FRAMES": np.zeros((2, 8, 8, 3), np.uint8), **Knobs(**knobs).to_tensors()}


def same(one, other) -> bool:
    return np.array_equal(one.budget.max_tokens, other.budget.max_tokens) and (
        (one.budget.requirement, one.mode, one.target_scales, one.target_patch_size)
        == (other.budget.requirement, other.mode, other.target_scales, other.target_patch_size)
    )


def test_equal_knobs_are_read_once_and_others_apart(spec):
    calls = []

    def read(frames, given):
        calls.append(frames)
        return read_plan(spec, frames, given)

    remembered = Remembered(read)
    asked = [
        (2, tensors(gazing_ratio=np.float32([0.2]))),
        (3, tensors(gazing_ratio=np.float32([0.2]))),
        (2, tensors(gazing_ratio=np.float32([0.3]))),
        (2, tensors(max_gaze_tokens=np.int64([5]), task_loss_requirement=0.7)),
        (2, tensors(top_k=7, max_gaze_tokens=np.int64([5]))),
        (2, tensors(gazing_ratio=np.float32([0.2]), target_scales=(56, 112), target_patch_size=14)),
    ]
    for _ in range(3):
        for frames, given in asked:
            pixels = {**given, "FRAMES": np.random.default_rng(1).integers(0, 255, (2, 8, 8, 3), np.uint8)}
            assert same(remembered(frames, pixels), read_plan(spec, frames, given))
    assert calls == [frames for frames, _ in asked]


def test_the_memory_of_a_request_may_go(spec):
    """Triton gives it to the next one."""
    remembered = Remembered(partial(read_plan, spec))
    given = tensors(gazing_ratio=np.float32([0.2, 0.4]), max_gaze_tokens=np.int64([9, 50]))
    before = {name: array.copy() for name, array in given.items()}
    remembered(2, given)
    for name, array in given.items():
        if name != "FRAMES":
            array[:] = 1
    assert same(remembered(2, before), read_plan(spec, 2, before))


def test_what_is_refused_is_refused_again(spec):
    remembered = Remembered(partial(read_plan, spec))
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=r"1\.5"):
            remembered(2, tensors(gazing_ratio=np.float32([1.5])))


def test_the_type_of_a_tensor_counts(spec):
    remembered = Remembered(partial(read_plan, spec))
    given = tensors(top_k=3, gazing_ratio=np.float32([0.2]))
    remembered(2, given)
    with pytest.raises(InvalidInputError, match="TOP_K is float32; it must be int32"):
        remembered(2, {**given, "TOP_K": given["TOP_K"].view(np.float32)})


def test_a_caller_cannot_fill_the_memory():
    calls = []
    remembered = Remembered(lambda frames, given: calls.append(frames) or frames)
    large = {"TARGET_SCALES": np.zeros(2000, np.int32)}
    for _ in range(2):
        remembered(1, large)
    assert calls == [1, 1], "kept 8 kB a request"
    for ratio in range(3000):
        remembered(2, {"GAZING_RATIO": np.float32([ratio])})
    assert len(remembered) <= 1024
