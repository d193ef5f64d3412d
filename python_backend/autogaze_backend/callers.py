"""Who waits for a request: whether the caller has gone, and when its time is over. Asked between steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from autogaze_client._errors import AutoGazeError, DeadlineExceededError, RequestCancelledError

# The question goes to the server's process and back: 30 to 100 µs, as long as a frame of a stream takes, so the answer
# is good for this long. With many requests in flight, to ask each of them often would take the core that serves them.
ASK_SECONDS = 0.1


class Caller:
    """The caller of one request. Its time runs from here on.

    Args:
        cancelled: whether the caller has gone.
        seconds: how long it waits; None = as long as it takes.
        clock: seconds.
    """

    def __init__(
        self,
        cancelled: Callable[[], bool] = lambda: False,
        seconds: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cancelled, self._clock = cancelled, clock
        self.seconds = seconds
        self._began = clock()
        self._asked = float("-inf")
        self._gone = False

    @classmethod
    def of(cls, request: Any, *, fresh: bool = False) -> Caller:
        """The caller of a request of Triton's python backend; its time is the request's ``timeout``.

        Args:
            request: of the server.
            fresh: whether it came a moment ago, so that its caller counts as asked just now.
        """
        microseconds = request.timeout()
        caller = cls(request.is_cancelled, microseconds / 1e6 if microseconds else None)
        if fresh:
            caller._asked = caller._began
        return caller

    @property
    def waited(self) -> float:
        """Seconds since the request came."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds that the caller still waits, at least a microsecond; None = as long as it takes."""
        return None if self.seconds is None else max(self.seconds - self.waited, 1e-6)

    def lost(self, progress: str = "before it began") -> AutoGazeError | None:
        """Why the request is not worth more work; None while it is.

        Args:
            progress: how far it has come, for the message.
        """
        now = self._clock()
        if not self._gone and now - self._asked >= ASK_SECONDS:
            self._asked, self._gone = now, bool(self._cancelled())
        if self._gone:
            return RequestCancelledError(f"the caller cancelled the request {progress}")
        if self.seconds is not None and now - self._began >= self.seconds:
            return DeadlineExceededError(
                f"the {self.seconds:g} s that the caller allowed were over {progress}; allow more (timeout), or send "
                "less"
            )
        return None

    def check(self, progress: str = "before it began") -> None:
        """Raises what ``lost`` returns.

        Raises:
            RequestCancelledError: the caller has gone.
            DeadlineExceededError: its time is over.
        """
        error = self.lost(progress)
        if error is not None:
            raise error
