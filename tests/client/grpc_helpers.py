"""A gRPC server in this process that knows regions of system shared memory, as Triton does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype


class SystemMemoryServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """To be given a ``ModelInfer``; ``system`` has the key of each region that is registered."""

    def __init__(self) -> None:
        self.system: dict[str, str] = {}

    def SystemSharedMemoryRegister(self, request, context):  # noqa: N802
        self.system[request.name] = request.key
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryStatus(self, request, context):  # noqa: N802
        return service_pb2.SystemSharedMemoryStatusResponse()

    def SystemSharedMemoryUnregister(self, request, context):  # noqa: N802
        self.system.pop(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def system_bytes(self, region: str, size: int) -> bytes:
        """The first bytes of a region."""
        return Path("/dev/shm" + self.system[region]).read_bytes()[:size]


def answer_of(model: str, tensors: Mapping[str, np.ndarray]) -> service_pb2.ModelInferResponse:
    """A response with these outputs."""
    answer = service_pb2.ModelInferResponse(model_name=model)
    for name, array in tensors.items():
        answer.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=list(array.shape))
        answer.raw_output_contents.append(array.tobytes())
    return answer


@contextmanager
def listening(servicer: SystemMemoryServicer) -> Iterator[str]:
    """Its address, while it serves on a free port; every region must be given back by then."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)
    assert servicer.system == {}, "the server still holds regions"
