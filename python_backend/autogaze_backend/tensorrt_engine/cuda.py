"""The CUDA runtime through ``cuda-python``: the few calls that the executor makes, each checked."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from autogaze_client._errors import AutoGazeError, MissingExtraError, ServerUnavailableError
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class CudaError(AutoGazeError):
    """A call of the CUDA runtime failed; the message names the call and CUDA's own reason."""


@dataclass(frozen=True)
class Slab:
    """Blocks of equal shape at equal distances in device memory: ``[depth, height, width]`` of bytes.

    What a copy needs to know: row ``h`` of block ``d`` starts at ``address + (d × rows + h) × pitch``.

    Attributes:
        address: of the first byte.
        pitch: bytes from one row to the next.
        rows: rows from one block to the next.
    """

    address: int
    pitch: int
    rows: int


class Cuda:
    """One device and one stream. Frees what it gave out when it is closed.

    Args:
        device: number of the GPU.
        runtime: ``cuda.bindings.runtime``; None imports it.

    Raises:
        MissingExtraError: ``cuda-python`` is not installed.
        CudaError: no driver, or no such device.
    """

    def __init__(self, device: int = 0, runtime: Any = None) -> None:
        self._runtime = runtime or import_runtime()
        self.device = device
        self._frees: list[tuple[Callable[..., Any], str, Any]] = []
        self.use()
        (self.stream,) = self.call("cudaStreamCreate")
        self._frees.append((self._runtime.cudaStreamDestroy, "cudaStreamDestroy", self.stream))

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Calls the runtime and gives what it answers after the status.

        Raises:
            CudaError: the status is an error.
            ServerUnavailableError: the device has no memory left.
        """
        status, *values = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            raise self._error(name, status)
        return tuple(values)

    def use(self) -> None:
        """Makes the device current in the calling thread, as CUDA keeps one a thread."""
        self.call("cudaSetDevice", self.device)

    def allocate(self, size: int) -> int:
        """Address of ``size`` zeroed bytes on the device, freed by ``close``."""
        (address,) = self.call("cudaMalloc", size)
        address = int(address)
        self._frees.append((self._runtime.cudaFree, "cudaFree", address))
        # Memory that no row has written yet is masked, but must be finite.
        self.call("cudaMemsetAsync", address, 0, size, self.stream)
        return address

    def allocate_host(self, size: int) -> tuple[int, Bytes]:
        """Address and view of ``size`` zeroed bytes of pinned host memory, freed by ``close``."""
        (address,) = self.call("cudaMallocHost", size)
        address = int(address)
        self._frees.append((self._runtime.cudaFreeHost, "cudaFreeHost", address))
        view: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        view[:] = 0
        return address, view

    def free_memory(self) -> int:
        """Bytes that are free on the device."""
        free, _ = self.call("cudaMemGetInfo")
        return int(free)

    def upload(self, target: int, source: int, size: int) -> None:
        """Queues a copy from pinned host memory."""
        self._copy(target, source, size, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, target: int, source: int, size: int) -> None:
        """Queues a copy to pinned host memory."""
        self._copy(target, source, size, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def copy(self, target: int, source: int, size: int) -> None:
        """Queues a copy on the device."""
        self._copy(target, source, size, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def copy_slab(self, target: Slab, source: Slab, width: int, height: int, depth: int) -> None:
        """Queues a copy of ``[depth, height, width]`` bytes on the device, in one call."""
        runtime = self._runtime
        parameters = runtime.cudaMemcpy3DParms()
        for name, slab in (("srcPtr", source), ("dstPtr", target)):
            pointer = runtime.cudaPitchedPtr()
            pointer.ptr, pointer.pitch = slab.address, slab.pitch
            pointer.xsize, pointer.ysize = slab.pitch, slab.rows
            setattr(parameters, name, pointer)
        extent = runtime.cudaExtent()
        extent.width, extent.height, extent.depth = width, height, depth
        parameters.extent = extent
        parameters.kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpy3DAsync", parameters, self.stream)

    def synchronize(self) -> None:
        """Waits for the stream."""
        self.call("cudaStreamSynchronize", self.stream)

    def capture(self, queue: Callable[[], None]) -> Any:
        """Records what ``queue`` puts into the stream, without running it; the graph is freed by ``close``.

        Raises:
            CudaError: something that ``queue`` did cannot be captured. The stream works as before.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        try:
            queue()
        except Exception:
            # The capture must end all the same. What that answers is the consequence, not the cause.
            status, *half = self._runtime.cudaStreamEndCapture(self.stream)
            if int(status) == 0:
                self.call("cudaGraphDestroy", half[0])
            self._runtime.cudaGetLastError()
            raise
        try:
            (graph,) = self.call("cudaStreamEndCapture", self.stream)
        except CudaError:
            self._runtime.cudaGetLastError()
            raise
        try:
            (executable,) = self.call("cudaGraphInstantiate", graph, 0)
        finally:
            self.call("cudaGraphDestroy", graph)
        self._frees.append((self._runtime.cudaGraphExecDestroy, "cudaGraphExecDestroy", executable))
        return executable

    def launch(self, graph: Any) -> None:
        """Queues a captured graph."""
        self.call("cudaGraphLaunch", graph, self.stream)

    def close(self) -> None:
        """Waits for the stream and frees everything, the newest first.

        Raises:
            CudaError: CUDA refused; everything was tried.
        """
        failures: list[CudaError] = []
        if self._frees:
            self.use()
            try:
                self.synchronize()
            except CudaError as error:
                failures.append(error)
        while self._frees:
            free, name, handle = self._frees.pop()
            (status, *_) = free(handle)
            if int(status) != 0:
                failures.append(CudaError(f"CUDA's {name} failed: {self._reason(status)}"))
        if failures:
            raise failures[0]

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self.call("cudaMemcpyAsync", target, source, size, kind, self.stream)

    def _error(self, name: str, status: Any) -> AutoGazeError:
        reason = f"CUDA's {name} failed on device {self.device}: {self._reason(status)}"
        if getattr(status, "name", "") == "cudaErrorMemoryAllocation":
            return ServerUnavailableError(
                f"{reason}; free memory on the GPU, or load fewer buckets: set AUTOGAZE_MAX_ROWS, or build with fewer "
                "--batch-buckets and --length-buckets"
            )
        return CudaError(f"{reason}; see `autogaze doctor`")

    def _reason(self, status: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(status)
        return f"{getattr(status, 'name', status)} ({text.decode() if isinstance(text, bytes) else text})"


def import_runtime() -> Any:
    """``cuda.bindings.runtime``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingExtraError.for_extra("TensorRT", "tensorrt", error) from error
