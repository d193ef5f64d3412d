"""Clients that vanish, or ask and never read: the others must not notice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_backend.serving import TritonServer
from autogaze_client import AutoGazeGenerateOutput, GazeClient, ServerUnavailableError
from faults.fault_helpers import KNOBS, LONG, clip, eventually, metric, python, resident_bytes, serving
from tritonclient.grpc import service_pb2

pytestmark = pytest.mark.server

TTL = 4.0


@pytest.fixture(scope="module")
def few_places(bundle) -> Iterator[TritonServer]:
    """Two places and a short time to live."""
    with serving(bundle(), AUTOGAZE_MAX_STREAMS="2", AUTOGAZE_TTL_SECONDS=str(TTL)) as server:
        yield server


_CAMERA = """
    import sys
    import numpy as np
    from autogaze_client import GazeClient

    stream = GazeClient(sys.argv[1]).stream(gazing_ratio=0.2)
    frame = np.zeros((90, 160, 3), np.uint8)
    while True:
        stream.push(frame)
        print("pushed", flush=True)
"""


def expected(model, frames: np.ndarray) -> np.ndarray:
    loaded = model()
    return loaded.generate(loaded.preprocess(frames)[None], **KNOBS).gazing_pos


def test_a_client_killed_mid_stream_loses_its_place_in_time_and_its_neighbour_nothing(few_places, model):
    frames = clip(16)
    camera = python(_CAMERA, few_places.url)
    with GazeClient(few_places.url) as client, client.stream(**KNOBS) as neighbour:
        results = [neighbour.push(frames[0])]
        assert camera.stdout.readline() == "pushed\n"
        camera.send_signal(signal.SIGKILL)
        camera.wait()
        for frame in frames[1:]:
            results.append(neighbour.push(frame))
            time.sleep(TTL / 10)
        # In use all the time the neighbour has kept its place; the place of the dead is free.
        eventually(lambda: metric(few_places, "autogaze_streams_open") == 1, "one open stream")
        assert metric(few_places, "autogaze_stream_evictions_total", reason="expired") >= 1
    joined = AutoGazeGenerateOutput.concatenate([result.generated for result in results])
    np.testing.assert_array_equal(joined.gazing_pos, expected(model, frames))


def test_a_dead_clients_place_goes_to_the_next_stream_at_once(few_places):
    """No time to live is waited for: the place that was used least recently is the dead one's."""
    camera = python(_CAMERA, few_places.url)
    assert camera.stdout.readline() == "pushed\n"
    camera.kill()
    camera.wait()
    frame = clip(1)[0]
    with GazeClient(few_places.url) as client, client.stream(**KNOBS) as one, client.stream(**KNOBS) as two:
        for _ in range(3):
            one.push(frame)
            two.push(frame)


@pytest.fixture(scope="module")
def plagued(bundle) -> Iterator[TritonServer]:
    """A server whose state at the end is nobody's concern."""
    with serving(bundle()) as server:
        yield server
        server.kill()


def _request(number: int) -> service_pb2.ModelInferRequest:
    frames = np.zeros((1, 1, 32, 32, 3), np.uint8)
    request = service_pb2.ModelInferRequest(model_name="autogaze", id=str(number))
    request.inputs.add(name="FRAMES", datatype="UINT8", shape=list(frames.shape))
    request.inputs.add(name="MAX_GAZE_TOKENS", datatype="INT32", shape=[1, 1])
    request.raw_input_contents.extend([frames.tobytes(), np.ones(1, np.int32).tobytes()])
    return request


@contextmanager
def never_reading(url: str, requests: int) -> Iterator[threading.Semaphore]:
    """A gRPC stream that sends and never reads; the semaphore counts what was sent."""
    sent, leave = threading.Semaphore(0), threading.Event()

    def asks() -> Iterator[service_pb2.ModelInferRequest]:
        for number in range(requests):
            sent.release()
            yield _request(number)
        leave.wait(LONG)

    with grpc.insecure_channel(url) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )(asks())
        try:
            yield sent
        finally:
            leave.set()
            call.cancel()


# Fewer than the queue of 256 holds, so that nobody is refused; and more than it holds.
@pytest.mark.parametrize("requests", [200, pytest.param(6000, marks=pytest.mark.faults)])
def test_a_client_that_never_reads_costs_a_bounded_amount_and_others_are_served(plagued, model, requests):
    """What it sent is answered or refused, and waits in its own connection."""
    frames = clip(2)
    wanted = expected(model, frames)
    process = plagued.process()
    with GazeClient(plagued.url) as client:
        client.gaze(frames, **KNOBS)
        before = resident_bytes(process.pid)
        with never_reading(plagued.url, requests) as sent:
            for _ in range(200):
                assert sent.acquire(timeout=LONG)
            for _ in range(3):
                # Its own queue: the plague fills that of the others' level.
                result = client.gaze(frames, priority=1, **KNOBS)
                np.testing.assert_array_equal(result.generated.gazing_pos, wanted)
                time.sleep(0.3)
            grown = resident_bytes(process.pid) - before
            assert grown < 256 << 20, f"the server grew by {grown >> 20} MiB"
        eventually(lambda: _is_served(client, frames), "an ordinary clip served again")


def _is_served(client: GazeClient, frames: np.ndarray) -> bool:
    try:
        return client.gaze(frames, **KNOBS).tokens_per_frame.sum() > 0
    except ServerUnavailableError:
        return False  # shed: the queue is still full


def test_clients_that_never_finish_asking_hold_nobody_up(plagued):
    """Half a request, again and again, over plain connections to HTTP and gRPC."""
    host, port = plagued.http_url.split(":")
    head = b"POST /v2/models/autogaze/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{"
    slow = [socket.create_connection((host, int(port))) for _ in range(40)]
    slow += [socket.create_connection(tuple(plagued.url.split(":"))) for _ in range(40)]
    try:
        for each in slow[:40]:
            each.sendall(head)
        for each in slow[40:]:
            each.sendall(b"PRI * HTTP/2.0\r\n")
        with GazeClient(plagued.url) as client:
            for _ in range(3):
                assert client.gaze(clip(1), **KNOBS).tokens_per_frame.sum() > 0
        with triton.InferenceServerClient(plagued.url) as raw:
            assert raw.is_server_ready()
    finally:
        for each in slow:
            each.close()


def test_a_client_killed_with_its_clip_in_flight_leaves_the_server_to_others(plagued):
    code = """
        import sys
        import numpy as np
        from autogaze_client import GazeClient

        client = GazeClient(sys.argv[1])
        print("asking", flush=True)
        client.gaze(np.zeros((200, 64, 64, 3), np.uint8), gazing_ratio=1.0)
    """
    caller = python(code, plagued.url, stderr=subprocess.DEVNULL)
    assert caller.stdout.readline() == "asking\n"
    time.sleep(0.5)
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    with GazeClient(plagued.url) as client:
        assert client.gaze(clip(1), **KNOBS).tokens_per_frame.sum() > 0
