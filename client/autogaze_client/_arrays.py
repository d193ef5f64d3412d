"""One vocabulary for numpy, CuPy and torch arrays.

Functions that take arrays ask ``library_of`` for the library of their arguments and work with that, on the
device of the arguments. Nothing here reads a device array back to the host: a torch or CuPy tensor that
enters leaves as one, without a synchronisation. Neither library is imported unless an array of it comes in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError

Array: TypeAlias = Any
"""A ``numpy.ndarray``, ``torch.Tensor`` or ``cupy.ndarray``."""


class NumpyLibrary:
    """numpy, and CuPy, which has numpy's interface."""

    def __init__(self, module: Any) -> None:
        self.xp = module

    @property
    def on_host(self) -> bool:
        """Whether values can be looked at without a synchronisation."""
        return self.xp is np

    def asarray(self, values: Any) -> Array:
        """``values`` as an array of this library; numpy values are uploaded."""
        return self.xp.asarray(values)

    def floating(self, array: Array) -> Array:
        """The array itself where it is floating, else as float32."""
        return array if array.dtype.kind == "f" else array.astype(np.float32)

    def float64(self, array: Array) -> Array:
        """As float64."""
        return array.astype(np.float64)

    def float32(self, array: Array) -> Array:
        """As float32."""
        return array.astype(np.float32)

    def int64(self, array: Array) -> Array:
        """As int64, rounding towards zero."""
        return array.astype(np.int64)

    def cast_like(self, array: Array, like: Array) -> Array:
        """In the type of another array."""
        return array.astype(like.dtype)

    def arange(self, stop: int) -> Array:
        """int64 0..stop-1."""
        return self.xp.arange(stop, dtype=np.int64)

    def zeros_int32(self, size: int) -> Array:
        """int32 ``[size]`` of zeros."""
        return self.xp.zeros(size, np.int32)

    def add_at(self, target: Array, index: Array, values: Array) -> None:
        """Adds int32 ``values`` to the flat ``target``; an index may repeat."""
        self.xp.add.at(target, index, values)

    def cumsum_int32(self, array: Array, axis: int) -> Array:
        """Running sums of int32 ``[n, m]``; may change ``array``."""
        if axis == 0 and self.on_host:
            # Whole rows at a time: ten times as fast as numpy's cumsum, which walks down each column.
            for row in range(1, len(array)):
                array[row] += array[row - 1]
            return array
        return self.xp.cumsum(array, axis=axis, dtype=np.int32)

    def fill_where(self, condition: Array, array: Array, value: float) -> Array:
        """``value`` where the condition (broadcast) holds, else the array, in the array's type."""
        return self.xp.where(condition, self.xp.asarray(value, array.dtype), array)

    def round(self, array: Array) -> Array:
        """To the nearest integer, halves to even."""
        return self.xp.rint(array)

    def clip(self, array: Array, low: Any, high: Any) -> Array:
        """Within ``low..high``."""
        return self.xp.clip(array, low, high)

    def maximum(self, left: Array, right: Array) -> Array:
        """The larger of both, elementwise."""
        return self.xp.maximum(left, right)

    def minimum(self, left: Array, right: Array) -> Array:
        """The smaller of both, elementwise."""
        return self.xp.minimum(left, right)

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        """Joined along an axis."""
        return self.xp.concatenate(list(arrays), axis=axis)

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        """Stacked along a new axis."""
        return self.xp.stack(list(arrays), axis=axis)

    def repeat(self, array: Array, counts: Sequence[int]) -> Array:
        """Copies along each axis."""
        return self.xp.tile(array, tuple(counts))

    def largest_first(self, array: Array) -> Array:
        """Indices that sort the last axis in descending order; among equals the lowest index first."""
        return self.xp.argsort(-array, axis=-1, kind="stable")

    def take_along(self, array: Array, index: Array, axis: int) -> Array:
        """The elements that ``index`` names along an axis."""
        return self.xp.take_along_axis(array, index, axis=axis)

    def contiguous(self, array: Array) -> Array:
        """The array itself where it lies in row-major order, else a copy that does."""
        return self.xp.ascontiguousarray(array)


