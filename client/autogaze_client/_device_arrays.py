"""Frames that lie on a CUDA device: anything with DLPack or the CUDA array interface, numpy-like on the outside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._arrays import is_device_array, library_of, to_numpy
from autogaze_client._errors import InvalidInputError

__all__ = ["DeviceArray", "as_frames", "cuda_interface"]

# DLPack's device types: memory that the processor reads, and memory of a CUDA device.
_HOST_TYPES = (1, 3)
_CUDA_TYPES = (2, 13)


class DeviceArray:
    """uint8 values on a CUDA device, row-major.

    A transport that knows nothing of CUDA reads it as any array: ``np.asarray`` copies it to the host.

    Args:
        source: has ``__dlpack__`` or ``__cuda_array_interface__``.
        shape: seen from outside; as many values as the source has. None takes the source's.

    Raises:
        InvalidInputError: it is not uint8, or its values do not lie in row-major order and its library is neither
            torch nor CuPy, which can put them so.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, source: Any, shape: tuple[int, ...] | None = None) -> None:
        if shape is None:
            source = _row_major(_checked_type(source))
        self.source = source
        self.shape = _shape(source) if shape is None else shape

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: int) -> DeviceArray:
        """The same values in another shape; nothing is copied."""
        return DeviceArray(self.source, shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("values on a CUDA device reach the host by a copy")
        values = to_numpy(self.source)
        if values.dtype != self.dtype or values.size != self.nbytes:
            raise InvalidInputError(
                f"the {type(self.source).__module__}.{type(self.source).__name__} on a CUDA device did not come to "
                f"the host as {self.nbytes} bytes; copy it there before you pass it"
            )
        return values.reshape(self.shape).astype(dtype or self.dtype, copy=False)


def as_frames(values: Any) -> NDArray[Any] | DeviceArray | None:
    """A caller's array: numpy as it is, torch and others on the host as numpy, those of a CUDA device where they are.

    Returns:
        None where it is no array.

    Raises:
        InvalidInputError: it lies on a device of another kind, or on a CUDA device in a form that cannot be sent.
    """
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "__dlpack_device__"):
        kind = int(values.__dlpack_device__()[0])
        if kind in _HOST_TYPES:
            return to_numpy(values) if is_device_array(values) else np.from_dlpack(values)
        if kind not in _CUDA_TYPES:
            raise InvalidInputError(
                f"frames are a {type(values).__module__}.{type(values).__name__} on a device of DLPack type {kind}; "
                "only those of the host and of CUDA can be sent: copy them to the host"
            )
        return DeviceArray(values)
    return DeviceArray(values) if hasattr(values, "__cuda_array_interface__") else None


def cuda_interface(source: Any) -> dict[str, Any]:
    """The CUDA array interface of an array, empty where it has none."""
    interface: dict[str, Any] = getattr(source, "__cuda_array_interface__", {})
    return interface


def _shape(source: Any) -> tuple[int, ...]:
    shape = getattr(source, "shape", None)
    return tuple(int(size) for size in (cuda_interface(source)["shape"] if shape is None else shape))


def _checked_type(source: Any) -> Any:
    kind = getattr(source, "dtype", None) or np.dtype(cuda_interface(source).get("typestr", "V"))
    name = str(kind).removeprefix("torch.")
    if name != "uint8":
        raise InvalidInputError(
            f"frames are {name} on a CUDA device; pass uint8 values from 0 to 255 "
            "(of floats in 0..1: (frames * 255).round() as uint8)"
        )
    return source


def _row_major(source: Any) -> Any:
    if is_device_array(source):
        return library_of(frames=source).contiguous(source)
    strides, shape = cuda_interface(source).get("strides"), _shape(source)
    packed = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if strides is not None and tuple(strides) != packed:
        raise InvalidInputError(
            f"frames on a CUDA device have strides {tuple(strides)}, but {list(shape)} in row-major order has "
            f"{packed}; make them contiguous"
        )
    return source
