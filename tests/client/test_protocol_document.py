"""The documented wire is the one that the client speaks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
from autogaze_client._wire import OUTPUTS, GazeOptions, clip_tensors, video_tensors
from client_helpers import generated_for, response_for
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def documented_types(heading: str) -> dict[str, str]:
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([A-Z_]+)` \| ([A-Z0-9]+) \|", section, re.MULTILINE))


def test_inputs_are_those_that_the_client_sends():
    options = GazeOptions("resize", 0.5, 0.7, 10, [56, 112], 14, 5)
    sent = {**clip_tensors(np.zeros((1, 2, 2, 3), np.uint8), options), **video_tensors(b"v", options)}
    found = {name: np_to_triton_dtype(array.dtype) for name, array in sent.items()}
    assert found == documented_types("Inputs")


def test_outputs_are_those_that_the_client_reads():
    found = {name: np_to_triton_dtype(np.dtype(dtype)) for name, dtype in OUTPUTS.items()}
    assert found == documented_types("Outputs")


class Ensemble(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with seeded tokens for as many frames as were sent."""

    def ModelInfer(self, request, context):  # noqa: N802
        shape = {tensor.name: list(tensor.shape) for tensor in request.inputs}["FRAMES"]
        response = service_pb2.ModelInferResponse()
        for name, array in response_for(generated_for(shape[1], slots=27), shape[2], shape[3]).items():
            tensor = response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype))
            tensor.shape.extend(array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response


@pytest.fixture
def url():
    server = grpc.server(futures.ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Ensemble(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


def test_the_example_runs(url):
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    environment = {**os.environ, "AUTOGAZE_URL": url}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"frame (\d): (\d+) of (\d+) tokens", done.stdout) == [
        (str(t), "26", "265") for t in range(4)
    ]
    assert "104 fixations" in done.stdout
