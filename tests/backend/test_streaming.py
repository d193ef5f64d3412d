from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from autogaze_client import AutoGazeGenerateOutput, InvalidInputError
from goldens import clips
from safetensors.numpy import load_file

from backend.reference import Float64Stream

STOP = {"gazing_ratio": 0.75, "task_loss_requirement": 0.7}


def clip(frames: int, seed: int) -> np.ndarray:
    return clips.normalise(clips.synthetic_clip(frames, 224, 224, seed))[None]


def slots(generated: AutoGazeGenerateOutput) -> list[int]:
    """A one-frame output's ids, padding as N."""
    return np.where(generated.if_padded_gazing[0], 265, generated.gazing_pos[0]).tolist()


@pytest.mark.parametrize("chunks", [[1] * 16, [5, 1, 7, 3], [16]], ids=str)
def test_up_to_the_horizon_a_stream_is_the_whole_clip(chunks, model):
    video = clip(16, 31)
    whole = model().generate(video, **STOP)
    parts, start = [], 0
    with model().open_stream() as stream:
        for size in chunks:
            parts.append(stream.push(video[:, start : start + size], **STOP))
            start += size
        assert stream.processed_frames == stream.active_frames == 16
    joined = AutoGazeGenerateOutput.concatenate(parts)
    np.testing.assert_array_equal(joined.gazing_pos, whole.gazing_pos)
    np.testing.assert_array_equal(joined.if_padded_gazing, whole.if_padded_gazing)
    np.testing.assert_array_equal(joined.task_loss_predictions, whole.task_loss_predictions)


def test_streams_stepped_together_equal_streams_stepped_alone(model):
    loaded = model()
    videos = [clip(4, seed) for seed in (41, 42, 43)]
    alone = []
    for video in videos:
        with loaded.open_stream(horizon=2) as stream:
            alone.append([slots(stream.step(video[:, t], **STOP)) for t in range(4)])
    streams = [loaded.open_stream(horizon=2) for _ in videos]
    together: list[list[list[int]]] = [[] for _ in videos]
    for t in range(4):
        # They need not all have a frame each time, nor come in one order.
        order = [2, 0, 1] if t % 2 else [0, 1, 2]
        outputs = loaded.step_streams([(streams[i], videos[i][:, t]) for i in order], **STOP)
        for i, output in zip(order, outputs, strict=True):
            together[i].append(slots(output))
    assert together == alone


def bound_weights(model) -> dict[str, np.ndarray]:
    return load_file(Path(model.bundle.weights))


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_past_the_horizon_the_tokens_are_those_of_a_float64_recomputation(horizon, model):
    loaded = model()
    video = clip(7, 51)
    vision, _ = loaded.engine.encode(video[0][None], None)
    reference = Float64Stream(loaded.spec, bound_weights(loaded), horizon)
    with loaded.open_stream(horizon=horizon) as stream:
        for t in range(7):
            generated = stream.step(video[:, t], **STOP)
            ids, losses = reference.run_frame(vision[0, t], 198, 0.7)
            assert slots(generated) == ids
            np.testing.assert_allclose(generated.task_loss_predictions[0], losses, atol=1e-4)
            assert stream.active_frames == min(t + 1, horizon)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.long
