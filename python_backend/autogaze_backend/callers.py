"""Who waits for a request: whether the caller has gone, and when its time is over. Asked between steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from autogaze_client._errors import AutoGazeError, DeadlineExceededError, RequestCancelledError

# Asking Triton takes about 30 µs, a tenth of an engine's step on a GPU, so the answer is good for this long.
ASK_SECONDS = 0.02


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
    def of(cls, request: Any) -> Caller:
        """The caller of a request of Triton's python backend; its time is the request's ``timeout``."""
        microseconds = request.timeout()
        return cls(request.is_cancelled, microseconds / 1e6 if microseconds else None)

    @property
    def waited(self) -> float:
        """Seconds since the request came."""
        return self._clock() - self._began

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
