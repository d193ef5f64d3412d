"""Frames on a CUDA device, up to the calls that need one: tritonclient's own code over recorded CUDA calls.

Not executed on a GPU here. tests/server/test_server_cuda_memory.py holds what runs against a real server and a device.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from autogaze_client import AsyncGazeClient, GazeClient, InvalidInputError
from client_helpers import FakeServer, generated_for, response_for
from cuda_doubles import DlpackFrames, InterfaceFrames
from grpc_helpers import SystemMemoryServicer, answer_of, listening
from tritonclient.grpc import service_pb2

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 160, 200, 3), np.uint8)


class SharingServer(SystemMemoryServicer):
    """Knows regions as Triton does, and reads the frames that a request names."""

    def __init__(self) -> None:
        super().__init__()
        self.cuda: dict[str, service_pb2.CudaSharedMemoryRegisterRequest] = {}
        self.refuse = ""
        self.frames: list[tuple[str, np.ndarray]] = []
        self.on_unregister = lambda: None

    def CudaSharedMemoryRegister(self, request, context):  # noqa: N802
        if self.refuse:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refuse)
        self.cuda[request.name] = request
        return service_pb2.CudaSharedMemoryRegisterResponse()

    def CudaSharedMemoryStatus(self, request, context):  # noqa: N802
        answer = service_pb2.CudaSharedMemoryStatusResponse()
        for name, region in self.cuda.items():
            answer.regions[name].name = name
            answer.regions[name].byte_size = region.byte_size
        return answer

    def CudaSharedMemoryUnregister(self, request, context):  # noqa: N802
        self.on_unregister()
        self.cuda.pop(request.name)
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    def ModelInfer(self, request, context):  # noqa: N802
        tensor = next(item for item in request.inputs if item.name in ("FRAMES", "FRAME"))
        shape, size = list(tensor.shape), int(np.prod(tensor.shape))
        name = tensor.parameters["shared_memory_region"].string_param
        if not name:
            way, content = "wire", request.raw_input_contents[0] if size else b""
        elif name in self.cuda:
            way, content = f"cuda:{self.cuda[name].device_id}", _device_bytes(name, size)
        elif name in self.system:
            way, content = "system", self.system_bytes(name, size)
        else:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unable to find shared memory region: '{name}'")
        self.frames.append((way, np.frombuffer(content, np.uint8).reshape(shape)))
        count = shape[1] if tensor.name == "FRAMES" else 1
        return answer_of("autogaze", response_for(generated_for(count), *shape[-3:-1]))


def _device_bytes(name: str, size: int) -> bytes:
    from tritonclient.utils.cuda_shared_memory import allocated_shared_memory_regions

    (region,) = [item for item in allocated_shared_memory_regions() if item._triton_shm_name == name]
    return ctypes.string_at(region._base_addr, size)


def markers(process: int | None = None) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"autogaze-client-{process or os.getpid()}-*")]


@pytest.fixture
def sharing():
    servicer = SharingServer()
    before = markers()
    with listening(servicer) as url:
        yield servicer, url
    assert servicer.cuda == {}, "the server still holds regions"
    assert markers() == before


def test_frames_stay_on_their_device(recording_cuda, sharing):
    servicer, url = sharing
    first, second = DlpackFrames(FRAMES, device=1), DlpackFrames(FRAMES[::-1], device=1)
    held = []
    servicer.on_unregister = lambda: held.append([len(block) for block in recording_cuda.memory.values()])
    with GazeClient(url) as client:
        result = client.gaze(first)
        client.gaze(second)
        assert len(servicer.cuda) == 1, "the region is used again"
        (region,) = servicer.cuda.values()
    assert (region.device_id, region.byte_size, len(region.raw_handle)) == (1, FRAMES.nbytes, 64)
    assert [way for way, _ in servicer.frames] == ["cuda:1", "cuda:1"]
    np.testing.assert_array_equal(servicer.frames[0][1][0], FRAMES)
    np.testing.assert_array_equal(servicer.frames[1][1][0], FRAMES[::-1])
    assert first.streams == [1], "work on the array is ordered before the legacy default stream"
    assert held == [[FRAMES.nbytes]], "the server forgets the region before it is freed"
    assert (result.source_size.frames, result.source_size.height) == (2, 160)
    assert recording_cuda.device == 0, "the caller's device is current again"


async def test_the_asyncio_client_shares_too(recording_cuda, sharing):
    servicer, url = sharing
    async with AsyncGazeClient(url) as client:
        await client.gaze(DlpackFrames(FRAMES))
    assert servicer.frames[0][0] == "cuda:0"
    np.testing.assert_array_equal(servicer.frames[0][1][0], FRAMES)


def test_the_cuda_array_interface_is_enough(recording_cuda, sharing):
    servicer, url = sharing
    with GazeClient(url) as client:
        client.gaze(InterfaceFrames(FRAMES, stream=5))
    np.testing.assert_array_equal(servicer.frames[0][1][0], FRAMES)
    assert servicer.frames[0][0] == "cuda:1", "the device of the pointer"
    assert ("cudaStreamSynchronize", (5,)) in recording_cuda.calls
    assert recording_cuda.names().index("cudaStreamSynchronize") < recording_cuda.names().index(
        "cudaMemcpyAsync"
    )


def test_a_stream_of_device_frames(recording_cuda, sharing):
    servicer, url = sharing
    with GazeClient(url) as client, client.stream() as stream:
        for frame in FRAMES:
            stream.push(DlpackFrames(np.concatenate([frame] * 2)))
    assert [way for way, _ in servicer.frames] == ["cuda:0", "cuda:0", "wire"], "the end is no frame"
    np.testing.assert_array_equal(servicer.frames[1][1][0, :160], FRAMES[1])


def test_arrays_of_the_host_go_through_system_memory(recording_cuda, sharing):
    servicer, url = sharing
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with GazeClient(url) as client:
        client.gaze(FRAMES)
        client.gaze(torch.from_numpy(FRAMES))
    assert [way for way, _ in servicer.frames] == ["system", "system"]
    np.testing.assert_array_equal(servicer.frames[1][1][0], FRAMES)
    assert recording_cuda.calls == []


def test_small_device_frames_go_over_the_wire(recording_cuda, sharing):
    servicer, url = sharing
    with GazeClient(url) as client:
        client.gaze(DlpackFrames(FRAMES[:1, :40, :40]))
    assert servicer.frames[0][0] == "wire"
    np.testing.assert_array_equal(servicer.frames[0][1][0], FRAMES[:1, :40, :40])


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaIpcGetMemHandle", "cudaMemcpyAsync"])
def test_where_cuda_fails_the_host_carries_the_frames(recording_cuda, sharing, caplog, call):
    servicer, url = sharing
    recording_cuda.fail.add(call)
    with caplog.at_level(logging.DEBUG, "autogaze_client"), GazeClient(url) as client:
        client.gaze(DlpackFrames(FRAMES))
        client.gaze(DlpackFrames(FRAMES))
    reasons = [item.message for item in caplog.records if "cuda shared memory is not used" in item.message]
    assert len(reasons) == 1, "it is tried once"
    assert "out of memory" in reasons[0]
    assert [way for way, _ in servicer.frames] == ["system", "system"]
    np.testing.assert_array_equal(servicer.frames[0][1][0], FRAMES)
    if call == "cudaIpcGetMemHandle":
        # tritonclient keeps a block whose handle cannot be made: it is the byte of the probe.
        assert [len(block) for block in recording_cuda.memory.values()] == [1]
        recording_cuda.memory.clear()


def test_where_the_server_refuses_the_memory_is_freed_at_once(recording_cuda, sharing, caplog):
    servicer, url = sharing
    servicer.refuse = "failed to register shared memory region: invalid args"  # as tritonserver 2.51 says
    with caplog.at_level(logging.DEBUG, "autogaze_client"), GazeClient(url) as client:
        client.gaze(DlpackFrames(FRAMES))
        assert recording_cuda.memory == {}
    assert [item.message for item in caplog.records if "cuda shared memory is not used" in item.message] == [
        f"cuda shared memory is not used: {url}: {servicer.refuse}"
    ]
    assert servicer.frames[0][0] == "system"


def test_a_server_that_lost_the_region_is_told_again(recording_cuda, sharing):
    servicer, url = sharing
    with GazeClient(url) as client:
        client.gaze(DlpackFrames(FRAMES))
        servicer.cuda.clear()
        client.gaze(DlpackFrames(FRAMES[::-1]))
    assert [way for way, _ in servicer.frames] == ["cuda:0", "cuda:0"]
    np.testing.assert_array_equal(servicer.frames[1][1][0], FRAMES[::-1])


def test_shared_memory_can_be_declined(recording_cuda, sharing):
    servicer, url = sharing
    with GazeClient(url, shared_memory=False) as client:
        client.gaze(DlpackFrames(FRAMES))
    assert servicer.frames[0][0] == "wire"
    assert recording_cuda.calls == []


def test_without_the_extra_the_reason_names_it(sharing, monkeypatch, caplog):
    servicer, url = sharing
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with caplog.at_level(logging.DEBUG, "autogaze_client"), GazeClient(url) as client:
        client.gaze(DlpackFrames(FRAMES))
    assert any("pip install 'autogaze-triton[cuda]'" in item.message for item in caplog.records)
    assert servicer.frames[0][0] == "system"


def test_what_a_killed_client_left_is_unregistered_by_the_next(recording_cuda, sharing):
    servicer, url = sharing
    code = (
        "import time\n"
        "from autogaze_client._shared_memory import SystemRegion\n"
        "region = SystemRegion(1)\n"
        "print(region.name, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    alive = process.stdout.readline().strip()
    try:
        gone = f"autogaze-client-{process.pid}-gone"
        for name in (alive, gone, "somebody-else"):
            servicer.cuda[name] = service_pb2.CudaSharedMemoryRegisterRequest(name=name)
        with GazeClient(url) as client:
            client.gaze(DlpackFrames(FRAMES))
        assert set(servicer.cuda) == {alive, "somebody-else"}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        servicer.cuda.clear()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (DlpackFrames(FRAMES.astype(np.float32)), "frames are float32 on a CUDA device; pass uint8"),
        (InterfaceFrames(FRAMES[:, ::2]), "make them contiguous"),
        (InterfaceFrames(FRAMES.astype(np.int16)), "frames are int16"),
        (DlpackFrames(FRAMES[0]), r"add a time axis: frames\[None\]"),
        (DlpackFrames(FRAMES[..., :2]), r"\[T, H, W, 3\]"),
    ],
)
def test_device_frames_of_another_form_are_refused(frames, message):
    client = GazeClient(transport=FakeServer())
    with pytest.raises(InvalidInputError, match=message):
        client.gaze(frames)


def test_frames_of_another_kind_of_device_are_refused():
    class Metal(DlpackFrames):
        def __dlpack_device__(self):
            return 8, 0

    with pytest.raises(InvalidInputError, match="copy them to the host"):
        GazeClient(transport=FakeServer()).gaze(Metal(FRAMES))


def test_a_transport_that_knows_no_cuda_reads_them_as_an_array():
    server = FakeServer()
    server.infer = lambda model, inputs, outputs, timeout, call: response_for(
        generated_for(
            np.asarray(inputs["FRAMES"]).shape[1], seed=int(np.asarray(inputs["FRAMES"]).sum()) % 7
        ),
        160,
        200,
    )
    on_device = GazeClient(transport=server).gaze(DlpackFrames(FRAMES))
    on_host = GazeClient(transport=server).gaze(FRAMES)
    np.testing.assert_array_equal(on_device.fixations, on_host.fixations)
