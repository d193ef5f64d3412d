"""How a server is supervised, and how it fares."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import Enum

from autogaze_client._errors import InvalidInputError

__all__ = ["SupervisionConfig", "SupervisionState", "SupervisionStatus"]


class SupervisionState(str, Enum):
    """Where a supervised server stands."""

    STARTING = "starting"
    """Its models load for the first time."""

    READY = "ready"
    """It answers its canary."""

    FAILING = "failing"
    """Its last canary failed; a few more, and it is restarted."""

    RESTARTING = "restarting"
    """It was ended, or ended, and another one starts."""

    STOPPED = "stopped"
    """It was told to stop."""

    GIVEN_UP = "given_up"
    """It was restarted too often."""


@dataclass(frozen=True)
class SupervisionConfig:
    """Settings of a :class:`~autogaze_backend.serving.SupervisedServer`.

    Attributes:
        port: Port of ``/ready``, ``/live`` and ``/metrics``, on the server's address; 0 picks a free one, None
            opens none.
        canary_interval: Seconds from one canary to the next.
        canary_timeout: Seconds that each of its requests may take.
        canary_failures: So many in a row, and the server is restarted. The death of a process needs none.
        max_restarts: Within ``restart_window``; one more, and the server is given up. 0 never restarts.
        restart_window: Seconds.
        backoff: Seconds before the second restart of a window, doubled for each further one; the first waits for
            nothing.
        max_backoff: Seconds that this grows to.
        ready_timeout: Seconds that a restarted server may take to load its models.

    Raises:
        InvalidInputError: A value is outside its range.
    """

    port: int | None = None
    canary_interval: float = 5.0
    canary_timeout: float = 5.0
    canary_failures: int = 3
    max_restarts: int = 5
    restart_window: float = 600.0
    backoff: float = 1.0
    max_backoff: float = 30.0
    ready_timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port <= 65535:
            raise InvalidInputError(
                f"port is {self.port}: it must be 1 to 65535, 0 for a free one, or None for none"
            )
        if self.canary_failures < 1:
            raise InvalidInputError(f"canary_failures is {self.canary_failures}: it must be 1 or more")
        if self.max_restarts < 0:
            raise InvalidInputError(f"max_restarts is {self.max_restarts}: it must be 0 or more")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not (math.isfinite(value) and value > 0):
                raise InvalidInputError(f"{field.name} is {value}: it must be a positive number of seconds")


@dataclass(frozen=True)
class SupervisionStatus:
    """How a supervised server fares.

    Attributes:
        state: where it stands.
        reason: why it is not ready, or was restarted last; empty if neither.
        restarts: restarts that brought it back, since the start.
        last_restart_seconds: from the moment the last fault was noticed to the first canary that was answered again.
    """

    state: SupervisionState
    reason: str = ""
    restarts: int = 0
    last_restart_seconds: float | None = None

    @property
    def is_ready(self) -> bool:
        """Whether clients are served."""
        return self.state is SupervisionState.READY

    @property
    def is_live(self) -> bool:
        """Whether it works or will by itself."""
        return self.state not in (SupervisionState.STOPPED, SupervisionState.GIVEN_UP)
