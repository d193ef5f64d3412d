"""Tells when a stopping server waits for nothing but streams that nobody uses any more.

Triton counts an open sequence as a request in flight. A camera that is idle, or was never closed, would hold up every
stop for the whole exit timeout.
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Sequence

from autogaze_backend.serving.probing import STREAM_MODEL

__all__ = ["IdleStreams", "in_flight_models"]

IDLE_SECONDS = 2.0
"""Streams that push a frame within this time are served until the exit timeout."""

_HEADING = re.compile(r"Timeout \d+: Found (\d+) model versions that have in-flight inferences")
_ENTRY = re.compile(r"Model '([^']+)' \(version \d+\) has \d+ in-flight inferences")
_COUNTERS = ("nv_inference_count{", "nv_inference_pending_request_count{", "autogaze_steps_total{")


class IdleStreams:
    """Asked again and again while a server stops.

    Args:
        metrics_url: the server's Prometheus page, which it serves until it has ended.
        log_lines: the newest lines of its log.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        metrics_url: str,
        log_lines: Callable[[], Sequence[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics_url, self._log_lines, self._clock = metrics_url, log_lines, clock
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._seen: tuple[str, ...] | None = None
        self._since = 0.0

    def are_all(self) -> bool:
        """Whether open streams are all that is in flight, and none had a frame for ``IDLE_SECONDS``."""
        if in_flight_models(self._log_lines()) != {STREAM_MODEL}:
            self._seen = None
            return False
        counters = self._counters()
        if counters is None or counters != self._seen:
            self._seen, self._since = counters, self._clock()
            return False
        return self._clock() - self._since >= IDLE_SECONDS

    def _counters(self) -> tuple[str, ...] | None:
        try:
            with self._http.open(self._metrics_url, timeout=1.0) as page:
                lines = page.read().decode(errors="replace").splitlines()
        except OSError:
            return None
        return tuple(
            line for line in lines if line.startswith(_COUNTERS) and f'model="{STREAM_MODEL}"' in line
        )


def in_flight_models(lines: Sequence[str]) -> set[str]:
    """The models of the newest whole list in a stopping server's log; none where it has written none."""
    for start in reversed(range(len(lines))):
        heading = _HEADING.search(lines[start])
        if heading is None:
            continue
        entries = [_ENTRY.search(line) for line in lines[start + 1 : start + 1 + int(heading[1])]]
        found = {entry[1] for entry in entries if entry}
        if len(entries) == int(heading[1]) and all(entries):
            return found
    return set()
