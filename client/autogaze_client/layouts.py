"""How the token ids of a frame divide into scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autogaze_client._errors import InvalidInputError


@dataclass(frozen=True)
class AutoGazeScaleTokenLayout:
    """One scale of the vocabulary: ``token_count`` ids, row-major on ``grid`` x ``grid`` cells."""

    token_count: int
    grid: int


def square_grid(count: int) -> int:
    """The side of the square that ``count`` cells fill best: max(1, round(√count)) (spec: readout §2)."""
    return max(1, math.floor(math.sqrt(max(count, 1)) + 0.5))


def parse_scales(scales: str | int) -> tuple[int, ...]:
    """Parses ``"32+64+112+224"`` (or one integer) into ascending sizes in pixels, as upstream sorts them.

    Raises:
        InvalidInputError: a part is not a positive integer; nothing is dropped silently.
    """
    parts = [part.strip() for part in str(scales).split("+")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InvalidInputError(
            f"scales is {scales!r}; it must be positive integers joined by '+', as in '32+64+112+224'"
        )
    return tuple(sorted(int(part) for part in parts))


def scale_token_layouts(config: Mapping[str, Any]) -> tuple[AutoGazeScaleTokenLayout, ...]:
    """The scales of a checkpoint's ``config.json``, in id order (ascending).

    The grid of a scale is ``scale // kernel_size`` where those grids account for all N tokens; otherwise
    the tokens are shared in proportion to the scales' areas, the last scale taking the remainder.

    Raises:
        InvalidInputError: the scales cannot be parsed.

    Example:
        >>> scale_token_layouts({"scales": "32+64", "num_vision_tokens_each_frame": 20})
        (AutoGazeScaleTokenLayout(token_count=4, grid=2), AutoGazeScaleTokenLayout(token_count=16, grid=4))
    """
    scales = parse_scales(config.get("scales", "224"))
    tokens = int(config.get("num_vision_tokens_each_frame", 196))
    vision = config.get("gaze_model_config", {}).get("vision_model_config", {})
    patch = max(int(vision.get("kernel_size", 16)), 1)
    direct = [max(scale // patch, 1) for scale in scales]
    if sum(grid * grid for grid in direct) == tokens:
        return layouts_from_grids(direct)
    area = sum(scale * scale for scale in scales)
    counts = [int(scale * scale / area * tokens) for scale in scales[:-1]]
    counts.append(tokens - sum(counts))
    return tuple(AutoGazeScaleTokenLayout(count, square_grid(count)) for count in counts)


def layouts_from_grids(grids: Sequence[int]) -> tuple[AutoGazeScaleTokenLayout, ...]:
    """Full square scales: one layout of ``grid``² tokens for each grid (the wire's ``SCALE_GRIDS``)."""
    return tuple(AutoGazeScaleTokenLayout(int(grid) ** 2, int(grid)) for grid in grids)
