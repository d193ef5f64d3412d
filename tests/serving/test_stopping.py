"""What a stopping server still waits for, as its log says."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
from autogaze_backend.serving.stopping import IDLE_SECONDS, IdleStreams, in_flight_models

STREAMS = "I1127 1 server.cc:325] \"Model 'autogaze_stream' (version 1) has 2 in-flight inferences\""
CLIPS = "I1127 1 server.cc:325] \"Model 'autogaze_generate' (version 1) has 1 in-flight inferences\""


def heading(models: int, left: int = 9) -> str:
    return f'I1127 1 server.cc:321] "Timeout {left}: Found {models} model versions that have in-flight inferences"'


@pytest.mark.parametrize(
    ("lines", "models"),
    [
        ([], set()),
        ([heading(0)], set()),
        ([heading(1), STREAMS], {"autogaze_stream"}),
        ([heading(2), STREAMS, CLIPS, heading(1), STREAMS], {"autogaze_stream"}),
        ([heading(2), CLIPS, STREAMS], {"autogaze_stream", "autogaze_generate"}),
        # The newest list is not whole yet.
        ([heading(1), CLIPS, heading(2), STREAMS], {"autogaze_generate"}),
        ([heading(1), CLIPS, heading(1), "another line"], {"autogaze_generate"}),
    ],
)
def test_the_newest_whole_list_counts(lines, models):
    assert in_flight_models(lines) == models


@pytest.fixture
def page() -> Iterator[tuple[str, list[str]]]:
    text = [""]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text[0].encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/metrics", text
        running.shutdown()


def counted(frames: int) -> str:
    return f'nv_inference_count{{model="autogaze_stream",version="1"}} {frames}\n'


def test_streams_are_idle_when_nothing_was_counted_for_a_while(page):
    url, text = page
    now, lines = [0.0], [heading(1), STREAMS]
    idle = IdleStreams(url, lambda: lines, clock=lambda: now[0])

    def after(seconds: float) -> bool:
        now[0] += seconds
        return idle.are_all()

    text[0] = counted(5)
    assert not after(0)
    assert not after(IDLE_SECONDS * 0.9)
    text[0] = counted(6)  # a frame
    assert not after(IDLE_SECONDS * 0.9)
    assert after(IDLE_SECONDS * 1.1)
    lines[:] = [heading(2), STREAMS, CLIPS]
    assert not after(IDLE_SECONDS), "a clip is in flight"
    lines[:] = [heading(1), STREAMS]
    assert not after(IDLE_SECONDS), "the time begins anew"
    assert after(IDLE_SECONDS * 1.1)


def test_a_server_without_metrics_is_waited_for():
    now = [0.0]
    idle = IdleStreams("http://127.0.0.1:9/metrics", lambda: [heading(1), STREAMS], clock=lambda: now[0])
    for _ in range(3):
        now[0] += IDLE_SECONDS
        assert not idle.are_all()
