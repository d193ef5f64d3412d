"""Colours mixed into pictures: ``round(source · (1 − a) + colour · a)`` in float32, halves up (spec §4).

numpy and tensors do the same operations in the same order, so both give the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import Array, NumpyLibrary
from autogaze_client.visualization.coverage import Coverage

__all__ = ["WHITE", "image_bytes", "mix_bytes", "mix_levels", "unit_levels"]

Image = NDArray[np.uint8]

WHITE = (255, 255, 255)

# The largest float32 below a half: adding it and cutting off rounds halves up, and 0.49999997 down, which adding
# 0.5 would round up.
_HALF = np.float32(0.49999997)
# Rows worked on at a time, so that floats stay in the cache.
_BAND_ROWS = 32
_LEVELS = 255.0
# A level that came from a byte is this near to it after the normalisation and back.
_NEAR_BYTE = 1e-3
# This near to a half, dividing by 255 and multiplying again could round to the other side.
_NEAR_HALF = 0.499


def shares(alpha: float) -> tuple[np.float32, np.float32]:
    """The shares of the source and of the colour."""
    share = np.float32(min(max(alpha, 0.0), 1.0))
    return np.float32(1.0) - share, share


def mix_bytes(
    source: Image, colours: Image | tuple[int, int, int], alpha: float, coverage: Coverage, out: Image
) -> None:
    """Writes the mix into the covered pixels of ``out``; the alpha bytes are the source's.

    Args:
        source: uint8 ``[H, W, 4]``, contiguous.
        colours: uint8 ``[H, W, 4]``, contiguous, or one RGB colour.
        alpha: share of the colour, clamped to 0..1.
        coverage: where to mix.
        out: uint8 ``[H, W, 4]``, contiguous; pixels that are not covered stay as they are.
    """
    height, width = source.shape[:2]
    keep, share = shares(alpha)
    kept = np.tile(np.array([keep, keep, keep, 1], np.float32), width)
    taken = np.tile(np.array([share, share, share, 0], np.float32), width)
    constant = (
        None if isinstance(colours, np.ndarray) else np.tile(np.array([*colours, 0], np.float32), width)
    )
    constant = None if constant is None else constant * taken
    mixed = np.empty((_BAND_ROWS, 4 * width), np.float32)
    added = np.empty_like(mixed)
    flat, result = source.reshape(height, -1), image_pixels(out)
    mask = coverage.mask
    covered_rows = np.repeat(coverage.cells.any(axis=1), np.diff(coverage.rows))
    for start in range(0, height, _BAND_ROWS):
        stop = min(start + _BAND_ROWS, height)
        if not covered_rows[start:stop].any():
            continue
        band = mixed[: stop - start]
        np.multiply(flat[start:stop], kept, out=band)
        if constant is None:
            colour = np.asarray(colours).reshape(height, -1)[start:stop]
            band += np.multiply(colour, taken, out=added[: stop - start])
        else:
            band += constant
        band += _HALF
        pixels = band.astype(np.uint8).view(np.uint32)
        np.copyto(result[start:stop], pixels, where=mask[start:stop])


def mix_levels(library: NumpyLibrary, levels: Array, colours: Array, alpha: float) -> Array:
    """The mix of levels 0..255 as unit values that convert to the bytes of ``mix_bytes``.

    Args:
        library: of the arrays.
        levels: float32 ``[H, W, 3]`` of ``unit_levels``.
        colours: float32 ``[H, W, 3]`` or ``[3]``, 0..255.
        alpha: share of the colour, clamped to 0..1.

    Returns:
        float32 ``[H, W, 3]`` in 0..1.
    """
    keep, share = (float(part) for part in shares(alpha))
    mixed = levels * keep + colours * share
    rounded = library.xp.floor(mixed + float(_HALF))
    return library.xp.where(abs(mixed - rounded) < _NEAR_HALF, mixed, rounded) / _LEVELS


def unit_levels(library: NumpyLibrary, unit: Array) -> Array:
    """Unit values as levels 0..255; those that were bytes become integers again."""
    levels = unit * _LEVELS
    rounded = library.round(levels)
    return library.xp.where(abs(levels - rounded) < _NEAR_BYTE, rounded, levels)


def image_pixels(image: Any) -> NDArray[np.uint32]:
    """uint8 ``[H, W, 4]``, contiguous, as one integer a pixel, ``[H, W]``; the same memory."""
    pixels: NDArray[np.uint32] = image.view(np.uint32)[..., 0]
    return pixels


def image_bytes(library: NumpyLibrary, unit: Array) -> Array:
    """Unit values as bytes 0..255, rounded to the nearest."""
    return library.xp.floor(library.clip(unit, 0, 1) * _LEVELS + 0.5)
