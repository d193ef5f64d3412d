"""Points and frames of the visualisation tests."""

from __future__ import annotations

import numpy as np
from autogaze_client import FixationPoint


def cell(grid: int, row: int, col: int, confidence: float = 1.0) -> FixationPoint:
    """A cell as the decoder gives it, in float32."""
    x, y, extent = (float(np.float32(value)) for value in ((col + 0.5) / grid, (row + 0.5) / grid, 1 / grid))
    return FixationPoint.with_grid_extent(x, y, extent, extent, confidence, grid)


def box(x: float, y: float, width: float, height: float, grid: int = 0) -> FixationPoint:
    return FixationPoint.with_grid_extent(x, y, width, height, 1.0, grid)


def solid(width: int, height: int, *rgba: int) -> np.ndarray:
    return np.full((height, width, 4), rgba, np.uint8)


def all_cells(*grids: int) -> list[FixationPoint]:
    return [cell(grid, row, col) for grid in grids for row in range(grid) for col in range(grid)]


def checkerboard(grid: int) -> list[FixationPoint]:
    return [cell(grid, row, col) for row in range(grid) for col in range(grid) if (row + col) % 2 == 0]


def random_cells(rng: np.random.Generator, count: int) -> np.ndarray:
    """float32 [n, 6], decoder cells, some repeated, some padding."""
    grid = rng.choice([2, 4, 7, 14], count)
    cells = np.column_stack(
        [
            (rng.integers(0, grid) + 0.5) / grid,
            (rng.integers(0, grid) + 0.5) / grid,
            1 / grid,
            1 / grid,
            rng.random(count) > 0.1,
            grid,
        ]
    )
    return cells.astype(np.float32)


def normalised(frame: np.ndarray) -> np.ndarray:
    """uint8 RGBA [H, W, 4] as the processor's float32 [1, 1, 3, H, W]."""
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    values = (frame[..., :3].astype(np.float32) / np.float32(127.5) - 1 - mean) / std
    return values.transpose(2, 0, 1)[None, None].astype(np.float32)


def as_bytes(unit) -> np.ndarray:
    """Unit RGBA of any library as bytes."""
    return np.floor(np.asarray(unit, np.float32) * 255 + 0.5).astype(np.uint8)
