"""Waiting for the device: awake as long as it is soon done, then in naps, so that others have the core."""

from __future__ import annotations

import time
from collections.abc import Callable

# A nap may end some tens of microseconds late.
_NAP_SECONDS = 1e-4


class Waiting:
    """How a host waits for its device.

    CUDA's own waits take a core for as long as they last: with several processes on a GPU, which take turns, that is
    most of the time, and the cores are needed to make the next batches.

    Args:
        awake_seconds: that a wait takes its core. A clip alone takes the device a few milliseconds, and its host
            should not oversleep.
    """

    def __init__(self, awake_seconds: float = 2e-3) -> None:
        self._awake = awake_seconds

    def until(self, ready: Callable[[], bool], seconds: float | None = None) -> bool:
        """Waits until ``ready``, which is asked often; other threads run meanwhile.

        Args:
            ready: what is waited for.
            seconds: to wait at most; None for ever.

        Returns:
            What ``ready`` said last.
        """
        if ready():
            return True
        started = time.monotonic()
        while not ready():
            waited = time.monotonic() - started
            if seconds is not None and waited > seconds:
                return False
            time.sleep(0 if waited < self._awake else _NAP_SECONDS)
        return True
