"""The cells that a token reveals, as tables over units of 8×8 pixels.

Scales of 32, 64, 112 and 224 pixels have cells of 112, 56, 32 and 16 pixels on the 224-pixel frame; 8 is
the largest square that tiles them all, so a frame is 28×28 units and every rule works on units.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SIDE = 224
SCALES = (32, 64, 112, 224)
GRIDS = (2, 4, 7, 14)
TOKENS = sum(grid * grid for grid in GRIDS)
PADDING = TOKENS
GROUP = 10
UNIT = 8
UNITS = SIDE // UNIT
# Loss = LOSS_SCALE · mean |frame − canvas| on normalised pixels; training/DATA.md says how it was chosen.
LOSS_SCALE = 4.0


@lru_cache(maxsize=4)
def cover_levels(device: torch.device) -> Tensor:
    """uint8 ``[TOKENS + 1, UNITS²]``: 0 where the token does not reach, else 1 to 4, coarse to fine.

    The last row, of the padding id, reaches nothing.
    """
    rows = []
    for level, grid in enumerate(GRIDS, start=1):
        size = UNITS // grid
        for cell in range(grid * grid):
            plane = torch.zeros(UNITS, UNITS, dtype=torch.uint8)
            y, x = cell // grid * size, cell % grid * size
            plane[y : y + size, x : x + size] = level
            rows.append(plane.flatten())
    rows.append(torch.zeros(UNITS * UNITS, dtype=torch.uint8))
    return torch.stack(rows).to(device)


@lru_cache(maxsize=4)
def gain_matrix(device: torch.device) -> Tensor:
    """float32 ``[4·UNITS², TOKENS]``: sums what each level would gain in each unit over each token's cell."""
    cover = cover_levels(device)[:TOKENS]
    return torch.cat([(cover == level).T for level in range(1, len(GRIDS) + 1)]).float()
