"""The teacher against a search that follows the definition literally, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'autogaze-triton[train]'")

from autogaze_training.cells import GRIDS, LOSS_SCALE, SIDE, TOKENS, UNITS  # noqa: E402
from autogaze_training.oracle import greedy, levels_of  # noqa: E402
from autogaze_training.reconstruction import loss_of, paint, state_errors, unit_errors, views  # noqa: E402

OFFSETS = np.cumsum([0, *(grid * grid for grid in GRIDS)])


def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A frame of blocks and noise, and a canvas that is right in one half of it."""
    random = np.random.RandomState(seed)
    blocks = random.standard_normal((3, 28, 28)).repeat(8, 1).repeat(8, 2)
    frame = blocks * random.rand(1, 14, 14).repeat(16, 1).repeat(16, 2)
    frame = frame + 0.1 * random.standard_normal((3, SIDE, SIDE))
    canvas = np.where(np.arange(SIDE) < SIDE // 2, frame, 0.0)
    return tuple(torch.from_numpy(x.astype(np.float32))[None] for x in (frame, canvas))  # type: ignore[return-value]


def literal_loss(frame: np.ndarray, canvas: np.ndarray, shown: list[np.ndarray], tokens: list[int]) -> float:
    picture = canvas.copy()
    for token in sorted(tokens):
        scale = int(np.searchsorted(OFFSETS, token, side="right")) - 1
        row, column = divmod(token - OFFSETS[scale], GRIDS[scale])
        size = SIDE // GRIDS[scale]
        cell = np.s_[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
        picture[cell] = shown[scale][cell]
    return LOSS_SCALE * float(np.abs(frame - picture).mean())


@pytest.mark.parametrize("seed", range(2))
def test_greedy_equals_brute_force(seed: int) -> None:
    frame, canvas = draw(seed)
    shown = views(frame)
    errors = unit_errors(frame, canvas, shown)
    levels = torch.zeros(1, UNITS * UNITS, dtype=torch.uint8)
    found = greedy(errors, levels, torch.zeros(1, TOKENS, dtype=torch.bool), 6)
    pictures = [view[0].numpy() for view in shown]
    tokens: list[int] = []
    for step in range(6):
        before = literal_loss(frame[0].numpy(), canvas[0].numpy(), pictures, tokens)
        assert found.losses[0, step].item() == pytest.approx(before, abs=1e-4)
        gains = {
            token: before - literal_loss(frame[0].numpy(), canvas[0].numpy(), pictures, [*tokens, token])
            for token in range(TOKENS)
            if token not in tokens
        }
        pick = int(found.ids[0, step])
        assert gains[pick] == pytest.approx(max(gains.values()), abs=1e-4)
        tokens.append(pick)


def test_canvas_shows_what_the_loss_says() -> None:
    frame, canvas = draw(7)
    shown = views(frame)
    ids = torch.tensor([[0, 9, 30, 100, 170, 265]])
    levels = levels_of(ids)
    loss = loss_of(state_errors(unit_errors(frame, canvas, shown), levels))
    painted = paint(canvas, shown, levels)
    assert loss.item() == pytest.approx(LOSS_SCALE * (frame - painted).abs().mean().item(), abs=1e-4)


def test_every_cell_shown_leaves_no_loss() -> None:
    frame, canvas = draw(8)
    shown = views(frame)
    levels = levels_of(torch.arange(69, 265)[None])
    assert loss_of(state_errors(unit_errors(frame, canvas, shown), levels)).item() == 0
