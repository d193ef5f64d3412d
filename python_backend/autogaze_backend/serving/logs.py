"""Reads the server's log: passes every line on and keeps what explains a failure."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import IO

__all__ = ["LogPump", "explain_failure", "log_to_logger"]

_KEPT_LINES = 500
_PREFIX = re.compile(r"^([IWEFV])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ (?:\S+\] )?(.*)$")
_LEVELS = {
    "V": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}
# Follow-ups of the real reason, which they repeat or leave out.
_FOLLOW_UPS = ("error: creating server", "failed to load all models")

_logger = logging.getLogger("autogaze_backend.serving.tritonserver")


def log_to_logger(line: str) -> None:
    """Hands a line of the server's log to this package's logger, at the line's own level."""
    match = _PREFIX.match(line)
    level, text = (_LEVELS[match[1]], match[2]) if match else (logging.INFO, line)
    _logger.log(level, "%s", text)


class LogPump:
    """A thread that reads a stream to its end, so that the server never blocks on a full pipe."""

    def __init__(self, stream: IO[bytes], on_line: Callable[[str], None]) -> None:
        self._stream = stream
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tritonserver-log", daemon=True)
        self._thread.start()

    def lines(self) -> tuple[str, ...]:
        """The newest lines (up to 500), oldest first."""
        with self._lock:
            return tuple(self._lines)

    def join(self, timeout: float) -> None:
        """Waits until the stream has ended and every line has been passed on."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        with self._stream:
            for raw in self._stream:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                with self._lock:
                    self._lines.append(line)
                try:
                    self._on_line(line)
                except Exception:
                    _logger.exception("the log callback failed on: %s", line)


def explain_failure(lines: Iterable[str], limit: int = 30) -> str:
    """The part of a log that says why the server ended: its errors with their tracebacks, else its tail.

    Args:
        lines: The log, oldest first.
        limit: Most lines to return.
    """
    everything = list(lines)
    kept: list[str] = []
    inside = False
    for line in everything:
        match = _PREFIX.match(line)
        if match:
            inside = match[1] in "EF"
            text = match[2]
        elif line.startswith(("+--", "| ")):
            inside, text = False, line
        else:
            text = line
        # Triton writes multi-line messages JSON-quoted.
        text = text.strip('"').replace("\\n", "\n").replace('\\"', '"')
        if inside and text.strip() and text not in kept:
            kept += text.splitlines()
        elif line.startswith("error:") and not line.startswith(_FOLLOW_UPS):
            kept.append(line)
    return "\n".join((kept or everything)[-limit:])
