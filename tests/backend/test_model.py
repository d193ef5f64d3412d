from __future__ import annotations

import shutil

import numpy as np
import pytest
from autogaze_backend import Bundle, GazeModel
from autogaze_client import CheckpointError, InvalidInputError, NotFoundError
from goldens import clips


def clip(frames: int, seed: int = 1) -> np.ndarray:
    return clips.normalise(clips.synthetic_clip(frames, 224, 224, seed))[None]


def test_more_tokens_than_ids_ends_by_exhaustion(model):
    """265 = 26 groups of ten and one of five; every id is chosen exactly once."""
    generated = model().generate(clip(1), max_gaze_tokens_each_frame=400)
    assert generated.num_gazing_each_frame.tolist() == [265]
    assert sorted(generated.gazing_pos[0].tolist()) == list(range(265))


def test_a_long_clip_is_encoded_in_pieces_with_the_same_tokens(model, monkeypatch):
    whole = model().generate(clip(7), gazing_ratio=0.1)
    monkeypatch.setattr("autogaze_backend.scheduling.ENCODE_FRAMES", 3)
    pieces = model().generate(clip(7), gazing_ratio=0.1)
    np.testing.assert_array_equal(whole.gazing_pos, pieces.gazing_pos)


def rows_of(loaded, lengths: list[int]):
    from autogaze_backend.budgets import resolve_budget

    return [
        loaded.row(clip(n, seed)[0], resolve_budget(loaded.spec, n, gazing_ratio=0.02 * (seed + 1)))
        for seed, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("together", [1, 3])
def test_rows_of_different_length_and_budget_keep_their_own_tokens(together, model, monkeypatch):
    from autogaze_backend.outputs import assemble

    loaded = model()
    monkeypatch.setattr(type(loaded.engine), "preferred_rows", property(lambda engine: together))
    lengths = [2, 3, 1, 3, 2]
    results = dict(loaded.generate_rows(rows_of(loaded, lengths)))
    assert sorted(results) == [0, 1, 2, 3, 4]
    for seed, tokens in results.items():
        alone = loaded.generate(clip(lengths[seed], seed), gazing_ratio=0.02 * (seed + 1))
        np.testing.assert_array_equal(assemble(loaded.spec, [tokens]).gazing_pos, alone.gazing_pos)


@pytest.mark.parametrize("together", [1, 3])
def test_a_row_that_fails_in_the_engine_fails_alone(together, model, monkeypatch):
    loaded = model()
    monkeypatch.setattr(type(loaded.engine), "preferred_rows", property(lambda engine: together))
    rows = rows_of(loaded, [1, 1, 1])

    def explode(start, stop):
        raise MemoryError("no room for this one")

    rows[1] = type(rows[1])(1, explode, rows[1].budget)
    results = dict(loaded.generate_rows(rows))
    assert isinstance(results[1], MemoryError)
    assert isinstance(results[0], list)
    assert isinstance(results[2], list)


def test_a_cancelled_row_stops_between_calls(model):
    from autogaze_client import RequestCancelledError

    loaded = model()
    asked = []

    def cancelled(index):
        asked.append(index)
        return index == 0 and asked.count(0) > 3

    results = dict(loaded.generate_rows(rows_of(loaded, [10, 2]), cancelled=cancelled))
    assert isinstance(results[0], RequestCancelledError)
    assert asked.count(0) == 4, "it went on after the caller had gone"
    assert len(results[1]) == 2


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((1, 3, 224, 224), np.float32), r"pass \[B, T, 3, H, W\]"),
        (np.zeros((1, 1, 4, 8, 8), np.float32), r"pass \[B, T, 3, H, W\]"),
        (np.zeros((1, 0, 3, 8, 8), np.float32), "at least 1"),
        (np.zeros((1, 1, 3, 8, 8), np.float64), "float64; pass float32"),
        (np.full((1, 1, 3, 8, 8), np.nan, np.float32), "NaN"),
    ],
)
def test_bad_video_is_refused(video, message, model):
    with pytest.raises(InvalidInputError, match=message):
        model().generate(video, gazing_ratio=0.5)


def test_an_unknown_device_is_refused(bundle):
    with pytest.raises(InvalidInputError, match="'cpu'"):
        GazeModel.load(bundle(), device="tpu")


def test_no_bundle_names_the_command(tmp_path):
    with pytest.raises(NotFoundError, match="autogaze build"):
        GazeModel.load(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "step.onnx"])
def test_a_changed_file_is_refused(name, bundle, tmp_path):
    broken = shutil.copytree(bundle(), tmp_path / "bundle")
    content = bytearray((broken / name).read_bytes())
    content[len(content) // 2] ^= 1
    (broken / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} has SHA-256"):
        Bundle.load(broken)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no valid JSON"),
        ("[]", "format None"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1}', "damaged"),
    ],
)
def test_a_broken_manifest_is_refused(content, message, bundle, tmp_path):
    broken = shutil.copytree(bundle(), tmp_path / "bundle")
    (broken / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Bundle.load(broken)


def test_a_manifest_cannot_name_files_outside_the_bundle(bundle, tmp_path):
    broken = shutil.copytree(bundle(), tmp_path / "bundle")
    shutil.copy(broken / "weights.safetensors", tmp_path)
    manifest = (
        (broken / "manifest.json").read_text().replace('"weights.safetensors"', '"../weights.safetensors"')
    )
    (broken / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match="outside the bundle"):
        Bundle.load(broken)
