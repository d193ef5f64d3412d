"""Rotary angles from integer positions, in float64, so that a stream of any length loses no precision."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autogaze_backend.spec import ModelSpec


@lru_cache(maxsize=8)
def rotary_frequencies(spec: ModelSpec) -> NDArray[np.float64]:
    """Angular frequencies, float64 ``[head_dim / 2]``, with the ``llama3`` scaling (spec: pipeline §4).

    Upstream keeps them in float32, so each is rounded to float32 here before it is used.
    """
    exponent = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    frequency = spec.rope_theta**-exponent
    scaling = spec.rope_scaling
    if scaling is not None:
        wavelength = 2 * np.pi / frequency
        context = scaling.original_max_position_embeddings
        blend = (context / wavelength - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        weight = np.clip(blend, 0.0, 1.0)
        frequency = (1 - weight) * frequency / scaling.factor + weight * frequency
    rounded: NDArray[np.float64] = frequency.astype(np.float32).astype(np.float64)
    rounded.flags.writeable = False
    return rounded


def rotary_cos_sin(
    spec: ModelSpec, positions: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of ``positions`` (any shape), float32 ``[*shape, head_dim / 2]``."""
    angles = positions[..., None].astype(np.float64) * rotary_frequencies(spec)
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
