"""Rows cited as "readout §5" are the worked examples of the behavioural specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
from autogaze_client import (
    FixationPoint,
    FixationSet,
    FrameFixationTrace,
    ImagePyramidLevel,
    ImagePyramidMaskOptions,
    ImagePyramidTokens,
    InvalidInputError,
    apply_image_mask,
    fixation_image_mask_tensor,
    frame_fixation_masks_tensor,
    image_pyramid_masks,
    sparsify_image_pyramid_tokens,
    tokenize_masked_image_pyramid,
)
from client_helpers import decode
from hypothesis import given
from hypothesis import strategies as st

COARSE = FixationPoint.with_grid_extent(0.25, 0.25, 0.5, 0.5, 1, 2)


def picture(*values: float) -> np.ndarray:
    """float32 [1, 1, n, n]."""
    side = math.isqrt(len(values))
    return np.array(values, np.float32).reshape(1, 1, side, side)


@pytest.mark.parametrize(("size", "ones"), [(4, 2), (5, 3)])
def test_mask_of_a_cell(size, ones):
    """readout §5, rows "id 0 on a 4×4 mask" and "id 0 on 5×5"."""
    mask = fixation_image_mask_tensor(2, size, size, [COARSE])
    expected = np.zeros((size, size))
    expected[:ones, :ones] = 1
    assert mask.shape == (2, 1, size, size)
    assert mask.dtype == np.float32
    assert (mask == expected).all()


def test_masks_do_not_drift():
    """readout §9.2: 7×7 column 1 at 224 px is 32–63, not 31–63."""
    mask = fixation_image_mask_tensor(1, 224, 224, decode([21]).traces()[0].frames[0])
    assert np.flatnonzero(mask[0, 0, 0]).tolist() == list(range(32, 64))


def test_masks_of_cells_off_any_grid():
    """Many distinct edges: painted pixel by pixel instead of edge by edge."""
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.random((300, 2)), rng.uniform(0.01, 0.3, (300, 2)), np.ones((300, 2))])
    mask = fixation_image_mask_tensor(1, 60, 80, rows)[0, 0]
    expected = np.zeros((60, 80))
    for x, y, width, height, *_ in rows:
        x0, x1 = max(math.floor((x - width / 2) * 80), 0), min(math.ceil((x + width / 2) * 80), 80)
        y0, y1 = max(math.floor((y - height / 2) * 60), 0), min(math.ceil((y + height / 2) * 60), 60)
        expected[y0:y1, x0:x1] = 1
    np.testing.assert_array_equal(mask, expected)


def test_masks_of_traces():
    """readout §5, row "two traces, left/right halves, 1×2"; a missing frame is zeros."""
    halves = [FixationPoint.with_extent(x, 0.5, 0.5, 1, 1) for x in (0.25, 0.75)]
    traces = [FrameFixationTrace([FixationSet([half])]) for half in halves]
    assert frame_fixation_masks_tensor(traces, 0, 1, 2)[:, 0, 0].tolist() == [[1, 0], [0, 1]]
    longer = [*traces[:1], FrameFixationTrace([FixationSet([half]) for half in halves])]
    assert frame_fixation_masks_tensor(longer, 1, 1, 2)[:, 0, 0].tolist() == [[0, 0], [0, 1]]


def test_apply_mask():
    """readout §5, rows "image 1 2 3 4" and "image 10 20 30"."""
    image = picture(1, 2, 3, 4)
    assert apply_image_mask(image, picture(1, 0, 0, 1), -1).ravel().tolist() == [1, -1, -1, 4]
    row, mask = np.array([[[[10, 20, 30]]]]), np.array([[[[0.25, 2, -1]]]])
    assert apply_image_mask(row, mask, 4).ravel().tolist() == [5.5, 20, 4]


def test_masked_pixels_are_gone_even_if_not_finite():
    """readout §9.10: the reference keeps NaN and infinity alive under the mask."""
    image, mask = picture(math.nan, math.inf, 3, 4), picture(0, 0, 1, 1)
    assert apply_image_mask(image, mask, -1).ravel().tolist() == [-1, -1, 3, 4]
    tokens = tokenize_masked_image_pyramid(image, mask, [ImagePyramidLevel(2, 2)])
    assert tokens.tokens.ravel().tolist() == [0, 0, 3, 4]


def test_masks_are_prepared():
    """readout §5, "Mask preparation": channels are averaged, sizes resized to the nearest, batches repeated."""
    image = np.ones((2, 1, 4, 4), np.float32)
    mask = np.stack([np.eye(2), np.ones((2, 2))])[None]
    found = apply_image_mask(image, mask)
    expected = np.kron([[1, 0.5], [0.5, 1]], np.ones((2, 2)))
    np.testing.assert_array_equal(found, np.stack([expected[None]] * 2))
    thin = apply_image_mask(np.ones((1, 1, 1, 5)), np.array([[[[1.0, 0, 1]]]]))
    assert thin.ravel().tolist() == [1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("threshold", "weights", "tokens"),
    [(0, [0.25, 1, 0, 0, 0], [0.625, 1, 0, 0, 0]), (0.25, [0, 1, 0, 0, 0], [0, 1, 0, 0, 0])],
)
def test_pyramid_tokens(threshold, weights, tokens):
    """readout §5, rows "image 1 2 3 4, mask 1 0 0 0, levels 1×1, 2×2" and "same, threshold .25"."""
    levels = [ImagePyramidLevel(1, 1), ImagePyramidLevel(2, 2)]
    found = tokenize_masked_image_pyramid(
        picture(1, 2, 3, 4), picture(1, 0, 0, 0), levels, ImagePyramidMaskOptions().with_threshold(threshold)
    )
    assert found.weights.ravel().tolist() == weights
    assert found.tokens.ravel().tolist() == tokens
    assert found.level_token_ranges == ((0, 1), (1, 5))
    assert found.levels == tuple(levels)


def test_top_tokens():
    """readout §5, row "mask .1 .9 .2 .7, level 2×2, k 2"; ties go to the lowest index."""
    tokens = tokenize_masked_image_pyramid(
        picture(1, 2, 3, 4), picture(0.1, 0.9, 0.2, 0.7), [ImagePyramidLevel(2, 2)]
    )
    best = sparsify_image_pyramid_tokens(tokens, 2)
    assert best.weights.ravel().tolist() == pytest.approx([0.9, 0.7])
    assert best.indices.tolist() == [[1, 3]]
    assert best.tokens.ravel().tolist() == pytest.approx([1.8, 2.8])
    assert sparsify_image_pyramid_tokens(tokens, 9).indices.tolist() == [[1, 3, 2, 0]]
    assert sparsify_image_pyramid_tokens(tokens, 0).tokens.shape == (1, 0, 1)
    flat = ImagePyramidTokens(np.ones((1, 5, 2)), np.array([[[0.0], [1], [0], [1], [1]]]), (), ())
    assert sparsify_image_pyramid_tokens(flat, 4).indices.tolist() == [[1, 3, 4, 0]]


@pytest.mark.parametrize(
    ("values", "side", "means"),
    [
        (range(1, 10), 2, [3, 4, 6, 7]),
        (range(1, 5), 3, [1, 1.5, 2, 2, 2.5, 3, 3, 3.5, 4]),
    ],
)
def test_adaptive_pooling(values, side, means):
    """readout §5, row "pool 3×3 (1..9) to 2×2; 2×2 (1..4) to 3×3"."""
    image = picture(*values)
    tokens = tokenize_masked_image_pyramid(image, np.ones_like(image), [ImagePyramidLevel(side, side)])
    assert tokens.tokens.ravel().tolist() == means


def test_level_masks():
    mask = np.array([[[[1.0, 0], [0, 0]]], [[[1, 1], [1, 1]]]])
    found = image_pyramid_masks(mask, 4, 4, [ImagePyramidLevel(1, 2)], ImagePyramidMaskOptions(0.5))
    assert found[0].density.tolist() == [[[[0.5, 0]]], [[[1, 1]]]]
    assert found[0].active.tolist() == [[[[0, 0]]], [[[1, 1]]]]
    assert found[0].level.token_count == 2
    assert image_pyramid_masks(mask, 4, 4, []) == []


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(0, 12))
def test_pyramid_laws(height, width, rows, cols, k):
    """A full mask gives weight 1 everywhere; top-k is sorted and holds the largest weights."""
    rng = np.random.default_rng(height * 31 + width)
    image, mask = rng.random((2, 3, height, width)), rng.random((1, 1, height, width))
    levels = [ImagePyramidLevel(rows, cols), ImagePyramidLevel(1, 1)]
    full = tokenize_masked_image_pyramid(image, np.ones_like(mask), levels)
    assert (full.weights == 1).all()
    np.testing.assert_allclose(full.tokens.mean(-1)[:, -1], image.mean((1, 2, 3)))
    best = sparsify_image_pyramid_tokens(tokenize_masked_image_pyramid(image, mask, levels), k)
    assert best.tokens.shape == (2, min(k, rows * cols + 1), 3)
    assert (np.diff(best.weights[..., 0]) <= 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixation_image_mask_tensor(0, 4, 4, []), "batch is 0"),
        (lambda: fixation_image_mask_tensor(1, 0, 4, []), "height is 0"),
        (
            lambda: fixation_image_mask_tensor(1, 4, 4, [FixationPoint(0.5, 0.5, 0.5, math.nan)]),
            "confidence of fixation 0 is NaN",
        ),
        (lambda: frame_fixation_masks_tensor([], 0, 4, 4), "no traces"),
        (lambda: apply_image_mask(np.ones((1, 4, 4)), picture(1)), r"image has shape \[1, 4, 4\]"),
        (lambda: apply_image_mask(picture(1), np.ones((2, 1, 1, 1))), "batch of 2"),
        (lambda: apply_image_mask(picture(1), picture(1), math.inf), "fill is inf"),
        (lambda: apply_image_mask(picture(1), picture(math.nan)), "mask holds a NaN"),
        (lambda: apply_image_mask(picture(1), np.ones((1, 1))), r"mask has shape \[1, 1\]"),
        (lambda: image_pyramid_masks(picture(1), 0, 4, []), "image_height is 0"),
        (lambda: image_pyramid_masks(np.ones((0, 1, 2, 2)), 4, 4, []), r"mask has shape \[0"),
        (lambda: tokenize_masked_image_pyramid(picture(1), picture(1), []), "no pyramid levels"),
        (lambda: ImagePyramidLevel(0, 1), "level height is 0"),
        (lambda: ImagePyramidMaskOptions(math.nan), "threshold is NaN"),
        (
            lambda: sparsify_image_pyramid_tokens(
                ImagePyramidTokens(np.ones((1, 0, 1)), np.ones((1, 0, 1)), (), ()), 1
            ),
            r"tokens have shape \[1, 0, 1\]",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
