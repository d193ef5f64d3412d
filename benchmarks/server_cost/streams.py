"""Streams that send the next frame as soon as the last is answered, with as little work of the client as can be."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grpc.aio
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from autogaze_client._wire import STREAM_OUTPUTS, GazeOptions, frame_tensors
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

_SIDE = 224
_METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Answers:
    """What came back in the time that counts.

    Attributes:
        frames: answered.
        seconds: that counted.
        latencies: seconds, of each.
    """

    frames: int
    seconds: float
    latencies: np.ndarray


def request(stream: int, region: str, *, start: bool, tokens: int = 10) -> bytes:
    """A frame's request as our client sends it, the frame in a shared region."""
    frame = np.zeros((_SIDE, _SIDE, 3), np.uint8)
    message = service_pb2.ModelInferRequest(model_name="autogaze_stream")
    message.parameters["sequence_id"].int64_param = stream
    message.parameters["sequence_start"].bool_param = start
    message.parameters["sequence_end"].bool_param = False
    for name, array in frame_tensors(frame, GazeOptions(max_gaze_tokens_each_frame=tokens)).items():
        values: Any = np.asarray(array)
        tensor = message.inputs.add(name=name, datatype=np_to_triton_dtype(values.dtype), shape=values.shape)
        if name == "FRAME":
            tensor.parameters["shared_memory_region"].string_param = region
            tensor.parameters["shared_memory_byte_size"].int64_param = values.nbytes
        else:
            message.raw_input_contents.append(values.tobytes())
    for name in STREAM_OUTPUTS:
        message.outputs.add(name=name)
    return message.SerializeToString()


def measure(url: str, streams: int, seconds: float, on_start: Any = None, on_end: Any = None) -> Answers:
    """Keeps ``streams`` requests in flight, one a stream; calls ``on_start`` and ``on_end`` around what counts."""
    return asyncio.run(_measure(url, streams, seconds, on_start, on_end))


async def _measure(url: str, streams: int, seconds: float, on_start: Any, on_end: Any) -> Answers:
    region = SharedMemory(create=True, size=_SIDE * _SIDE * 3)
    name = region.name
    np.ndarray(region.size, np.uint8, buffer=region.buf)[:] = np.arange(region.size) % 251
    latencies: list[float] = []
    state = {"counts": False, "ends": False}
    try:
        async with (
            triton_aio.InferenceServerClient(url) as control,
            grpc.aio.insecure_channel(url) as channel,
        ):
            await control.register_system_shared_memory(name, f"/{region.name}", region.size)
            call = channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)

            async def camera(number: int) -> None:
                message, following = (request(number, name, start=start) for start in (True, False))
                while not state["ends"]:
                    sent = time.perf_counter()
                    await call(message)
                    if state["counts"]:
                        latencies.append(time.perf_counter() - sent)
                    message = following

            tasks = [asyncio.ensure_future(camera(1 + number)) for number in range(streams)]
            await asyncio.sleep(1.0)
            if on_start:
                on_start()
            began = time.perf_counter()
            state["counts"] = True
            await asyncio.sleep(seconds)
            state["counts"] = False
            took = time.perf_counter() - began
            if on_end:
                on_end()
            state["ends"] = True
            await asyncio.gather(*tasks)
            # The server stays registered: it may hold the region for a moment yet, and ends soon.
    finally:
        region.close()
        region.unlink()
    return Answers(len(latencies), took, np.array(latencies))


__all__ = ["Answers", "measure", "request", "triton"]
