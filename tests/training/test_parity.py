"""Training must run the model exactly as serving does, or the weights learn for another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'autogaze-triton[train]'")

from autogaze_backend import GazeModel  # noqa: E402
from autogaze_export import build, load_checkpoint  # noqa: E402
from autogaze_training.checkpoint import write_checkpoint  # noqa: E402
from autogaze_training.lessons import Limits, correct  # noqa: E402
from autogaze_training.model import GazeNetwork, rotary  # noqa: E402
from autogaze_training.rollout import choose  # noqa: E402
from autogaze_training.sequence import assemble  # noqa: E402

SLOTS = 40


@pytest.fixture(scope="module")
def network() -> GazeNetwork:
    network = GazeNetwork()
    network.initialise(5)
    with torch.no_grad():
        # Predictions that cross any threshold, so that frames stop at varied places.
        network.gazing_model.gaze_decoder.task_loss_prediction_head.weight.mul_(30)
    return network.eval()


@pytest.fixture(scope="module")
def served(network: GazeNetwork, tmp_path_factory: pytest.TempPathFactory) -> GazeModel:
    folder = tmp_path_factory.mktemp("trained")
    write_checkpoint(network, folder / "checkpoint", half=False)
    return GazeModel.load(build(folder / "checkpoint", folder / "bundle"))


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    drawn = np.random.RandomState(3).standard_normal((2, 3, 3, 28, 28)).repeat(8, -1).repeat(8, -2)
    return torch.from_numpy(drawn.astype(np.float32))


def limits(requirement: float, cap: int, rows: int = 2) -> Limits:
    return Limits(torch.full((rows,), requirement), torch.full((rows,), cap))


@pytest.mark.parametrize(("requirement", "cap"), [(None, 25), (None, 30), (0.05, 40), (0.3, 40), (9.0, 40)])
def test_rollout_equals_serving(
    network: GazeNetwork, served: GazeModel, frames: torch.Tensor, requirement: float | None, cap: int
) -> None:
    path, _, _ = choose(network, frames, limits(-1e9 if requirement is None else requirement, cap), SLOTS)
    found = served.generate(frames.numpy(), max_gaze_tokens_each_frame=cap, task_loss_requirement=requirement)
    starts = np.cumsum([0, *found.num_gazing_each_frame])
    for row in range(2):
        for time in range(3):
            block = slice(starts[time], starts[time + 1])
            valid = ~found.if_padded_gazing[row, block]
            expected = found.gazing_pos[row, block][valid] - 265 * time
            ours = path.ids[row, time, : path.counts[row, time]]
            assert ours.tolist() == expected.tolist()


def test_teacher_forced_pass_equals_rollout(network: GazeNetwork, frames: torch.Tensor) -> None:
    """One causal pass over the laid-out clip picks what step-by-step generation picked."""
    path, picks, losses = choose(network, frames, limits(0.3, SLOTS), SLOTS)
    assert len(set(path.counts.flatten().tolist())) > 1
    lesson = correct(frames, path, picks, 3 * (196 + SLOTS))
    with torch.no_grad():
        x = assemble(network.encode(frames), network.embed(path.ids), lesson.layout.source)
        cos, sin = rotary(lesson.layout.positions)
        for layer in network.layers:
            x = layer(x, cos, sin)
        _, predicted = network.heads(x[lesson.row, lesson.readout])
    row, time, group = lesson.layout.readout_valid.nonzero(as_tuple=True)
    stepwise = losses.unflatten(2, (-1, 10))[row, time, group]
    torch.testing.assert_close(predicted, stepwise, atol=2e-3, rtol=2e-3)


def test_checkpoint_loads_strictly(network: GazeNetwork, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(network, tmp_path))
    assert checkpoint.stored_dtype == "F16"
    assert checkpoint.spec.tokens_per_frame == 265
    assert checkpoint.spec.group_size == 10
    assert len(checkpoint.tensors) == 49
    assert (tmp_path / "model.safetensors").stat().st_size < 7_000_000
