"""The runtime's log: plain lines, or one JSON object a line for log collectors (AUTOGAZE_LOG_FORMAT=json)."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from enum import Enum

from autogaze_client._errors import InvalidInputError

FORMAT_VARIABLE = "AUTOGAZE_LOG_FORMAT"
LEVEL_VARIABLE = "AUTOGAZE_LOG_LEVEL"

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# What logging puts on every record; the rest came through ``extra`` and is a field of its own.
_BUILT_IN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogFormat(str, Enum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> LogFormat:
        """AUTOGAZE_LOG_FORMAT, by default text.

        Raises:
            InvalidInputError: it names no format.
        """
        name = environ.get(FORMAT_VARIABLE) or cls.TEXT.value
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(item.value for item in cls)
            raise InvalidInputError(f"{FORMAT_VARIABLE} is {name!r}; it must be one of {known}") from None


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the fields of ``extra``, and any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields = {
            "time": json_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _BUILT_IN}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        # In ASCII: what standard error makes of other characters in a server without a locale is no JSON.
        return json.dumps(fields, default=str)


class _TextFormatter(logging.Formatter):
    """Level, model, request id and message."""

    def format(self, record: logging.LogRecord) -> str:
        about = [str(getattr(record, name)) for name in ("model", "request_id") if getattr(record, name, "")]
        line = f"{record.levelname} {' '.join(about) or record.name}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def json_time(seconds: float) -> str:
    """Seconds since 1970 in RFC 3339, UTC, to the microsecond."""
    return (
        datetime.fromtimestamp(seconds, timezone.utc)
        .isoformat(timespec="microseconds")
        .replace("+00:00", "Z")
    )


def configure_logging(environ: Mapping[str, str] = os.environ) -> LogFormat:
    """Sends the logger ``autogaze`` to standard error in the format and from the level that the variables name.

    Returns:
        The format. In JSON every request is logged at level info; in text only what needs attention is.

    Raises:
        InvalidInputError: a variable names no format or no level.
    """
    chosen = LogFormat.from_environment(environ)
    level = (environ.get(LEVEL_VARIABLE) or "INFO").upper()
    if level not in _LEVELS:
        known = ", ".join(_LEVELS).lower()
        raise InvalidInputError(f"{LEVEL_VARIABLE} is {level!r}; it must be one of {known}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if chosen is LogFormat.JSON else _TextFormatter())
    logger = logging.getLogger("autogaze")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    return chosen
