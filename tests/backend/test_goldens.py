"""Token identity with the published model on its recorded runs."""

from __future__ import annotations

import numpy as np
import pytest
from goldens import clips
from goldens.tokens import assert_golden

CASES = [
    "whole_clip",
    "ratio_only",
    "ratio_list",
    "loss_only",
    "loss_always_met",
    "not_square",
    "large_square",
    "row_a",
    "row_b",
    "row_c",
    "single_scale",
    "batch_fixed",
    "target_392_14",
    "target_384_16",
]
# Runs whose every pass is in the output, one row, in order.
PLAIN = [name for name in CASES if name != "batch_fixed" and not name.startswith("target")]


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_published_model(name, golden, model):
    case = golden(name)
    generated = model(case.settings.get("layout", "release")).generate(case.video, **case.knobs)
    assert_golden(generated, case.expected)
    for scale, mask in enumerate(generated.gazing_mask):
        np.testing.assert_array_equal(mask, case.expected[f"gazing_mask_{scale}"])


@pytest.mark.parametrize("name", PLAIN)
def test_task_loss_predictions_match(name, golden, model):
    case = golden(name)
    generated = model(case.settings.get("layout", "release")).generate(case.video, **case.knobs)
    # Upstream recorded every pass in full; a frame's last pass may be cut short by the budget.
    size = case.expected["task_loss_predictions"].shape[2]
    passes = iter(case.expected["task_loss_predictions"][:, 0])
    expected = []
    for slots in generated.num_gazing_each_frame:
        frame = np.concatenate([next(passes) for _ in range(-(-slots // size))])
        expected.append(frame[:slots])
    assert next(passes, None) is None
    np.testing.assert_allclose(generated.task_loss_predictions[0], np.concatenate(expected), atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_encoder_and_first_logits_match(name, golden, model):
    from autogaze_backend.engine import Limits
    from autogaze_backend.preprocessing import resize_to_input

    case = golden(name)
    loaded = model(case.settings.get("layout", "release"))
    engine = loaded.engine
    vision, _ = engine.encode(resize_to_input(case.video, loaded.spec.input_size), None)
    np.testing.assert_allclose(vision[:, 0, ::28], case.expected["embed_first"], atol=1e-4)
    np.testing.assert_allclose(vision[:, -1, ::28], case.expected["embed_last"], atol=1e-4)
    none = np.zeros(1, np.int64)
    slot = engine.open_slot()
    group = engine.prefill(
        np.array([slot]),
        vision[:, 0],
        np.zeros((1, 0), np.int64),
        none,
        none,
        none,
        Limits(np.array([100]), np.array([np.nan], np.float32)),
    )
    engine.close_slot(slot)
    np.testing.assert_allclose(group.logits.reshape(1, -1), case.expected["first_logits"], atol=1e-3)


def test_a_batch_keeps_the_predictions_of_every_row(golden, model):
    case = golden("batch_fixed")
    generated = model().generate(case.video, **case.knobs)
    # Four passes a frame; 39 tokens use the first nine predictions of the last.
    passes = case.expected["task_loss_predictions"].reshape(4, 4, 3, 10)
    expected = passes.transpose(2, 0, 1, 3).reshape(3, 4, 40)[:, :, :39].reshape(3, -1)
    np.testing.assert_allclose(generated.task_loss_predictions, expected, atol=1e-4)


@pytest.mark.parametrize("chunks", [[1] * 6, [2, 3, 1], [6]])
def test_a_stream_gives_the_published_streams_tokens(chunks, golden, model):
    from autogaze_client import AutoGazeGenerateOutput

    case = golden("streaming")
    parts, start = [], 0
    with model().open_stream() as stream:
        for size in chunks:
            parts.append(stream.push(case.video[:, start : start + size], **case.knobs))
            start += size
    joined = AutoGazeGenerateOutput.concatenate(parts)
    assert_golden(joined, case.expected)


def test_confidence_is_the_softmax_among_the_ids_still_free(golden, model):
    from autogaze_backend.engine import Limits

    engine = model("release").engine
    vision, _ = engine.encode(golden("whole_clip").video[:, :1], None)
    none = np.zeros(1, np.int64)
    slot = engine.open_slot()
    group = engine.prefill(
        np.array([slot]),
        vision[:, 0],
        np.zeros((1, 0), np.int64),
        none,
        none,
        none,
        Limits(np.array([100]), np.array([np.nan], np.float32)),
    )
    engine.close_slot(slot)
    free = np.ones(engine.spec.vocab_size, bool)
    free[engine.spec.tokens_per_frame] = False
    for head, chosen in enumerate(group.ids[0]):
        scores = np.where(free, group.logits[0, head].astype(np.float64), -np.inf)
        assert chosen == scores.argmax()
        expected = np.exp(scores[chosen] - scores.max()) / np.exp(scores - scores.max()).sum()
        assert group.confidences[0, head] == pytest.approx(expected, rel=1e-5)
        free[chosen] = False


def test_padding_has_no_confidence_and_the_next_frames_id(golden, model):
    generated = model("release").generate(golden("whole_clip").video, **golden("whole_clip").knobs)
    padded = generated.if_padded_gazing[0]
    assert padded.any()
    assert (generated.confidences[0][padded] == 0).all()
    assert ((generated.confidences[0][~padded] > 0) & (generated.confidences[0][~padded] <= 1)).all()
    n = generated.num_vision_tokens_each_frame
    np.testing.assert_array_equal(generated.gazing_pos[0][padded], n * (generated.frame_of_slot[padded] + 1))


def test_a_batch_with_stops_gives_each_row_what_it_gives_alone(model):
    """Rows end at different groups; the shorter ones are padded and otherwise untouched."""
    loaded = model("release")
    video = np.stack([clips.normalise(clips.synthetic_clip(3, 224, 224, seed)) for seed in (19, 25, 26, 40)])
    knobs = {"gazing_ratio": 0.5, "task_loss_requirement": 0.75}
    together = loaded.generate(video, **knobs)
    for row in range(len(video)):
        alone = loaded.generate(video[row : row + 1], **knobs)
        chosen = ~together.if_padded_gazing[row]
        np.testing.assert_array_equal(
            together.gazing_pos[row][chosen], alone.gazing_pos[0][~alone.if_padded_gazing[0]]
        )
        assert (together.tokens_of_rows[row] == alone.tokens_of_rows[0]).all()
