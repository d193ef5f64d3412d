"""Tensors side by side in one block of device memory, and the same block in pinned host memory.

One copy then moves them all: a step has seven small inputs and as many outputs, and each copy costs what a
megabyte costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from autogaze_backend.tensorrt_engine.api import Binding
from autogaze_backend.tensorrt_engine.cuda import Cuda

# What TensorRT asks of an address.
ALIGNMENT = 256


class Block:
    """A block on both sides.

    Args:
        cuda: where to allocate.
        bindings: its tensors, in order.

    Attributes:
        host: a writable view of each tensor's host side, by name.
        addresses: of each tensor's device side, by name.
    """

    def __init__(self, cuda: Cuda, bindings: Sequence[Binding]) -> None:
        self._cuda = cuda
        offsets, size = [], 0
        for binding in bindings:
            offsets.append(size)
            size += -(-max(binding.size, 1) // ALIGNMENT) * ALIGNMENT
        self._size = max(size, ALIGNMENT)
        self._ends = {b.name: offset + b.size for b, offset in zip(bindings, offsets, strict=True)}
        self._device = cuda.allocate(self._size)
        self._host, raw = cuda.allocate_host(self._size)
        self.host: dict[str, NDArray[Any]] = {}
        self.addresses: dict[str, int] = {}
        for binding, offset in zip(bindings, offsets, strict=True):
            view = raw[offset : offset + binding.size].view(binding.dtype)
            self.host[binding.name] = view.reshape(binding.shape)
            self.addresses[binding.name] = self._device + offset

    def upload(self) -> None:
        """Queues the copy of all tensors to the device."""
        self._cuda.upload(self._device, self._host, self._size)

    def download(self, last: str | None = None) -> None:
        """Queues the copy to the host of all tensors, or of those up to ``last``."""
        self._cuda.download(self._host, self._device, self._size if last is None else self._ends[last])
