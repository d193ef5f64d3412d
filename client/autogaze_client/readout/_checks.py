"""Checks of arguments that several readout functions share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import to_numpy
from autogaze_client._errors import InvalidInputError


def count(name: str, value: object, minimum: int = 0) -> int:
    """An integer of at least ``minimum``.

    Raises:
        InvalidInputError: it is none.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= minimum:
        return int(value)
    raise InvalidInputError(f"{name} is {value!r}; it must be an integer of at least {minimum}")


def number(name: str, value: float) -> float:
    """A number that is not NaN.

    Raises:
        InvalidInputError: it is NaN.
    """
    if math.isnan(value):
        raise InvalidInputError(f"{name} is NaN; it must be a number")
    return float(value)


def index(name: str, value: object, size: int, of: str) -> int:
    """An index in ``0..size-1``.

    Raises:
        InvalidInputError: it is none.
    """
    position = count(name, value)
    if position >= size:
        raise InvalidInputError(
            f"{name} is {position}, but the {of} has {size}; it must be less (0 = the first)"
        )
    return position


def token_ids(name: str, values: Any, size: int) -> NDArray[np.int64]:
    """Token ids as int64 ``[n]``.

    Raises:
        InvalidInputError: another shape, no integers, or an id outside a grid of ``size`` tokens.
    """
    ids = to_numpy(values)
    if ids.size == 0:
        return np.zeros(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidInputError(f"{name} is {ids.dtype} {list(ids.shape)}; it must be integers [n]")
    ids = ids.astype(np.int64)
    outside = (ids < 0) | (ids >= size)
    if outside.any():
        raise InvalidInputError(
            f"{name} holds token {int(ids[outside][0])}, outside grid of {size} tokens (0..{size - 1})"
        )
    return ids
