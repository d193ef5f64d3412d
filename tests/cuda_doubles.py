"""CUDA without a device: its calls on host memory, recorded and held to the installed bindings' signatures."""

from __future__ import annotations

import ctypes
import inspect
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

RUNTIME_CALLS = (
    "cudaGetDevice",
    "cudaSetDevice",
    "cudaMalloc",
    "cudaFree",
    "cudaIpcGetMemHandle",
    "cudaMemcpyAsync",
    "cudaStreamCreate",
    "cudaStreamDestroy",
    "cudaStreamSynchronize",
    "cudaDeviceGetAttribute",
    "cudaPointerGetAttributes",
)


class RecordingCuda:
    """Devices 0 and 1, whose memory is the host's."""

    def __init__(self) -> None:
        import cuda.bindings.driver as driver
        import cuda.bindings.runtime as runtime

        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.device = 0
        self.fail: set[str] = set()
        self._real = runtime
        self.runtime = SimpleNamespace(**vars(runtime))
        for name in RUNTIME_CALLS:
            setattr(self.runtime, name, self._recorded(name, getattr(self, f"_{name}")))
        success = driver.CUresult.CUDA_SUCCESS
        self.driver = SimpleNamespace(**vars(driver))
        self.driver.cuDeviceGet = lambda ordinal: (success, ordinal)
        self.driver.cuDevicePrimaryCtxGetState = lambda device: (success, 0, 1)

    def _recorded(self, name: str, answer: Any) -> Any:
        signature = inspect.signature(getattr(self._real, name))

        def call(*args: Any) -> tuple[Any, ...]:
            signature.bind(*args)
            self.calls.append((name, args))
            if name in self.fail:
                return (self._real.cudaError_t.cudaErrorMemoryAllocation, None)
            values = answer(*args)
            return (self._real.cudaError_t.cudaSuccess, *values)

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def _cudaGetDevice(self):  # noqa: N802
        return (self.device,)

    def _cudaSetDevice(self, device):  # noqa: N802
        self.device = device
        return ()

    def _cudaMalloc(self, size):  # noqa: N802
        block = (ctypes.c_char * size)()
        address = ctypes.addressof(block)
        self.memory[address] = block
        return (address,)

    def _cudaFree(self, address):  # noqa: N802
        del self.memory[int(address)]
        return ()

    def _cudaIpcGetMemHandle(self, address):  # noqa: N802
        assert address in self.memory
        return (self._real.cudaIpcMemHandle_t(),)

    def _cudaMemcpyAsync(self, target, source, count, kind, stream):  # noqa: N802
        assert count <= len(self.memory[target])
        assert isinstance(kind, self._real.cudaMemcpyKind)
        ctypes.memmove(target, source, count)
        return ()

    def _cudaStreamCreate(self):  # noqa: N802
        return (self._real.cudaStream_t(77),)

    def _cudaStreamDestroy(self, stream):  # noqa: N802
        return ()

    def _cudaStreamSynchronize(self, stream):  # noqa: N802
        return ()

    def _cudaDeviceGetAttribute(self, attribute, device):  # noqa: N802
        return (1,)

    def _cudaPointerGetAttributes(self, pointer):  # noqa: N802
        return (SimpleNamespace(device=1),)


@pytest.fixture
def recording_cuda(monkeypatch: pytest.MonkeyPatch):
    """tritonclient's own code over ``RecordingCuda``; no region may be left at the end."""
    pytest.importorskip("cuda.bindings.runtime", reason="the extra cuda is not installed")
    import tritonclient.utils.cuda_shared_memory as shared

    double = RecordingCuda()
    assert shared.allocated_shared_memory_regions() == []
    monkeypatch.setattr(shared, "_dlpack_stream", {})
    for module in (shared, shared._utils):
        monkeypatch.setattr(module, "cudart", double.runtime)
    monkeypatch.setattr(shared._utils, "cuda_driver", double.driver)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", double.runtime)
    yield double
    assert shared.allocated_shared_memory_regions() == []
    assert double.memory == {}, "device memory was leaked"
    shared._dlpack_stream.clear()


class DlpackFrames:
    """What torch and CuPy give: DLPack on a CUDA device. Its values are in the host's memory."""

    def __init__(self, values: np.ndarray, device: int = 0) -> None:
        self._values = np.ascontiguousarray(values)
        self._device = device
        self.dtype, self.shape = self._values.dtype, self._values.shape
        self.streams: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self._values.__dlpack__()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._values


class InterfaceFrames:
    """What Numba gives: the CUDA array interface alone."""

    def __init__(self, values: np.ndarray, stream: int | None = None) -> None:
        self._values = values
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (values.ctypes.data, False),
            "strides": None if values.flags.c_contiguous else values.strides,
            "stream": stream,
            "version": 3,
        }

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._values
