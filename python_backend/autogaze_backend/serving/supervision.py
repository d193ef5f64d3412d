"""A Triton server that is watched, and replaced when it does not do its work."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from autogaze_client._errors import (
    AutoGazeError,
    DeadlineExceededError,
    InvalidInputError,
    ServerUnavailableError,
)

from autogaze_backend.serving.config import ModelControlMode, TritonServerConfig
from autogaze_backend.serving.errors import ServerStartError
from autogaze_backend.serving.installation import TritonInstallation
from autogaze_backend.serving.probing import ServerCanary
from autogaze_backend.serving.processes import ServerProcess
from autogaze_backend.serving.server import TritonServer
from autogaze_backend.serving.status_page import StatusPage
from autogaze_backend.serving.supervision_config import SupervisionConfig, SupervisionState, SupervisionStatus
from autogaze_backend.serving.watching import ServerWatch

__all__ = ["SupervisedServer"]

_LOG = logging.getLogger("autogaze.supervisor")
_POLL_SECONDS = 0.1


class SupervisedServer:
    """A ``TritonServer`` that is replaced when a process of it dies or when it fails its canary.

    The ports stay the same, so clients find the new server where the old one was. Nothing else does: requests in
    flight fail with UNAVAILABLE, streams start anew.

    Args:
        config: How the server is to run.
        supervision: How it is watched.
        on_log: As for ``TritonServer``.
        installation: As for ``TritonServer``.
        on_change: Called from a thread with every new status.

    Example:
        >>> supervision = SupervisionConfig(port=0)
        >>> with SupervisedServer(config, supervision) as server:  # doctest: +SKIP
        ...     server.wait_until_ready(timeout=60)
        ...     server.wait()  # until it is given up
    """

    def __init__(
        self,
        config: TritonServerConfig,
        supervision: SupervisionConfig | None = None,
        *,
        on_log: Callable[[str], None] | None = None,
        installation: TritonInstallation | None = None,
        on_change: Callable[[SupervisionStatus], None] | None = None,
    ) -> None:
        self._config = config
        self._supervision = supervision or SupervisionConfig()
        self._on_log, self._installation = on_log, installation
        self._on_change = on_change or (lambda status: None)
        self._server = TritonServer(config, on_log=on_log, installation=installation)
        self._status = SupervisionStatus(SupervisionState.STARTING)
        self._error: ServerStartError | None = None
        self._page: StatusPage | None = None
        self._thread: threading.Thread | None = None
        self._stubs: frozenset[ServerProcess] = frozenset()
        self._stopping = threading.Event()
        self._over = threading.Event()
        # Guards which server is the current one, so that none is started after a stop.
        self._lock = threading.Lock()
        self._restarted_at: deque[float] = deque()

    def __enter__(self) -> SupervisedServer:
        """Starts the server; does not wait until it is ready."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server."""
        self.stop()

    @property
    def server(self) -> TritonServer:
        """The server that runs now; another one after a restart."""
        return self._server

    @property
    def url(self) -> str:
        """Where gRPC clients find it, ``host:port``, also after a restart."""
        return self._server.url

    @property
    def http_url(self) -> str:
        """Where HTTP clients find it, ``host:port``."""
        return self._server.http_url

    @property
    def metrics_url(self) -> str:
        """Its Prometheus page."""
        return self._server.metrics_url

    @property
    def status_url(self) -> str | None:
        """Where ``/ready``, ``/live`` and ``/metrics`` of the supervision are; None without a port."""
        return f"http://{self._server.reachable_host}:{self._page.port}" if self._page else None

    @property
    def status(self) -> SupervisionStatus:
        """How it fares now."""
        return self._status

    def start(self) -> None:
        """Starts the server and the page; returns before it is ready.

        Raises:
            UnsupportedHostError: This machine or Python cannot run the server.
            ServerFetchError: The server could not be fetched.
            ServerStartError: A port is taken, or it was started before.
        """
        if self._page is not None or self._thread is not None or self._stopping.is_set():
            raise ServerStartError("this server was started before: make another SupervisedServer")
        if self._supervision.port is not None:
            self._page = StatusPage(self._config.host, self._supervision.port, lambda: self._status)
        try:
            self._server.start()
        except BaseException:
            self._close_page()
            raise

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Returns when the server has answered its first canary; it is supervised from then on.

        Args:
            timeout: Seconds to wait.

        Raises:
            ServerStartError: The server ended; a first start that fails is not repeated.
            DeadlineExceededError: It is still not ready.
        """
        if self._thread is not None:
            raise InvalidInputError("wait_until_ready is for the start: read status, or ask /ready, later")
        deadline = time.monotonic() + timeout
        self._server.wait_until_ready(timeout)
        ports = self._server.ports
        # A server that is started again listens where its clients look for it.
        self._config = replace(
            self._config, http_port=ports.http, grpc_port=ports.grpc, metrics_port=ports.metrics
        )
        self._first_canary(deadline)
        self._thread = threading.Thread(target=self._supervise, name="autogaze-supervisor", daemon=True)
        self._thread.start()
        self._change(SupervisionStatus(SupervisionState.READY))

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the server is given up or stopped.

        Args:
            timeout: Seconds; None waits for ever.

        Returns:
            True when it was stopped, False when the time is up.

        Raises:
            ServerStartError: It was given up; the message says why.
        """
        if not self._over.wait(timeout):
            return False
        if self._error is not None:
            raise self._error
        return True

    def stop(self) -> None:
        """Stops the server; what is in flight gets ``exit_timeout`` seconds. Idempotent."""
        self._stopping.set()
        try:
            with self._lock:
                server = self._server
            server.stop()
        finally:
            if self._thread is not None:
                self._thread.join()
            self._close_page()
            if self._status.is_live:
                self._change(
                    replace(self._status, state=SupervisionState.STOPPED, reason="it was told to stop")
                )
            self._over.set()

    def _supervise(self) -> None:
        try:
            while (reason := self._broken()) is not None:
                if not self._restart(reason):
                    return
        except Exception as error:
            # Nobody would notice that nobody watches.
            _LOG.exception("the supervision itself failed")
            self._give_up(f"the supervision failed: {error!r}", self._server)

    def _broken(self) -> str | None:
        """Watches the server until something is wrong with it and says what; None when it is to stop."""
        with ServerWatch(self._server, self._stubs, self._supervision, explicit=self._is_explicit()) as watch:
            while not self._stopping.wait(_POLL_SECONDS):
                try:
                    reason = watch.broken()
                except ServerStartError:
                    # A stop takes the server away while it is watched.
                    if self._stopping.is_set():
                        return None
                    raise
                if reason is not None:
                    return None if self._stopping.is_set() else reason
                self._show(watch.complaint())
        return None

    def _show(self, complaint: str) -> None:
        state = SupervisionState.FAILING if complaint else SupervisionState.READY
        if state is not self._status.state:
            if complaint:
                _LOG.warning("not ready: %s", complaint)
            self._change(replace(self._status, state=state, reason=complaint))

    def _restart(self, reason: str) -> bool:
        """Replaces the server; False where it is to stop or is given up."""
        noticed = time.monotonic()
        while True:
            old = self._server
            self._change(replace(self._status, state=SupervisionState.RESTARTING, reason=reason))
            if self._spent():
                old.kill()
                self._give_up(reason, old)
                return False
            delay = self._delay()
            _LOG.warning("restarting the server%s: %s", f" in {delay:g} s" if delay else "", reason)
            old.kill()
            if self._stopping.wait(delay):
                return False
            self._restarted_at.append(time.monotonic())
            try:
                if not self._replace():
                    return False
            except AutoGazeError as error:
                reason = f"it did not start again: {error}"
                continue
            seconds = time.monotonic() - noticed
            _LOG.warning("serving again %.1f s after the fault was noticed", seconds)
            self._change(
                SupervisionStatus(
                    SupervisionState.READY, reason, self._status.restarts + 1, round(seconds, 3)
                )
            )
            return True

    def _replace(self) -> bool:
        """Starts another server and waits until it answers; False where it is to stop."""
        with self._lock:
            if self._stopping.is_set():
                return False
            server = TritonServer(self._config, on_log=self._on_log, installation=self._installation)
            server.start()
            self._server = server
        deadline = time.monotonic() + self._supervision.ready_timeout
        connection = server.connect()
        try:
            while not server.is_ready(connection):
                if self._stopping.wait(_POLL_SECONDS):
                    return False
                if server.poll() is not None:
                    raise server.exit_error()
                if time.monotonic() >= deadline:
                    raise DeadlineExceededError(f"not ready within {self._supervision.ready_timeout:g} s")
            self._first_canary(deadline)
        except ServerStartError:
            # A stop takes the server away while it is waited for.
            if self._stopping.is_set():
                return False
            raise
        finally:
            connection.close()
        return not self._stopping.is_set()

    def _first_canary(self, deadline: float) -> None:
        self._stubs = self._server.stubs()
        server, timeout = self._server, self._supervision.canary_timeout
        canary = ServerCanary(server.connect(), server.metrics_url, server.name, timeout=timeout)
        try:
            while True:
                try:
                    canary.run()
                    return
                except ServerUnavailableError as error:
                    if self._server.poll() is not None:
                        raise self._server.exit_error() from error
                    if time.monotonic() >= deadline:
                        raise DeadlineExceededError(f"loaded, but not ready: {error}") from error
                if self._stopping.wait(_POLL_SECONDS):
                    return
        finally:
            canary.close()

    def _spent(self) -> bool:
        since = time.monotonic() - self._supervision.restart_window
        while self._restarted_at and self._restarted_at[0] < since:
            self._restarted_at.popleft()
        return len(self._restarted_at) >= self._supervision.max_restarts

    def _delay(self) -> float:
        recent = len(self._restarted_at)
        if not recent:
            return 0.0
        return float(min(self._supervision.backoff * 2 ** (recent - 1), self._supervision.max_backoff))

    def _give_up(self, reason: str, server: TritonServer) -> None:
        limit = self._supervision
        often = (
            f"gave up after {limit.max_restarts} restarts within {limit.restart_window:g} s"
            if limit.max_restarts
            else "it is not restarted (max_restarts is 0)"
        )
        self._error = ServerStartError(f"{reason}\n{often}: correct what the log names and start again")
        _LOG.error("%s: %s", often, reason.splitlines()[0])
        self._change(replace(self._status, state=SupervisionState.GIVEN_UP, reason=reason))
        self._over.set()

    def _is_explicit(self) -> bool:
        return self._config.model_control_mode is ModelControlMode.EXPLICIT

    def _change(self, status: SupervisionStatus) -> None:
        self._status = status
        try:
            self._on_change(status)
        except Exception:
            _LOG.exception("the callback of a change of status failed")

    def _close_page(self) -> None:
        page, self._page = self._page, None
        if page is not None:
            page.close()
