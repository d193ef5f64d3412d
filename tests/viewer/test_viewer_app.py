"""The viewer without a browser: messages, who may connect, and errors."""

from __future__ import annotations

import http.client
import json

import numpy as np
import pytest
from autogaze_client import InvalidInputError
from autogaze_client.viewer.messages import FrameRequest
from autogaze_client.viewer.serving import ViewerServer
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def message(frame: np.ndarray, **changes: object) -> bytes:
    fields = {
        "sequence": 7,
        "width": frame.shape[1],
        "height": frame.shape[0],
        "source": "patch-diff",
        "mode": "resize",
        "geometry": "native",
        "requirement": 0.3,
        "restart": False,
    }
    header = json.dumps({**fields, **changes}).encode()
    return len(header).to_bytes(4, "little") + header + frame.tobytes()


@pytest.fixture(scope="module")
def viewer():
    with ViewerServer("localhost:1") as serving:
        yield serving


def open_socket(viewer: ViewerServer, **headers: str):
    address = viewer.page_url.replace("http", "ws") + "frames"
    return connect(address, origin=headers.get("origin", viewer.page_url.rstrip("/")))


def test_patch_differences_come_as_exact_cells(viewer):
    black = np.zeros((28, 30, 4), np.uint8)
    changed = black.copy()
    changed[:4, :6, :3] = 255
    with open_socket(viewer) as socket:
        socket.send(message(black))
        assert json.loads(socket.recv())["cells"] == []
        socket.send(message(changed))
        answer = json.loads(socket.recv())
        assert answer["sequence"] == 7
        found = np.reshape(answer["cells"], (-1, 5)).tolist()
        assert [0, 3, 0, 2, 14] in found
        assert answer["tokens"] == len(found) == 6
        socket.send(message(black, restart=True))
        assert json.loads(socket.recv())["cells"] == []


def test_errors_are_answers(viewer):
    frame = np.zeros((4, 4, 4), np.uint8)
    with open_socket(viewer) as socket:
        for bad, text in (
            (b"abc", "damaged"),
            (message(frame, mode="upside-down"), "no inference mode"),
            (message(frame, width=5), "needs 80"),
            (message(frame, requirement=-1), "at least 0"),
            (message(frame, source="guess"), "'autogaze' or 'patch-diff'"),
        ):
            socket.send(bad)
            answer = json.loads(socket.recv())
            assert text in answer["error"]
            assert not answer["lost"]
        socket.send(message(frame, source="autogaze"))
        assert json.loads(socket.recv())["lost"]
        socket.send(message(frame))
        assert json.loads(socket.recv())["cells"] == []


def test_another_site_may_not_connect(viewer):
    with (
        pytest.raises((InvalidStatus, ConnectionClosed)),
        open_socket(viewer, origin="http://elsewhere.example") as s,
    ):
        s.recv()


def fetch(viewer: ViewerServer, path: str, host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(viewer.host, viewer.port, timeout=10)
    connection.request("GET", path, headers={"Host": host or f"{viewer.host}:{viewer.port}"})
    return connection.getresponse()


def test_the_page_keeps_to_itself(viewer):
    """Localhost only, known names only, and a policy that forbids third parties."""
    assert viewer.host == "127.0.0.1"
    response = fetch(viewer, "/")
    assert response.status == 200
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert fetch(viewer, "/", "rebound.example").status == 421
    assert json.loads(fetch(viewer, "/settings").read()) == {"server_url": "localhost:1"}
    page = response.read().decode()
    assert "http://" not in page
    assert "https://" not in page
    assert fetch(viewer, "/static/../serving.py").status == 404


def test_a_taken_port_is_named(viewer):
    with pytest.raises(InvalidInputError, match=f"cannot listen on 127.0.0.1:{viewer.port}"):
        ViewerServer("localhost:1", port=viewer.port)
    with pytest.raises(InvalidInputError, match="must be host:port"):
        ViewerServer("nowhere")


def test_messages_parse():
    frame = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    request = FrameRequest.parse(message(frame, source="autogaze", mode="tiled-resize-to-grid"))
    np.testing.assert_array_equal(request.frame, frame)
    assert request.mode.is_tiled
    assert not request.patch_diff
