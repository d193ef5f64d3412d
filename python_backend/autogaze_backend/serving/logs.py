"""Reads the server's log: passes every line on and keeps what explains a failure."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import IO

from autogaze_backend.logs import json_time

__all__ = ["LogPump", "as_json_line", "explain_failure", "log_to_logger"]

_KEPT_LINES = 500
_PREFIX = re.compile(r"^([IWEFV])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ (?:\S+\] )?(.*)$")
_LEVELS = {
    "V": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}
# Said on every machine without a GPU, whatever else happens.
_HARMLESS = ("CudaDriverHelper has not been initialized", "Error: Failed to initialize NVML")
# The line after it says the same and names the model.
_REPEATED = "ERROR: Failed to create instance:"

_logger = logging.getLogger("autogaze_backend.serving.tritonserver")


def log_to_logger(line: str) -> None:
    """Hands a line of the server's log to this package's logger, at the line's own level."""
    level, text = _parse(line)
    _logger.log(_LEVELS.get(level, logging.INFO), "%s", text)


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
        failed = False
        with self._stream:
            for raw in self._stream:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                with self._lock:
                    self._lines.append(line)
                try:
                    self._on_line(line)
                except Exception:
                    # Once: a callback that writes to a closed pipe fails on every line.
                    if not failed:
                        _logger.exception("the log callback failed on: %s", line)
                    failed = True


def as_json_line(line: str, seconds: float) -> str:
    """A line of the server's log as one JSON object; one that is JSON already, as the models', stays as it is.

    Args:
        line: as the server wrote it.
        seconds: when it came, since 1970.
    """
    if line.startswith("{"):
        try:
            json.loads(line)
            return line
        except ValueError:
            pass
    level, text = _parse(line)
    fields = {
        "time": json_time(seconds),
        "level": logging.getLevelName(_LEVELS.get(level, logging.INFO)).lower(),
        "logger": "tritonserver",
        "message": text,
    }
    return json.dumps(fields)


def explain_failure(lines: Iterable[str], limit: int = 30) -> str:
    """The part of a log that says why the server ended: its error messages, else its tail.

    Args:
        lines: The log, oldest first.
        limit: Most lines to return.
    """
    everything = list(lines)
    errors = [text for text in map(_error_text, everything) if text]
    if any(text.startswith("failed to load") for text in errors):
        errors = [text for text in errors if not text.startswith(_REPEATED)]
    # dict: each message once, in order.
    reason = [line for text in dict.fromkeys(errors) for line in text.splitlines() if line.strip()]
    return "\n".join(reason[:limit] if reason else everything[-limit:])


def _error_text(line: str) -> str:
    level, text = _parse(line)
    is_error = level in ("E", "F") or (not level and ("ERROR" in text or text.lower().startswith("error:")))
    return text if is_error and not text.startswith(_HARMLESS) else ""


def _parse(line: str) -> tuple[str, str]:
    """The level letter (empty without one) and the message, of which Triton writes a JSON string."""
    match = _PREFIX.match(line)
    if not match:
        return "", line
    text = match[2]
    try:
        return match[1], str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        return match[1], text
