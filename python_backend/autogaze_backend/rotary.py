"""Rotary angles from integer positions: upstream's in a clip, exact ones beyond, however long a stream is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autogaze_backend.spec import ModelSpec

# Upstream computes angles in float32, which moves logits by 1e-4 at the end of a clip: more than some choices have
# between them. So up to here, twice what a clip of 16 frames can hold, an angle is rounded as there. Beyond, where
# rounding would grow with the length of a stream, it is computed in float64.
ROUNDED_POSITIONS = 16384


@lru_cache(maxsize=8)
def rotary_frequencies(spec: ModelSpec) -> NDArray[np.float64]:
    """Angular frequencies, float64 ``[head_dim / 2]``, with the ``llama3`` scaling (spec: pipeline §4).

    Upstream computes them in float32, and a last bit of one is 1e-4 of an angle at position 3,500, which is more than
    some choices have between them. So every operation is rounded to float32 here as it is there.
    """
    single = np.float32
    exponent = np.arange(0, spec.head_dim, 2).astype(single) / single(spec.head_dim)
    power = np.power(np.float64(spec.rope_theta), exponent.astype(np.float64)).astype(single)
    frequency = single(1.0) / power
    scaling = spec.rope_scaling
    if scaling is not None:
        context = single(scaling.original_max_position_embeddings)
        low, high = single(scaling.low_freq_factor), single(scaling.high_freq_factor)
        wavelength = single(2 * np.pi) / frequency
        blend = (context / wavelength - low) / (high - low)
        between = (single(1.0) - blend) * frequency / single(scaling.factor) + blend * frequency
        slow = np.where(wavelength > context / low, frequency / single(scaling.factor), frequency)
        medium = (wavelength >= context / high) & (wavelength <= context / low)
        frequency = np.where(medium, between, slow)
    rounded: NDArray[np.float64] = frequency.astype(np.float64)
    rounded.flags.writeable = False
    return rounded


def rotary_cos_sin(
    spec: ModelSpec, positions: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of ``positions`` (any shape), float32 ``[*shape, head_dim / 2]``."""
    frequencies = rotary_frequencies(spec)
    exact = positions[..., None].astype(np.float64) * frequencies
    rounded = positions[..., None].astype(np.float32) * frequencies.astype(np.float32)
    angles = np.where(positions[..., None] < ROUNDED_POSITIONS, rounded.astype(np.float64), exact)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class RotaryTable:
    """``rotary_cos_sin`` of one spec, remembered for the positions of ordinary clips: the same values, sooner.

    Args:
        spec: whose angles.
        size: positions that are remembered; later ones are computed as they come.
    """

    def __init__(self, spec: ModelSpec, size: int = 16384) -> None:
        self._spec, self._size = spec, size
        self._cos, self._sin = rotary_cos_sin(spec, np.arange(size))

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See ``rotary_cos_sin``."""
        if positions.max(initial=0) >= self._size or positions.min(initial=0) < 0:
            return rotary_cos_sin(self._spec, positions)
        return self._cos[positions], self._sin[positions]
