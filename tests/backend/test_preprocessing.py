from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend.preprocessing import (
    PreprocessingConfig,
    check_frames,
    normalise,
    preprocess,
    resize_shortest_edge,
    resize_to_input,
    shortest_edge_size,
)
from autogaze_backend.resampling import bilinear_taps, cubic_taps
from autogaze_client import CheckpointError, InvalidInputError
from goldens import __file__ as goldens_file
from goldens import clips
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

GOLDENS = Path(goldens_file).parent
PROCESSOR = json.loads((GOLDENS / "processor.json").read_text())


@pytest.mark.parametrize("alpha", [False, True], ids=["rgb", "rgba"])
@pytest.mark.parametrize("case", PROCESSOR, ids=lambda case: f"{case['height']}x{case['width']}")
def test_matches_the_published_processor(case, alpha):
    frames = clips.synthetic_clip(2, case["height"], case["width"], case["seed"])
    if alpha:
        noise = np.random.default_rng(0).integers(0, 256, (*frames.shape[:3], 1), dtype=np.uint8)
        frames = np.concatenate([frames, noise], axis=3)
    found = normalise(resize_shortest_edge(frames, 224), PreprocessingConfig())
    assert list(found.shape) == case["shape"]
    expected = load_file(GOLDENS / "processor.safetensors")[f"{case['height']}x{case['width']}"]
    np.testing.assert_allclose(found[..., ::7, ::5], expected, atol=1e-5)


def test_resize_is_pillows_byte_for_byte():
    frames = clips.synthetic_clip(1, 333, 517, 3)
    expected = Image.fromarray(frames[0]).resize((347, 224), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_shortest_edge(frames, 224)[0], np.asarray(expected))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (224, 298)), (1080, 1920, (224, 398)), (1920, 1080, (398, 224)), (224, 224, (224, 224))],
)
def test_the_long_edge_is_truncated(height, width, expected):
    assert shortest_edge_size(height, width, 224) == expected


@pytest.mark.parametrize("size", [(224, 298), (398, 224), (448, 448), (100, 30), (224, 224), (1, 1)])
def test_square_resize_equals_torch(size):
    torch = pytest.importorskip(
        "torch", reason="compares with torch's bicubic; pip install 'autogaze-triton[export]'"
    )
    video = np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(video), size=(224, 224), mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(resize_to_input(video, 224), expected.numpy(), atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([cubic_taps, bilinear_taps]))
def test_a_resized_value_is_its_taps_products_summed_in_order(size, target, taps_of):
    """So it has the same bits on every processor and device."""
    taps = taps_of(size, target)
    assert taps.index.min() >= 0
    assert taps.index.max() < size
    video = np.random.default_rng(size).standard_normal((1, 3, 2, size)).astype(np.float32)
    wide = taps.resize(video, axis=-1)
    tall = taps.resize(video.swapaxes(2, 3), axis=-2)
    np.testing.assert_array_equal(wide, tall.swapaxes(2, 3))
    for place in {0, target // 2, target - 1}:
        total = np.float32(0)
        for tap in range(len(taps.index)):
            product = np.float32(taps.weight[tap, place] * video[0, 1, 1, taps.index[tap, place]])
            total = product if tap == 0 else np.float32(total + product)
        assert wide[0, 1, 1, place] == total


@settings(max_examples=25, deadline=None)
@given(st.integers(7, 400), st.integers(7, 400))
def test_any_size_becomes_the_square_input(height, width):
    frames = np.full((1, height, width, 3), 77, np.uint8)
    out = preprocess(frames, PreprocessingConfig(), 224)
    assert out.shape == (1, 3, 224, 224)
    # A flat frame stays flat whatever the filter.
    np.testing.assert_allclose(
        out, normalise(frames[:, :1, :1], PreprocessingConfig()).repeat(224, 2).repeat(224, 3), atol=1e-4
    )


def test_a_frame_that_is_mostly_length_is_refused():
    """One row of 100,000 pixels would become 224 rows of 22 million."""
    with pytest.raises(InvalidInputError, match="64 times longer than wide; crop or split"):
        preprocess(np.zeros((1, 1, 100_000, 3), np.uint8), PreprocessingConfig(), 224)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), "frames are float32; pass uint8"),
        (np.zeros((4, 4, 3), np.uint8), r"shape \[4, 4, 3\]; pass \[T, H, W, 3\]"),
        (np.zeros((1, 4, 4, 1), np.uint8), r"shape \[1, 4, 4, 1\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), "must be at least 1"),
        (np.zeros((1, 0, 4, 3), np.uint8), "must be at least 1"),
    ],
)
def test_bad_frames_are_refused(frames, message):
    with pytest.raises(InvalidInputError, match=message):
        check_frames(frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 3}, "resample is 3"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        ({"rescale_factor": 1 / 255}, "rescale_factor"),
        ({"size": {"height": 224, "width": 224}}, "size is"),
        ({"size": {"shortest_edge": 0}}, "shortest_edge is 0"),
        ({"image_std": [0.2, 0.2]}, "image_std"),
    ],
)
def test_a_processor_that_differs_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        PreprocessingConfig.from_processor({"size": {"shortest_edge": 224}, **change})


def test_processor_settings_are_read():
    config = PreprocessingConfig.from_processor(
        {"size": {"shortest_edge": 256}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    )
    assert config == PreprocessingConfig(256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
