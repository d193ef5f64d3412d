"""CUDA memory between a client and a server on one GPU (extra ``cuda``), for frames that lie on that GPU already.

``tritonclient.utils.cuda_shared_memory`` makes, fills and frees the regions; the server opens them by their IPC
handle. A name in /dev/shm of one byte goes with each region: it vanishes with this process, also when that is
killed, and tells the next client which of the server's regions have no owner any more.
"""

from __future__ import annotations

import threading
from importlib import import_module
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from numpy.typing import NDArray

from autogaze_client._device_arrays import DeviceArray, cuda_interface
from autogaze_client._shared_memory import MemoryUnavailableError, RegionPool, SharedRegion, new_name

__all__ = ["CudaMemoryPool", "CudaRegion"]

# DLPack's device type of CUDA, and its number for the legacy default stream.
_CUDA = 2
_LEGACY_STREAM = 1

# tritonclient keeps its streams and regions in module variables, without a lock.
_LOCK = threading.Lock()


class CudaMemoryPool(RegionPool):
    """Regions on the devices that the inputs lie on."""

    kind = "cuda"

    def __init__(self, enabled: bool) -> None:
        super().__init__(enabled)
        self._probed: set[int] = set()

    def wants(self, array: NDArray[Any] | DeviceArray) -> bool:
        return isinstance(array, DeviceArray) and super().wants(array)

    def _make(self, array: NDArray[Any] | DeviceArray) -> SharedRegion:
        device = _device_of(array)
        if device not in self._probed:
            # tritonclient loses a block whose IPC handle cannot be made; so try one byte first.
            CudaRegion(1, device).release()
            self._probed.add(device)
        return CudaRegion(array.nbytes, device)

    def register(self, triton: Any, region: Any, **call: Any) -> Any:
        return triton.register_cuda_shared_memory(
            region.name, region.handle, region.device, region.size, **call
        )


class CudaRegion(SharedRegion):
    """``size`` bytes on a device.

    Raises:
        MemoryUnavailableError: the extra ``cuda`` is missing, or CUDA refuses: no driver, no room, no IPC.
    """

    def __init__(self, size: int, device: int) -> None:
        name = new_name()
        self.device = device
        self._cuda = _cuda_shared_memory()
        try:
            self._marker = SharedMemory(name, create=True, size=1)
        except OSError as error:
            raise MemoryUnavailableError(str(error)) from error
        try:
            with _LOCK:
                self._memory = self._cuda.create_shared_memory_region(name, size, device)
            self.handle: bytes = self._cuda.get_raw_handle(self._memory)
        except Exception as error:
            self.release()
            raise MemoryUnavailableError(_reason(error)) from error
        super().__init__(name, size)

    def fits(self, array: NDArray[Any] | DeviceArray) -> bool:
        return array.nbytes <= self.size and _device_of(array) == self.device

    def write(self, array: NDArray[Any] | DeviceArray) -> None:
        assert isinstance(array, DeviceArray)  # the pool wants no other
        reason = ""
        try:
            with _LOCK:
                self._cuda.set_shared_memory_region_from_dlpack(self._memory, [_Capsules(array, self.device)])
        except Exception as error:
            # Only the words are kept: the error's frames would keep the region's memory.
            reason = _reason(error)
        if reason:
            raise MemoryUnavailableError(reason)

    def release(self) -> None:
        memory, self._memory = getattr(self, "_memory", None), None
        try:
            if memory is not None:
                with _LOCK:
                    self._cuda.destroy_shared_memory_region(memory)
        finally:
            self._marker.close()
            self._marker.unlink()


class _Capsules:
    """Gives an array's DLPack capsule once the work that fills it is ordered before tritonclient's stream.

    tritonclient asks for a capsule without naming a stream, which leaves the order to chance. Its own stream is a
    blocking one: it waits for the legacy default stream, so that is the stream to ask for.
    """

    def __init__(self, array: DeviceArray, device: int) -> None:
        self._array, self._device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self._device

    def __dlpack__(self, stream: Any = None) -> Any:
        source = self._array.source
        if hasattr(source, "__dlpack__"):
            return source.__dlpack__(stream=_LEGACY_STREAM)
        interface = cuda_interface(source)
        pending = interface.get("stream")
        if pending not in (None, _LEGACY_STREAM):
            _check(_runtime().cudaStreamSynchronize(pending))
        view = _cuda_shared_memory().SharedMemoryTensor(
            "UINT8", list(self._array.shape), interface["data"][0], 0, self._array.nbytes, self._device
        )
        return view.__dlpack__()


def _device_of(array: Any) -> int:
    source = array.source
    if hasattr(source, "__dlpack_device__"):
        return int(source.__dlpack_device__()[1])
    runtime = _runtime()
    (attributes,) = _check(runtime.cudaPointerGetAttributes(cuda_interface(source)["data"][0]))
    return int(attributes.device)


def _check(result: tuple[Any, ...]) -> tuple[Any, ...]:
    error, *values = result
    if int(error) != 0:
        raise MemoryUnavailableError(f"CUDA says {error.name}")
    return tuple(values)


def _runtime() -> Any:
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MemoryUnavailableError(f"{error}: pip install 'autogaze-triton[cuda]'") from error


def _cuda_shared_memory() -> Any:
    _runtime()
    try:
        return import_module("tritonclient.utils.cuda_shared_memory")
    except (ImportError, RuntimeError) as error:
        raise MemoryUnavailableError(f"{error}: pip install 'autogaze-triton[cuda]'") from error


def _reason(error: Exception) -> str:
    cause = error.__cause__
    if cause is None or not cause.args:
        return str(error)
    detail = cause.args[0]
    return f"{error}: {detail.decode(errors='replace') if isinstance(detail, bytes) else detail}"
