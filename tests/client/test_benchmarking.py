"""``autogaze bench`` and what it measures."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_client import AutoGazeError, GazeClient, InferenceError, InvalidInputError
from autogaze_client._cli import main
from autogaze_client.benchmarking import measure, moving_picture
from client_helpers import FakeServer

CLIP = np.zeros((3, 12, 16, 3), np.uint8)


def test_what_is_counted(client, server: FakeServer):
    server.delay_s = 0.001
    row = measure(client, [lambda: client.gaze(CLIP)] * 2, 0.2, model="autogaze")
    assert row.clients == 2
    assert row.requests == len(server.requests) - 2, "all but the warm-up"
    assert row.errors == 0
    assert row.frames_per_s == pytest.approx(3 * row.requests_per_s)
    assert 1 <= row.p50_ms <= row.p90_ms <= row.p99_ms
    assert row.tokens_per_frame == 2
    assert row.server_ms == 3, "what the server says of its model"
    assert set(row.to_dict()) == set(row.__dataclass_fields__)


def test_failures_are_counted_and_nothing_but_failures_is_one(client, server):
    server.delay_s = 0.001
    turns = iter(range(10**6))
    server.fail_if = lambda inputs: next(turns) % 2 == 1
    row = measure(client, [lambda: client.gaze(CLIP)], 0.2, model="autogaze")
    assert abs(row.requests - row.errors) <= 1
    server.fail_if = lambda inputs: True
    with pytest.raises(InferenceError, match="engine lost"):
        measure(client, [lambda: client.gaze(CLIP)], 0.1, model="autogaze", warm_up=0)


def test_the_picture_moves():
    frames = moving_picture(5, 30, 50)
    assert (frames.shape, frames.dtype) == ((5, 30, 50, 3), np.uint8)
    np.testing.assert_array_equal(frames[1][:, :-4], frames[0][:, 4:])
    assert (frames[1] != frames[0]).any()
    with pytest.raises(InvalidInputError, match="0 frames of 50x30"):
        moving_picture(0, 30, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clients", "1,0"], "--clients is '1,0'"),
        (["--size", "720p"], "--size is '720p'"),
        (["--stream", "--mode", "tiled"], "--stream sends frames in mode resize"),
        (["--seconds", "0", "--frames", "1"], "measure nothing"),
    ],
)
def test_what_is_refused(arguments, message, capsys):
    assert main(["bench", "--url", "localhost:1", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_server_that_is_not_there(capsys):
    with pytest.raises(AutoGazeError), GazeClient("localhost:1") as client:
        measure(client, [lambda: client.gaze(CLIP)], 0.1, model="autogaze")
