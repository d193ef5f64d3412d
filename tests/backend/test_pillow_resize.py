from __future__ import annotations

import numpy as np
import pytest
from autogaze_backend.torch_engine.pillow_resize import resize_pass, resize_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

SIZE = st.tuples(st.integers(1, 160), st.integers(1, 160))


def follow(plan, frame: np.ndarray) -> np.ndarray:
    """What a plan makes of uint8 [H, W, 3]."""

    def along(step, pixels, axis):
        if step is None:
            return pixels
        first = np.moveaxis(pixels, axis, 0)
        flat = step.apply(first.reshape(len(first), -1), np.arange(len(step.first)))
        return np.moveaxis(flat.reshape(-1, *first.shape[1:]), 0, axis)

    if plan.vertical_first:
        return along(plan.horizontal, along(plan.vertical, frame, 0), 1)
    return along(plan.vertical, along(plan.horizontal, frame, 1), 0)


def check(source: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    # Other noise than the probes', and black and white, whose sums come closest to the limits.
    generator = np.random.default_rng(1000 + seed)
    for frame in (
        generator.integers(0, 256, (*source, 3), dtype=np.uint8),
        generator.integers(0, 2, (*source, 3), dtype=np.uint8) * np.uint8(255),
    ):
        expected = Image.fromarray(frame).resize(target[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(follow(resize_plan(source, target), frame), np.asarray(expected))


@settings(max_examples=150, deadline=None)
@given(SIZE, SIZE, st.integers(0, 1000))
def test_the_plan_gives_the_installed_pillows_bytes(source, target, seed):
    check(source, target, seed)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1080, 1920), (224, 398)),
        ((1920, 1080), (398, 224)),
        ((720, 1280), (224, 398)),
        ((1080, 1920), (392, 392)),
        ((1920, 1080), (384, 384)),
        ((101, 142), (42, 122)),
        ((3000, 20), (200, 90)),
    ],
)
def test_the_plan_holds_for_video_sizes(source, target):
    check(source, target, 0)


def test_the_order_of_the_passes_shows():
    """So it matters that Pillow is asked for it."""
    frame = np.random.default_rng(0).integers(0, 256, (1080, 1920), dtype=np.uint8)
    down, across = resize_pass(1080, 224), resize_pass(1920, 398)
    rows, columns = np.arange(224), np.arange(398)
    vertical_first = across.apply(down.apply(frame, rows).T, columns).T
    horizontal_first = down.apply(across.apply(frame.T, columns).T, rows)
    difference = np.abs(vertical_first.astype(int) - horizontal_first)
    assert 0 < difference.max() <= 2
    assert (difference > 0).mean() > 0.01


def test_a_size_that_stays_has_no_pass():
    plan = resize_plan((100, 50), (100, 20))
    assert plan.vertical is None
    assert plan.horizontal.size == 50
