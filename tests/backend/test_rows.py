"""A row's result depends on that row alone, whatever shares its batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from goldens import clips
from hypothesis import given, settings
from hypothesis import strategies as st

STOP = {"gazing_ratio": 0.75, "task_loss_requirement": 0.7}


def chosen(generated, row: int) -> list[int]:
    return generated.gazing_pos[row][~generated.if_padded_gazing[row]].tolist()


@pytest.fixture(params=[1, 2, 8], ids=lambda rows: f"batches of {rows}")
def batched(request, model, monkeypatch):
    """The model with an engine that asks for batches of so many rows."""
    loaded = model()
    monkeypatch.setattr(type(loaded.engine), "preferred_rows", property(lambda engine: request.param))
    return loaded


@pytest.mark.parametrize("order", list(itertools.permutations("abc")), ids="".join)
def test_the_recorded_rows_come_out_the_same_in_one_batch(order, batched, golden):
    cases = [golden(f"row_{name}") for name in order]
    generated = batched.generate(np.concatenate([case.video for case in cases]), **STOP)
    for row, case in enumerate(cases):
        alone = case.expected["gazing_pos"][0][~case.expected["if_padded_gazing"][0]]
        assert chosen(generated, row) == alone.tolist()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_batches_equal_their_rows_alone(data, model):
    loaded = model()
    rows = data.draw(st.integers(1, 8), label="rows")
    frames = data.draw(st.integers(1, 3), label="frames")
    seeds = data.draw(st.lists(st.integers(0, 10_000), min_size=rows, max_size=rows), label="clip seeds")
    threshold = data.draw(st.floats(0.5, 1.2), label="threshold")
    ratio = data.draw(st.floats(0.02, 0.4), label="ratio")
    together = data.draw(st.integers(1, 8), label="rows a batch")
    video = np.stack([clips.normalise(clips.synthetic_clip(frames, 224, 224, seed)) for seed in seeds])
    knobs = {"gazing_ratio": ratio, "task_loss_requirement": threshold}
    alone = [chosen(loaded.generate(video[row : row + 1], **knobs), 0) for row in range(rows)]
    engine = type(loaded.engine)
    original = engine.preferred_rows
    engine.preferred_rows = property(lambda self: together)
    try:
        order = data.draw(st.permutations(range(rows)), label="order")
        generated = loaded.generate(video[order], **knobs)
    finally:
        engine.preferred_rows = original
    for row, source in enumerate(order):
        assert chosen(generated, row) == alone[source]


def test_tiles_of_a_target_scale_clip_equal_each_tile_alone(batched):
    """With a stop, where the published model couples the tiles."""
    from autogaze_backend.adaptation import resolve_target_scales

    target = resolve_target_scales(batched.spec, [56, 112, 196, 392], 14)
    video = clips.normalise(clips.synthetic_clip(2, 392, 392, 22))[None]
    stitched = batched.generate(video, target_scales=[56, 112, 196, 392], target_patch_size=14, **STOP)
    masks = [np.zeros((2, grid, grid)) for grid in target.grids]
    for index, tile in enumerate(target.cut(video)):
        alone = batched.generate(tile[None], **STOP)
        for mask, own, layout in zip(masks, alone.gazing_mask, batched.spec.scale_layouts, strict=True):
            down, across = divmod(index, target.tiles)
            g = layout.grid
            mask[:, down * g : (down + 1) * g, across * g : (across + 1) * g] = own[0].reshape(2, g, g)
    for mask, found in zip(masks, stitched.gazing_mask, strict=True):
        np.testing.assert_array_equal(found[0], mask.reshape(2, -1))
    assert len({int(count) for count in stitched.tokens_of_rows[0]}) > 1, "the stop never acted"


def test_adapted_confidences_and_losses_follow_their_cells(model):
    loaded = model()
    video = clips.normalise(clips.synthetic_clip(1, 384, 384, 23))[None]
    knobs = {"gazing_ratio": 0.1, "target_scales": [48, 96, 192, 384], "target_patch_size": 16}
    stitched = loaded.generate(video, **knobs)
    from autogaze_backend.adaptation import resolve_target_scales

    target = resolve_target_scales(loaded.spec, knobs["target_scales"], 16)
    first = loaded.generate(target.cut(video)[:1], gazing_ratio=0.1)
    # Cell (3, 5) of the first tile's finest grid is cell (3, 5) of the target's.
    found = dict(
        zip(
            stitched.gazing_pos[0].tolist(),
            zip(stitched.confidences[0], stitched.task_loss_predictions[0], strict=True),
            strict=True,
        )
    )
    checked = 0
    for position, confidence, loss in zip(
        first.gazing_pos[0], first.confidences[0], first.task_loss_predictions[0], strict=True
    ):
        if position < 69:
            continue
        row, column = divmod(int(position) - 69, 14)
        assert found[9 + 36 + 144 + row * 24 + column] == (confidence, loss)
        checked += 1
    assert checked > 3


@pytest.mark.parametrize(
    ("scales", "patch", "message"),
    [
        ([56, 112, 392], 14, "the model has 4 scales"),
        ([56, 112, 392, 196], 14, "must ascend"),
        ([8, 112, 196, 392], 14, "from at least one patch"),
        ([56, 112, 196, 393], 14, "last scale must be a multiple|393"),
        (None, 14, "pass both or neither"),
        ([56, 112, 196, 392], None, "pass both or neither"),
    ],
)
def test_bad_targets_are_refused(scales, patch, message, model):
    from autogaze_client import InvalidInputError

    video = np.zeros((1, 1, 3, 392, 392), np.float32)
    with pytest.raises(InvalidInputError, match=message):
        model().generate(video, gazing_ratio=0.1, target_scales=scales, target_patch_size=patch)


def test_the_models_own_scales_need_no_adaptation(model):
    video = clips.normalise(clips.synthetic_clip(1, 224, 224, 3))[None]
    plain = model().generate(video, gazing_ratio=0.1)
    same = model().generate(video, gazing_ratio=0.1, target_scales=[32, 64, 112, 224], target_patch_size=16)
    np.testing.assert_array_equal(plain.gazing_pos, same.gazing_pos)
