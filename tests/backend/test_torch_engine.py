"""The torch engine on a CPU: the published model's tokens, and the ONNX Runtime engine's streams and logits."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_backend.engine import Limits
from autogaze_backend.generation import FrameLimits, RowState, generate_frames
from autogaze_client import AutoGazeGenerateOutput, InvalidInputError, ServerUnavailableError
from goldens import clips
from goldens.tokens import assert_golden

torch = pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")

pytestmark = pytest.mark.usefixtures("one_torch_thread")

STOP = {"gazing_ratio": 0.2, "task_loss_requirement": 0.75}
CASES = ["loss_only", "ratio_only", "row_a", "batch_fixed", "single_scale", "target_392_14"]


def video(frames: int, seed: int) -> np.ndarray:
    return clips.normalise(clips.synthetic_clip(frames, 224, 224, seed))


def slots(generated: AutoGazeGenerateOutput) -> list[int]:
    """A one-frame output's ids, padding as N."""
    return np.where(generated.if_padded_gazing[0], 265, generated.gazing_pos[0]).tolist()


def is_empty(engine) -> bool:
    """Whether no slot and no page of the engine is in use."""
    taken = [engine.open_slot() for _ in range(engine.max_slots)]
    for slot in taken[1:]:
        engine.close_slot(slot)
    engine.close_slot(taken[0])
    return pool_positions(engine) == 64 * engine._sizes.pages


def pool_positions(engine) -> int:
    """Positions that all pages together hold."""
    positions = 1
    while engine.can_hold(2 * positions):
        positions *= 2
    step = positions
    while step := step // 2:
        if engine.can_hold(positions + step):
            positions += step
    return positions


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_published_model(name, golden, torch_model):
    case = golden(name)
    generated = torch_model(case.settings.get("layout", "release")).generate(case.video, **case.knobs)
    assert_golden(generated, case.expected)
    for scale, mask in enumerate(generated.gazing_mask):
        np.testing.assert_array_equal(mask, case.expected[f"gazing_mask_{scale}"])


def test_predictions_and_confidences_are_those_of_onnx_runtime(golden, torch_model, model):
    case = golden("row_a")
    found, expected = (one.generate(case.video, **case.knobs) for one in (torch_model(), model()))
    np.testing.assert_allclose(found.task_loss_predictions, expected.task_loss_predictions, atol=1e-4)
    np.testing.assert_allclose(found.confidences, expected.confidences, atol=1e-4)


def test_the_encoder_is_onnx_runtimes_and_goes_on_from_its_state(torch_model, model):
    """Windows shorter than the convolution reaches, after each other, are the whole clip."""
    clip = video(4, 70)[None]
    expected, expected_state = model().engine.encode(clip, None)
    engine = torch_model().engine
    state, parts = None, []
    for part in (clip[:, :1], clip[:, 1:2], clip[:, 2:]):
        tokens, state = engine.encode(part, state)
        parts.append(tokens)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-4)
    # Channels last there.
    planes = np.moveaxis(state, -1, -2).reshape(expected_state.shape)
    np.testing.assert_allclose(planes, expected_state, atol=1e-4)


def recorded(engine, frames, monkeypatch):
    """Runs two frames of two rows by the engine's own calls; the logits of each call, and the tokens."""
    logits = []
    rows = [RowState(engine.open_slot()) for _ in frames]
    with monkeypatch.context() as patch:
        for name in ("prefill", "step"):
            call = getattr(engine, name)

            def record(*args, call=call):
                group = call(*args)
                logits.append(group.logits)
                return group

            patch.setattr(engine, name, record)
        vision, _ = engine.encode(frames, None)
        limits = [FrameLimits(25, None), FrameLimits(33, 0.75)]
        tokens = [generate_frames(engine, rows, vision[:, t], limits) for t in range(frames.shape[1])]
    for row in rows:
        engine.close_slot(row.slot)
    return logits, [[frame.arrays()[0].tolist() for frame in frames] for frames in tokens]


def test_calls_that_the_host_drives_give_onnx_runtimes_logits(torch_model, model, monkeypatch):
    frames = np.stack([video(2, 71), video(2, 72)])
    found, tokens = recorded(torch_model().engine, frames, monkeypatch)
    expected, expected_tokens = recorded(model().engine, frames, monkeypatch)
    assert tokens == expected_tokens
    assert len(found) == len(expected) > 4
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_moved_position_is_seen_at_its_new_place(torch_model):
    """Attention does not depend on the order of the keys: two orders of one cache choose alike."""
    engine = torch_model().engine
    vision, _ = engine.encode(video(1, 73)[None], None)
    limits = Limits(np.array([50]), np.array([np.nan], np.float32))
    none = np.zeros(1, np.int64)
    results = []
    for turned in (False, True):
        slot = engine.open_slot()
        first = engine.prefill(
            np.array([slot]), vision[:, 0], np.zeros((1, 0), np.int64), none, none, none, limits
        )
        if turned:
            # Across pages: positions 60 to 67 leave, and those of the end take their places.
            engine.move(slot, np.arange(188, 196), np.arange(60, 68))
        length = 188 if turned else 196
        positions = np.arange(186, 196)[None]
        results.append(engine.step(np.array([slot]), first.ids, positions, np.array([length]), limits).logits)
        engine.close_slot(slot)
    whole, moved = results
    assert np.abs(whole - moved).max() > 1e-3
    # The same eight keys left out by running without them in the middle: move the end there and back.
    slot = engine.open_slot()
    first = engine.prefill(
        np.array([slot]), vision[:, 0], np.zeros((1, 0), np.int64), none, none, none, limits
    )
    engine.move(slot, np.arange(68, 196), np.arange(60, 188))
    shifted = engine.step(
        np.array([slot]), first.ids, np.arange(186, 196)[None], np.array([188]), limits
    ).logits
    engine.close_slot(slot)
    np.testing.assert_allclose(shifted, moved, atol=1e-4)