class TorchLibrary(NumpyLibrary):
    """torch, on one device."""

    def __init__(self, module: Any, device: Any) -> None:
        super().__init__(module)
        self.device = device

    def asarray(self, values: Any) -> Array:
        return self.xp.as_tensor(values, device=self.device)

    def floating(self, array: Array) -> Array:
        return array if array.is_floating_point() else array.to(self.xp.float32)

    def float64(self, array: Array) -> Array:
        return array.to(self.xp.float64)

    def float32(self, array: Array) -> Array:
        return array.to(self.xp.float32)

    def int64(self, array: Array) -> Array:
        return array.to(self.xp.int64)

    def cast_like(self, array: Array, like: Array) -> Array:
        return array.to(like.dtype)

    def arange(self, stop: int) -> Array:
        return self.xp.arange(stop, dtype=self.xp.int64, device=self.device)

    def zeros_int32(self, size: int) -> Array:
        return self.xp.zeros(size, dtype=self.xp.int32, device=self.device)

    def add_at(self, target: Array, index: Array, values: Array) -> None:
        target.index_add_(0, index, values.to(self.xp.int32))

    def cumsum_int32(self, array: Array, axis: int) -> Array:
        return self.xp.cumsum(array, dim=axis, dtype=self.xp.int32)

    def fill_where(self, condition: Array, array: Array, value: float) -> Array:
        return array.masked_fill(condition, value)

    def round(self, array: Array) -> Array:
        return self.xp.round(array)

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return self.xp.cat(list(arrays), dim=axis)

    def stack(self, arrays: Sequence[Array], axis: int) -> Array:
        return self.xp.stack(list(arrays), dim=axis)

    def repeat(self, array: Array, counts: Sequence[int]) -> Array:
        return array.repeat(tuple(counts))

    def largest_first(self, array: Array) -> Array:
        return self.xp.sort(array, dim=-1, descending=True, stable=True).indices

    def take_along(self, array: Array, index: Array, axis: int) -> Array:
        return self.xp.take_along_dim(array, index, dim=axis)

    def contiguous(self, array: Array) -> Array:
        return array.contiguous()


_NUMPY = NumpyLibrary(np)


def _library(array: Any) -> NumpyLibrary:
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(array, torch.Tensor):
        return TorchLibrary(torch, array.device)
    if cupy is not None and isinstance(array, cupy.ndarray):
        return NumpyLibrary(cupy)
    return _NUMPY


def library_of(**arrays: Any) -> NumpyLibrary:
    """The library, and for torch the device, that arrays share; what is neither torch nor CuPy is numpy's.

    Raises:
        InvalidInputError: the arrays are of different libraries or devices.
    """
    found = {name: _library(array) for name, array in arrays.items()}
    first, *others = found.items()
    for name, library in others:
        if library.xp is not first[1].xp or getattr(library, "device", 0) != getattr(first[1], "device", 0):
            raise InvalidInputError(
                f"{first[0]} is of {_describe(first[1])}, but {name} of {_describe(library)}; move one of them"
            )
    return first[1]


def _describe(library: NumpyLibrary) -> str:
    device = getattr(library, "device", None)
    return f"{library.xp.__name__}" + (f" on {device}" if device is not None else "")


def is_device_array(values: Any) -> bool:
    """Whether ``values`` is a torch or CuPy array, whose values this package does not read."""
    return _library(values) is not _NUMPY


def to_numpy(values: Any) -> NDArray[Any]:
    """Any array as numpy. A device array is copied to the host, which waits for the device."""
    library = _library(values)
    if isinstance(library, TorchLibrary):
        return np.asarray(values.detach().cpu())
    if library is not _NUMPY:
        return np.asarray(values.get())
    return np.asarray(values)
