"""torch tensors stay torch tensors, on their device, without a look at their values.

A meta tensor has a shape and a device but no values: reading one, or an operation whose shape depends on
values, raises, as does mixing devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_client import (
    AutoGazePatchDiffConfig,
    ImagePyramidLevel,
    ImagePyramidTokens,
    InvalidInputError,
    SparseReadoutGrid,
    SparseVideoReadoutGrid,
    apply_image_mask,
    fixation_image_mask_tensor,
    fixation_pixel_rects,
    fixation_points_to_readout_tokens,
    frame_fixation_masks_tensor,
    image_pyramid_masks,
    patch_diff_device_mask,
    patch_diff_readout_points,
    patch_diff_scores,
    sparsify_image_pyramid_tokens,
    tokenize_masked_image_pyramid,
    video_readout_tokens_to_coord_tensor,
)
from client_helpers import generated_for

torch = pytest.importorskip("torch", reason="torch is not installed")

ROWS = generated_for(1, slots=40).fixations(0)
LEVELS = [ImagePyramidLevel(1, 2), ImagePyramidLevel(5, 7), ImagePyramidLevel(30, 30)]
RNG = np.random.default_rng(0)
IMAGE = RNG.random((2, 3, 23, 28), np.float32)
MASK = RNG.random((1, 2, 11, 9), np.float32).round(1)
VIDEO = RNG.random((2, 3, 3, 20, 26), np.float32)


def gather(image, mask, rows):
    """Everything on the way from fixations and pixels to sparse tokens."""
    tokens = tokenize_masked_image_pyramid(image, mask, LEVELS)
    best = sparsify_image_pyramid_tokens(tokens, 10)
    level = image_pyramid_masks(mask, 20, 30, LEVELS)[1]
    return [
        fixation_image_mask_tensor(2, 23, 28, rows),
        fixation_pixel_rects(rows, width=28, height=23),
        apply_image_mask(image, mask, 0.5),
        tokens.tokens,
        tokens.weights,
        best.tokens,
        best.weights,
        best.indices,
        level.density,
        level.active,
    ]


def test_torch_gives_what_numpy_gives():
    on_torch = gather(*(torch.from_numpy(array) for array in (IMAGE, MASK, ROWS)))
    for found, expected in zip(on_torch, gather(IMAGE, MASK, ROWS), strict=True):
        assert isinstance(found, torch.Tensor)
        assert found.numpy().dtype == expected.dtype
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_pooling_is_torchs_adaptive_pooling():
    tokens = tokenize_masked_image_pyramid(IMAGE, np.ones_like(MASK), LEVELS)
    for level, (start, end) in zip(LEVELS, tokens.level_token_ranges, strict=True):
        pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(IMAGE), (level.height, level.width))
        expected = pooled.flatten(2).swapaxes(1, 2).numpy()
        np.testing.assert_allclose(tokens.tokens[:, start:end], expected, rtol=1e-5)


def test_nothing_is_read_from_a_device():
    image, mask, rows = (torch.empty(array.shape, device="meta") for array in (IMAGE, MASK, ROWS))
    results = gather(image, mask, rows)
    results.append(fixation_image_mask_tensor(1, 5, 6, rows, like=image))
    results.append(patch_diff_scores(torch.empty(VIDEO.shape, device="meta")))
    assert {result.device.type for result in results} == {"meta"}
    assert results[0].shape == (2, 1, 23, 28)
    assert results[5].shape == (2, 10, 3)


def test_the_check_notices_a_look_at_values():
    tensor = torch.empty(3, device="meta")
    looks = (
        lambda: tensor.sum().item(),
        lambda: tensor.cpu(),
        lambda: tensor.nonzero(),
        lambda: bool(tensor.any()),
        lambda: tensor[tensor > 0],
        lambda: tensor + torch.ones(3),
    )
    for look in looks:
        with pytest.raises((RuntimeError, NotImplementedError)):
            look()


def test_gradients_flow():
    image = torch.from_numpy(IMAGE).requires_grad_()
    tokens = sparsify_image_pyramid_tokens(
        tokenize_masked_image_pyramid(image, torch.from_numpy(MASK), LEVELS), 8
    )
    tokens.tokens.sum().backward()
    assert image.grad.abs().sum() > 0


def test_masks_of_host_points_take_the_library_asked_for():
    trace = generated_for(2, slots=9).traces()[0]
    like = torch.zeros(1)
    for found, expected in (
        (
            fixation_image_mask_tensor(2, 9, 8, trace.frames[0], like=like),
            fixation_image_mask_tensor(2, 9, 8, trace.frames[0]),
        ),
        (
            frame_fixation_masks_tensor([trace] * 2, 1, 9, 8, like=like),
            frame_fixation_masks_tensor([trace] * 2, 1, 9, 8),
        ),
    ):
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), expected)
    coords = video_readout_tokens_to_coord_tensor(
        torch.tensor([3]), SparseVideoReadoutGrid(1, 2, 2), 1, like=like
    )
    assert (coords.dtype, coords.tolist()) == (torch.int64, [[1, 0, 1, 1]])


def test_patch_diff_of_tensors():
    config = AutoGazePatchDiffConfig(6, 0.3)
    tensor = torch.from_numpy(VIDEO)
    np.testing.assert_allclose(
        patch_diff_scores(tensor, config).numpy(), patch_diff_scores(VIDEO, config), rtol=1e-5
    )
    cells = [[(p.x, p.y) for p in clip[-1]] for clip in patch_diff_readout_points(tensor, config).points]
    assert cells == [
        [(p.x, p.y) for p in clip[-1]] for clip in patch_diff_readout_points(VIDEO, config).points
    ]
    masks = [patch_diff_device_mask(video, config, 13, 17) for video in (tensor[:1], VIDEO[:1])]
    np.testing.assert_array_equal(masks[0].mask.alpha.numpy(), masks[1].mask.alpha)
    assert masks[0].mask.stats == masks[1].mask.stats


def test_equal_weights_keep_their_order_on_torch():
    weights = torch.tensor([[[0.0], [1], [0], [1], [1]]])
    flat = ImagePyramidTokens(torch.ones(1, 5, 2), weights, (), ())
    assert sparsify_image_pyramid_tokens(flat, 4).indices.tolist() == [[1, 3, 4, 0]]


def test_host_readouts_take_tensors():
    grid = SparseReadoutGrid(7, 7)
    found = fixation_points_to_readout_tokens(torch.from_numpy(ROWS), grid)
    assert found.tolist() == fixation_points_to_readout_tokens(ROWS, grid).tolist()


def test_libraries_do_not_mix():
    with pytest.raises(InvalidInputError, match="image is of torch on cpu, but mask of numpy; move one"):
        apply_image_mask(torch.from_numpy(IMAGE), MASK)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_never_synchronises():
    inputs = [torch.from_numpy(array).cuda() for array in (IMAGE, MASK, ROWS)]
    gather(*inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = gather(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for tensor, expected in zip(found, gather(IMAGE, MASK, ROWS), strict=True):
        assert tensor.is_cuda
        np.testing.assert_allclose(tensor.cpu().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_cupy_gives_what_numpy_gives():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    found = gather(*(cupy.asarray(array) for array in (IMAGE, MASK, ROWS)))
    for array, expected in zip(found, gather(IMAGE, MASK, ROWS), strict=True):
        assert isinstance(array, cupy.ndarray)
        np.testing.assert_allclose(array.get(), expected, rtol=1e-5, atol=1e-6)
