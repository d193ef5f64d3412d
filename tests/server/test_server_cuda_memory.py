"""Frames on a CUDA device against a real tritonserver: the fallback without a device, the real thing with one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_client import AsyncGazeClient, GazeClient
from cuda_doubles import DlpackFrames
from goldens import clips

pytestmark = pytest.mark.server

FRAMES = clips.synthetic_clip(3, 240, 320, 5)
KNOBS = {"gazing_ratio": 0.05}


def missing_device() -> str:
    """Why nothing can run on a CUDA device here; empty where it can."""
    try:
        import cuda.bindings.runtime as runtime
    except ImportError as error:
        return f"the extra cuda is not installed ({error})"
    error, count = runtime.cudaGetDeviceCount()
    return "" if int(error) == 0 and count else f"no CUDA device here ({error.name})"


needs_device = pytest.mark.skipif(bool(missing_device()), reason=missing_device() or "a device is there")
needs_no_device = pytest.mark.skipif(not missing_device(), reason="a CUDA device is here")


def server_regions(url: str) -> tuple[set[str], set[str]]:
    """Names of this project's regions on the server: CUDA's and the system's."""
    with triton.InferenceServerClient(url) as raw:
        cuda = raw.get_cuda_shared_memory_status(as_json=True).get("regions", {})
        system = raw.get_system_shared_memory_status(as_json=True).get("regions", {})
    return tuple(
        {name for name in regions if name.startswith("autogaze-client-")} for regions in (cuda, system)
    )


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [item.message for item in caplog.records if "cuda shared memory is not used" in item.message]


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    yield
    assert not list(Path("/dev/shm").glob(f"autogaze-client-{os.getpid()}-*"))
    assert server_regions(server.url) == (set(), set())


@pytest.fixture
def on_the_wire(server) -> np.ndarray:
    with GazeClient(server.url, shared_memory=False) as client:
        return client.gaze(FRAMES, **KNOBS).fixations


@needs_no_device
def test_without_a_device_system_memory_is_used_and_cuda_says_why(server, on_the_wire, caplog):
    pytest.importorskip("cuda.bindings.runtime", reason="the extra cuda is not installed")
    with caplog.at_level(logging.DEBUG, "autogaze_client"), GazeClient(server.url) as client:
        for _ in range(2):
            result = client.gaze(DlpackFrames(FRAMES), **KNOBS)
        assert [len(regions) for regions in server_regions(server.url)] == [0, 1]
    (reason,) = reasons(caplog)
    assert "unable to create cuda shared memory handle: " in reason
    np.testing.assert_array_equal(result.fixations, on_the_wire)


@needs_no_device
async def test_a_server_without_a_device_refuses_and_the_client_goes_on(
    recording_cuda,
    server,
    on_the_wire,
    caplog,
):
    with caplog.at_level(logging.DEBUG, "autogaze_client"):
        async with AsyncGazeClient(server.url) as client:
            result = await client.gaze(DlpackFrames(FRAMES), **KNOBS)
            assert recording_cuda.memory == {}
    (reason,) = reasons(caplog)
    assert server.url in reason
    np.testing.assert_array_equal(result.fixations, on_the_wire)


class OwnMemory:
    """Frames in device memory of this test's own, with the CUDA array interface."""

    def __init__(self, values: np.ndarray) -> None:
        import cuda.bindings.runtime as runtime

        self._runtime, self._values = runtime, values
        error, self.pointer = runtime.cudaMalloc(values.nbytes)
        assert int(error) == 0, error
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        (error,) = runtime.cudaMemcpy(self.pointer, values.ctypes.data, values.nbytes, kind)
        assert int(error) == 0, error
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": "|u1",
            "data": (int(self.pointer), False),
            "strides": None,
            "version": 3,
        }

    def free(self) -> None:
        self._runtime.cudaFree(self.pointer)


@needs_device
def test_frames_of_a_device_reach_a_server_on_it(server, on_the_wire, caplog):
    frames = OwnMemory(FRAMES)
    try:
        with caplog.at_level(logging.DEBUG, "autogaze_client"), GazeClient(server.url) as client:
            for _ in range(2):
                result = client.gaze(frames, **KNOBS)
            assert [len(regions) for regions in server_regions(server.url)] == [1, 0], reasons(caplog)
    finally:
        frames.free()
    np.testing.assert_array_equal(result.fixations, on_the_wire)


@needs_device
def test_torch_frames_of_a_device_reach_a_server_on_it(server, on_the_wire):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    channels_first = torch.from_numpy(FRAMES.transpose(0, 3, 1, 2).copy()).cuda()
    with torch.cuda.stream(torch.cuda.Stream()), GazeClient(server.url) as client:
        # Written on a side stream, and not in row-major order as the client takes it.
        result = client.gaze((channels_first + 1 - 1).permute(0, 2, 3, 1), **KNOBS)
        assert [len(regions) for regions in server_regions(server.url)] == [1, 0]
    np.testing.assert_array_equal(result.fixations, on_the_wire)