def test_ten_thousand_frames_hold_memory_flat_and_lose_no_precision(model):
    """Positions pass two million; a key's rotation depends on its distance, which float32 angles would lose.

    The last frames are recomputed in float64 from 4 × horizon frames before: a key of layer l depends on
    the l × (horizon − 1) frames before its own, so by then nothing of the unknown past is left.
    """
    loaded = model()
    horizon, frames, knobs = 2, 10_000, {"max_gaze_tokens_each_frame": 12}
    random = np.random.default_rng(0)
    pool = [random.standard_normal((1, 3, 224, 224)).astype(np.float32) for _ in range(7)]
    tail = loaded.spec.num_layers * horizon + 3
    position, pending, ids = 0, [], []
    recorded: list[tuple[int, list[int], AutoGazeGenerateOutput]] = []
    state = None
    with loaded.open_stream(horizon=horizon) as stream:
        for t in range(frames):
            if t >= frames - tail:
                recorded.append((position, pending, None))
                if state is None:
                    state = stream._encoder_state
            generated = stream.step(pool[t % len(pool)], **knobs)
            if recorded:
                recorded[-1] = (*recorded[-1][:2], generated)
            ids = slots(generated)
            # 196 vision tokens, the group left over from before, and all groups but the last.
            position += 196 + len(pending) + 10
            pending = [token for token in ids[10:] if token != 265]
            if t == 100:
                early_capacity, early_bytes = (
                    loaded.engine._slots[stream._progress.row.slot].capacity,
                    resident_bytes(),
                )
        assert loaded.engine._slots[stream._progress.row.slot].capacity == early_capacity
        assert resident_bytes() - early_bytes < 16 * 2**20
        assert stream.processed_frames == frames
        assert position > 2_000_000
    vision, _ = loaded.engine.encode(
        np.stack([pool[t % len(pool)][0] for t in range(frames - tail, frames)])[None], state
    )
    start, left, _ = recorded[0]
    reference = Float64Stream(
        loaded.spec, bound_weights(loaded), horizon, frame=frames - tail, position=start, pending=left
    )
    for index, (_, _, generated) in enumerate(recorded):
        found = slots(generated)
        ids, losses = reference.run_frame(vision[0, index], 12, -1.0, forced=found)
        if index >= tail - 3:
            assert found == ids
            np.testing.assert_allclose(generated.task_loss_predictions[0], losses, atol=1e-4)


def test_reset_starts_anew(model):
    video = clip(2, 61)
    with model().open_stream() as stream:
        first = slots(stream.step(video[:, 0], **STOP))
        second = slots(stream.step(video[:, 1], **STOP))
        stream.reset()
        assert stream.processed_frames == 0
        assert slots(stream.step(video[:, 0], **STOP)) == first
        assert slots(stream.step(video[:, 1], **STOP)) == second


def test_knobs_may_change_from_frame_to_frame(model):
    video = clip(3, 62)
    whole = model().generate(video, gazing_ratio=[0.1, 0.02, 0.3])
    with model().open_stream() as stream:
        parts = [stream.step(video[:, t], gazing_ratio=ratio) for t, ratio in enumerate([0.1, 0.02, 0.3])]
    np.testing.assert_array_equal(AutoGazeGenerateOutput.concatenate(parts).gazing_pos, whole.gazing_pos)


def test_a_bad_frame_leaves_the_stream_as_it_was(model):
    video = clip(2, 63)
    with model().open_stream() as stream:
        stream.step(video[:, 0], **STOP)
        for frame, knobs in [
            (video[:, 1, :2], STOP),
            (np.full_like(video[:, 1], np.nan), STOP),
            (video[:, 1], {"gazing_ratio": 7}),
            (video[:, :2], STOP),
        ]:
            with pytest.raises(InvalidInputError):
                stream.step(frame, **knobs)
        after = slots(stream.step(video[:, 1], **STOP))
    whole = model().generate(video, **STOP)
    start = int(whole.num_gazing_each_frame[0])
    assert [token if token != 265 else None for token in after] == [
        None if padded else int(token) - 265
        for token, padded in zip(whole.gazing_pos[0, start:], whole.if_padded_gazing[0, start:], strict=True)
    ]


def test_misused_streams_say_so(model):
    loaded = model()
    frame = clip(1, 64)[:, 0]
    stream = loaded.open_stream()
    with pytest.raises(InvalidInputError, match="named twice"):
        loaded.step_streams([(stream, frame), (stream, frame)], **STOP)
    with pytest.raises(InvalidInputError, match="horizon is 0"):
        loaded.open_stream(horizon=0)
    with pytest.raises(InvalidInputError, match="2 rows"):
        stream.push(np.repeat(clip(1, 64), 2, axis=0), **STOP)
    stream.close()
    with pytest.raises(InvalidInputError, match="closed"):
        stream.step(frame, **STOP)


def test_an_engine_failure_is_not_passed_over(model, monkeypatch):
    """What the cache holds after a failed call is unknown, so the stream refuses to go on until reset."""
    loaded = model()
    stream = loaded.open_stream()
    frame = clip(1, 65)[:, 0]

    def fail(*args, **kwargs):
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(loaded.engine, "prefill", fail)
        with pytest.raises(RuntimeError, match="device lost"):
            stream.step(frame, **STOP)
    with pytest.raises(InvalidInputError, match=r"call reset\(\)"):
        stream.step(frame, **STOP)
    stream.reset()
    assert stream.step(frame, **STOP).tokens_of_rows.sum() > 0
