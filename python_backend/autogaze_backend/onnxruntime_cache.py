"""Keys and values of one row for ONNX Runtime's graphs, which read a buffer and write to the same one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from autogaze_backend.engine import Integers
from autogaze_backend.spec import ModelSpec

Array = NDArray[Any]

# Attention costs the whole buffer whatever the length, so on a CPU the buffer follows the length closely; it grows by
# at least a quarter, so that a clip rearranges its cache every few frames, not at every one.
_BLOCK = 128
_GROWTH = 4

# On a device a buffer that grows is copied to the host and back, so it grows twofold.
_DEVICE_BLOCK = 512


class HostCache:
    """Keys and values as ``[1, heads, capacity, head_dim]`` arrays, two a layer, keys first.

    An array is the head of a flat buffer that may be larger: growing rearranges in place as long as it
    fits, so that memory is not touched anew for every frame.
    """

    def __init__(self, spec: ModelSpec, dtype: DTypeLike, buffers: list[Array] | None = None) -> None:
        self._shape = (1, spec.num_heads, 0, spec.head_dim)
        self._dtype = dtype
        self._flat = buffers or [np.zeros(0, dtype) for _ in range(2 * spec.num_layers)]
        self.values: list[Any] = []
        self.chosen = np.zeros((1, spec.vocab_size), np.bool_)

    @property
    def capacity(self) -> int:
        """Positions that it holds."""
        return self._shape[2]

    def take_buffers(self) -> list[Array]:
        """Gives the buffers away; the cache cannot be used any more. What they hold is finite."""
        buffers, self._flat, self.values = self._flat, [], []
        return buffers

    @property
    def arrays(self) -> list[Array]:
        """The keys and values, views of the buffers."""
        size = int(np.prod(self._shape))
        return [flat[:size].reshape(self._shape) for flat in self._flat]

    def reserve(self, positions: int) -> None:
        """Grows the arrays to hold ``positions``; what they hold is kept."""
        _, heads, old, width = self._shape
        if positions <= old:
            return
        wanted = max(positions, old + old // _GROWTH)
        capacity = -(-wanted // _BLOCK) * _BLOCK
        size = heads * capacity * width
        for index, flat in enumerate(self._flat):
            if flat.size < size:
                # What lies beyond a row's length is masked, but must be finite: new memory is zeroed.
                grown = np.zeros(max(size, flat.size * 5 // 4), self._dtype)
                grown[: flat.size] = flat
                self._flat[index] = flat = grown
            # Each head's block moves to a higher place: the last first, so that none is overwritten.
            blocks = flat[:size].reshape(heads, capacity * width)
            for head in range(heads - 1, 0, -1):
                blocks[head, : old * width] = flat[head * old * width : (head + 1) * old * width]
        self._shape = (1, heads, capacity, width)
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays]

    def move(self, source: Integers, destination: Integers) -> None:
        """Copies positions to others."""
        for array in self.arrays:
            array[0][:, destination] = array[0][:, source]


class DeviceCache:
    """The same on a device. What the host rearranges there goes through its own memory, which is slow and rare."""

    def __init__(
        self, spec: ModelSpec, dtype: DTypeLike, device: str, index: int, values: list[Any] | None = None
    ) -> None:
        self._device = (device, index)
        self._empty = [np.zeros((1, spec.num_heads, 0, spec.head_dim), dtype)] * (2 * spec.num_layers)
        self.values = values or []
        self.chosen = np.zeros((1, spec.vocab_size), np.bool_)

    @property
    def capacity(self) -> int:
        """Positions that it holds."""
        return int(self.values[0].shape()[2]) if self.values else 0

    def take_buffers(self) -> list[Any]:
        """Gives the buffers away; the cache cannot be used any more. What they hold is finite."""
        values, self.values = self.values, []
        return values

    def reserve(self, positions: int) -> None:
        """Grows the buffers to hold ``positions``; what they hold is kept."""
        old = self.capacity
        if positions <= old:
            return
        wanted = max(positions, 2 * old)
        more = -(-wanted // _DEVICE_BLOCK) * _DEVICE_BLOCK - old
        arrays = [value.numpy() for value in self.values] or self._empty
        # New memory is zeroed, as above.
        grown = [np.pad(array, ((0, 0), (0, 0), (0, more), (0, 0))) for array in arrays]
        self.values = [ort.OrtValue.ortvalue_from_numpy(array, *self._device) for array in grown]

    def move(self, source: Integers, destination: Integers) -> None:
        """Copies positions to others."""
        for value in self.values:
            array = value.numpy()
            array[0][:, destination] = array[0][:, source]
            value.update_inplace(array)
