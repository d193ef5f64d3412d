"""Token ids that never leave their device, as coverage and colours (spec: visualization §6, without its quirks)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autogaze_client._arrays import Array, NumpyLibrary, library_of
from autogaze_client._errors import InvalidInputError
from autogaze_client.layouts import AutoGazeScaleTokenLayout
from autogaze_client.visualize import scale_color

__all__ = ["device_token_cells"]


def device_token_cells(
    tokens: Array, layouts: Sequence[AutoGazeScaleTokenLayout], width: int, height: int
) -> tuple[Array, Array]:
    """The union of tokens' native cells, and the colour of the finest cell on each pixel, without a synchronisation.

    Args:
        tokens: integers ``[n]`` or ``[1, n]``, ids within the frame; others are padding.
        layouts: the scales, in id order, each a full square.
        width: of the frame, in pixels.
        height: of the frame, in pixels.

    Returns:
        bool ``[H, W]`` and float32 ``[H, W, 3]`` in 0..255.

    Raises:
        InvalidInputError: ids of another shape, or a scale that is no square.
    """
    library = library_of(tokens=tokens)
    ids = library.int64(tokens.reshape(-1) if tokens.ndim == 2 and len(tokens) == 1 else tokens)
    if ids.ndim != 1:
        raise InvalidInputError(f"tokens have shape {list(tokens.shape)}; they must be [n] or [1, n]")
    covered: Array = None
    colours: Array = None
    for scale, offset in _coarsest_first(layouts):
        inside = (ids >= offset) & (ids < offset + scale.token_count)
        # Ids of other scales are counted in one place beyond the grid.
        place = library.xp.where(inside, ids - offset, ids * 0 + scale.token_count)
        counts = library.zeros_int32(scale.token_count + 1)
        library.add_at(counts, place, place * 0 + 1)
        grid = library.int64(counts[:-1].reshape(scale.grid, scale.grid) > 0)
        mask = _touched(library, grid, width, height)
        colour = library.float32(library.asarray(np.array(scale_color(scale.grid), np.float32)))
        painted = library.float32(mask)[:, :, None] * colour
        covered = mask if covered is None else covered | mask
        colours = painted if colours is None else library.xp.where(mask[:, :, None], painted, colours)
    return covered, colours


def _coarsest_first(
    layouts: Sequence[AutoGazeScaleTokenLayout],
) -> list[tuple[AutoGazeScaleTokenLayout, int]]:
    """Scales with the id of their first token, coarsest first."""
    placed, offset = [], 0
    for layout in layouts:
        if layout.token_count != layout.grid**2:
            raise InvalidInputError(
                f"a scale has {layout.token_count} tokens on {layout.grid} cells per side; "
                f"it must have {layout.grid**2}"
            )
        placed.append((layout, offset))
        offset += layout.token_count
    return sorted(placed, key=lambda item: item[0].grid)


def _touched(library: NumpyLibrary, grid: Array, width: int, height: int) -> Array:
    """Whether a chosen cell touches each pixel: pixel x meets cells x·g // W to ((x + 1)·g − 1) // W."""
    side = int(grid.shape[0])
    sums = library.int64(library.cumsum_int32(library.cumsum_int32(_int32(library, grid), axis=0), axis=1))
    column, row = library.arange(width), library.arange(height)
    x0, x1 = column * side // width, ((column + 1) * side - 1) // width
    y0, y1 = row * side // height, ((row + 1) * side - 1) // height
    total = sums[y1][:, x1]
    above = sums[library.clip(y0 - 1, 0, side)][:, x1] * library.int64(y0 > 0)[:, None]
    left = sums[y1][:, library.clip(x0 - 1, 0, side)] * library.int64(x0 > 0)[None]
    corner = sums[library.clip(y0 - 1, 0, side)][:, library.clip(x0 - 1, 0, side)]
    corner = corner * library.int64(y0 > 0)[:, None] * library.int64(x0 > 0)[None]
    return (total - above - left + corner) > 0


def _int32(library: NumpyLibrary, values: Array) -> Array:
    zeros = library.zeros_int32(1)
    return library.cast_like(values, zeros)