@pytest.mark.parametrize("chunks", [[1] * 6, [2, 3, 1]], ids=str)
def test_a_stream_gives_the_published_streams_tokens(chunks, golden, torch_model):
    case = golden("streaming")
    parts, start = [], 0
    with torch_model().open_stream() as stream:
        for size in chunks:
            parts.append(stream.push(case.video[:, start : start + size], **case.knobs))
            start += size
        assert stream.processed_frames == stream.active_frames == 6
    joined = AutoGazeGenerateOutput.concatenate(parts)
    np.testing.assert_array_equal(joined.gazing_pos, case.expected["gazing_pos"])
    np.testing.assert_array_equal(joined.if_padded_gazing, case.expected["if_padded_gazing"])


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_a_stream_past_its_horizon_is_onnx_runtimes(horizon, torch_model, model):
    clip = video(5, 74)
    with torch_model().open_stream(horizon=horizon) as here, model().open_stream(horizon=horizon) as there:
        for frame in clip:
            ours, theirs = here.step(frame[None], **STOP), there.step(frame[None], **STOP)
            assert slots(ours) == slots(theirs)
            np.testing.assert_allclose(ours.task_loss_predictions, theirs.task_loss_predictions, atol=1e-4)
            assert here.active_frames == there.active_frames


def test_streams_stepped_together_equal_streams_stepped_alone(torch_model):
    """More streams than a call takes, of different horizons, in another order each time."""
    loaded = torch_model(slots=4, rows=2)
    kinds = [(75, 1), (76, 2), (77, 16)]
    clips_of = [video(3, seed) for seed, _ in kinds]
    alone = []
    for clip, (_, horizon) in zip(clips_of, kinds, strict=True):
        with loaded.open_stream(horizon=horizon) as stream:
            alone.append([slots(stream.step(frame[None], **STOP)) for frame in clip])
    streams = [loaded.open_stream(horizon=horizon) for _, horizon in kinds]
    together: list[list[list[int]]] = [[] for _ in streams]
    for t, order in enumerate(([0, 1, 2], [2, 0, 1], [1, 2, 0])):
        outputs = loaded.step_streams([(streams[i], clips_of[i][t][None]) for i in order], **STOP)
        for i, output in zip(order, outputs, strict=True):
            together[i].append(slots(output))
    for stream in streams:
        stream.close()
    assert together == alone


def test_reset_starts_anew(torch_model):
    clip = video(2, 78)
    with torch_model().open_stream() as stream:
        first = [slots(stream.step(frame[None], **STOP)) for frame in clip]
        stream.reset()
        assert stream.processed_frames == 0
        assert [slots(stream.step(frame[None], **STOP)) for frame in clip] == first


def test_a_long_stream_holds_no_more_than_its_horizon(torch_model, model):
    """The pool holds four frames and the stream runs for twelve: what leaves its cache is used again."""
    loaded = torch_model(slots=2, rows=2, max_positions=640)
    knobs = {"max_gaze_tokens_each_frame": 12}
    clip = video(3, 79)
    with loaded.open_stream(horizon=2) as here, model().open_stream(horizon=2) as there:
        left = []
        for t in range(12):
            frame = clip[t % 3][None]
            assert slots(here.step(frame, **knobs)) == slots(there.step(frame, **knobs))
            left.append(pool_positions(loaded.engine))
        assert min(left[3:]) >= left[2] - 2 * 64
    assert is_empty(loaded.engine)


def test_a_stream_that_needs_more_than_a_slot_holds_says_so(torch_model):
    loaded = torch_model(slots=2, rows=2, max_positions=640)
    frame = video(1, 80)
    with loaded.open_stream(horizon=16) as stream:
        for _ in range(3):
            stream.step(frame, max_gaze_tokens_each_frame=10)
        with pytest.raises(ServerUnavailableError, match="more than the 640 of one slot"):
            stream.step(frame, max_gaze_tokens_each_frame=10)
        with pytest.raises(InvalidInputError, match=r"call reset\(\)"):
            stream.step(frame, max_gaze_tokens_each_frame=10)
        stream.reset()
        assert stream.step(frame, max_gaze_tokens_each_frame=10).tokens_of_rows.sum() == 10
    assert is_empty(loaded.engine)


def test_slots_are_counted(torch_model):
    engine = torch_model(slots=3, rows=2).engine
    taken = [engine.open_slot() for _ in range(3)]
    assert len(set(taken)) == 3
    with pytest.raises(ServerUnavailableError, match=r"all 3 slots are in use.*AUTOGAZE_SLOTS"):
        engine.open_slot()
    for slot in taken:
        engine.close_slot(slot)
    assert is_empty(engine)


def test_what_a_row_left_in_a_slot_is_not_seen_by_the_next(torch_model):
    """One slot: a stream's second frame, then another stream's first."""
    loaded = torch_model(slots=1, rows=1)
    frames = video(2, 81)
    with loaded.open_stream() as stream:
        expected = slots(stream.step(frames[:1], **STOP))
    with loaded.open_stream() as stream:
        stream.push(frames[None], gazing_ratio=0.5)
    with loaded.open_stream() as stream:
        assert slots(stream.step(frames[:1], **STOP)) == expected
