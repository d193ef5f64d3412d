"""A Triton server as a context manager."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from autogaze_client._errors import DeadlineExceededError, InvalidInputError

from autogaze_backend.serving import _guard
from autogaze_backend.serving.command import PROBE_HEADER, server_command, server_environment
from autogaze_backend.serving.config import TritonServerConfig
from autogaze_backend.serving.connections import (
    CallFailedError,
    GrpcConnection,
    HttpConnection,
    ServerConnection,
)
from autogaze_backend.serving.errors import ServerStartError
from autogaze_backend.serving.fetching import ensure_installation
from autogaze_backend.serving.host import require_supported_host
from autogaze_backend.serving.installation import TritonInstallation
from autogaze_backend.serving.instances import instance_counts, with_instances
from autogaze_backend.serving.logs import LogPump, explain_failure, log_to_logger
from autogaze_backend.serving.ports import ServerPorts, choose_ports
from autogaze_backend.serving.processes import ServerProcess, children_of, stubs_of
from autogaze_backend.serving.stopping import IdleStreams

__all__ = ["TritonServer"]

_START_ATTEMPTS = 3
_POLL_SECONDS = 0.1
_STOP_POLL_SECONDS = 0.25
# The server keeps its own exit timeout; force is for one that does not.
_FORCE_AFTER_SECONDS = 3.0
# libevent (HTTP, metrics) and gRPC each say it in their way.
_PORT_TAKEN = ("already in use", "failed to listen", "failed to start http", "unable to create http")


class TritonServer:
    """One ``tritonserver`` process with its stubs.

    It ends with the context, and also when this process ends in any way, SIGKILL included: a small guard
    process between the two sees to it.

    Args:
        config: How it is to run.
        on_log: Called from a thread with every line of the server's log; the logger
            ``autogaze_backend.serving.tritonserver`` by default.
        installation: Which server to run; the one in the cache by default, fetched if it is not there.

    Example:
        >>> with TritonServer(TritonServerConfig(repository, grpc_port=0)) as server:  # doctest: +SKIP
        ...     server.wait_until_ready(timeout=60)
        ...     client = GazeClient(server.url)
    """

    def __init__(
        self,
        config: TritonServerConfig,
        *,
        on_log: Callable[[str], None] | None = None,
        installation: TritonInstallation | None = None,
    ) -> None:
        self.config = config
        self._on_log = on_log or log_to_logger
        self._installation = installation
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: LogPump | None = None
        self._ports: ServerPorts | None = None
        self._name = self._secret = ""

    def __enter__(self) -> TritonServer:
        """Starts the server; does not wait until it is ready."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server."""
        self.stop()

    @property
    def name(self) -> str:
        """Its Triton server id, unique on this machine; empty before the start."""
        return self._name

    @property
    def ports(self) -> ServerPorts:
        """The ports that it listens on.

        Raises:
            ServerStartError: It was not started.
        """
        if self._ports is None:
            raise ServerStartError("the server has no ports before start(): call it, or use a with block")
        return self._ports

    @property
    def reachable_host(self) -> str:
        """The address at which this machine reaches it."""
        return self._reachable(self.config.host)

    @property
    def url(self) -> str:
        """Where gRPC clients find it, ``host:port``."""
        return f"{self.reachable_host}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Where HTTP clients find it, ``host:port`` as ``tritonclient.http`` takes it."""
        return f"{self._reachable(self.config.http_host)}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Its Prometheus page."""
        return f"http://{self.reachable_host}:{self.ports.metrics}/metrics"

    @property
    def log_lines(self) -> tuple[str, ...]:
        """The newest lines of its log, up to 500, oldest first."""
        return self._pump.lines() if self._pump else ()

    def start(self) -> None:
        """Starts the process; returns before it is ready.

        Raises:
            UnsupportedHostError: This machine or Python cannot run the server.
            ServerFetchError: The server could not be fetched.
            ServerStartError: A port is taken, or the server was started before.
            InvalidInputError: A number of instances in the environment is none, or cannot be set.
        """
        if self._process is not None:
            raise ServerStartError(
                "this server is running already: stop() it first, or make another TritonServer"
            )
        facts = require_supported_host()
        installation = self._installation or ensure_installation()
        counts = instance_counts({**os.environ, **self.config.environment})
        config = replace(self.config, model_repository=with_instances(self.config.model_repository, counts))
        ports = choose_ports(config)
        name = f"autogaze-{os.getpid()}-{secrets.token_hex(4)}"
        secret = secrets.token_hex(16)
        grace = self.config.exit_timeout + _FORCE_AFTER_SECONDS
        guard = [sys.executable, "-I", "-S", str(Path(_guard.__file__)), str(os.getpid()), str(grace), name]
        self._process = subprocess.Popen(
            guard + server_command(config, installation, ports, name, secret),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=server_environment(self.config, installation, facts),
            # Ctrl-C in a terminal reaches this process alone, which then stops the server in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._pump = LogPump(self._process.stdout, self._on_log)
        self._ports, self._name, self._secret = ports, name, secret

    def poll(self) -> int | None:
        """The exit status of a server that has ended (128 + signal if killed), None while it runs.

        Raises:
            ServerStartError: It was not started.
        """
        if self._process is None:
            raise ServerStartError("the server was not started: call start(), or use a with block")
        return self._process.poll()

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Returns when the server answers over gRPC and every model is loaded.

        A server that lost a race for a free port (port 0) is started again with others.

        Args:
            timeout: Seconds to wait.

        Raises:
            ServerStartError: The server ended; the message holds the reason from its log.
            DeadlineExceededError: It is still not ready.
        """
        if not timeout > 0:
            raise InvalidInputError(f"timeout is {timeout}: it must be a positive number of seconds")
        deadline = time.monotonic() + timeout
        for attempt in range(1, _START_ATTEMPTS + 1):
            if self._becomes_ready(deadline):
                return
            if attempt == _START_ATTEMPTS or not self._lost_a_free_port():
                break
            self.stop()
            self.start()
        raise self.exit_error()

    def exit_error(self) -> ServerStartError:
        """The error that tells why the server ended, with the part of its log that says so."""
        status = self.poll()
        if self._pump:
            self._pump.join(timeout=5.0)
        return ServerStartError(
            f"tritonserver ended with exit status {status}: correct what its log names and start again\n"
            + explain_failure(self.log_lines)
        )

    def stop(self) -> None:
        """Stops the server and its stubs; what is in flight gets ``exit_timeout`` seconds. Idempotent.

        Streams that are open and have no frame for two seconds are not waited for.
        """
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.close()
            self._wait_for_end(process)
        except BaseException as error:
            # The guard ends everything at once on its second signal.
            for _ in range(2):
                process.terminate()
                time.sleep(_POLL_SECONDS)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            if self._pump:
                self._pump.join(timeout=5.0)

    def process(self) -> ServerProcess | None:
        """The process of ``tritonserver`` itself; None where it has ended, or has not come up yet."""
        guard = self._process
        children = children_of(guard.pid) if guard is not None else []
        return next((child for child in children if not child.instance), None)

    def stubs(self) -> frozenset[ServerProcess]:
        """The living processes of the models."""
        server = self.process()
        return frozenset() if server is None else stubs_of(server.pid)

    def kill(self) -> None:
        """Ends the server and its stubs by force, at once; what is in flight is lost. Idempotent."""
        server = self.process()
        if server is not None:
            with suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGKILL)
        # The guard sees it, ends the stubs and removes the shared memory.
        self.stop()
        # Unless it was killed itself.
        for region in Path("/dev/shm").glob(f"{self._name}*") if self._name else ():
            region.unlink(missing_ok=True)

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.config.exit_timeout + 2 * _FORCE_AFTER_SECONDS
        streams = IdleStreams(self.metrics_url, lambda: self.log_lines)
        while True:
            left = deadline - time.monotonic()
            try:
                process.wait(min(_STOP_POLL_SECONDS, max(left, 0)))
                return
            except subprocess.TimeoutExpired:
                if left <= 0 or streams.are_all():
                    raise

    def connect(self) -> ServerConnection:
        """What this process asks the server with, whatever its clients need; to be closed."""
        if self.config.tls is not None:
            # No client's certificate is at hand, and HTTP of this machine needs none.
            return HttpConnection(self.http_url, {PROBE_HEADER: self._secret})
        headers = {restriction.grpc_header: restriction.value for restriction in self.config.restricted}
        return GrpcConnection(self.url, headers)

    def is_ready(self, connection: ServerConnection) -> bool:
        """Whether this server, and no other at its address, answers and has loaded its models."""
        try:
            return connection.is_ready() and connection.server_name() == self._name
        except CallFailedError:
            return False

    def _becomes_ready(self, deadline: float) -> bool:
        """True when ready, False when the server has ended."""
        connection = self.connect()
        try:
            while self.poll() is None:
                if self.is_ready(connection):
                    return True
                if time.monotonic() >= deadline:
                    raise DeadlineExceededError(
                        "tritonserver is still not ready: its models may need longer to load (raise "
                        "--ready-timeout), or read its log, which ends with\n"
                        + "\n".join(self.log_lines[-15:])
                    )
                time.sleep(_POLL_SECONDS)
        finally:
            connection.close()
        return False

    def _lost_a_free_port(self) -> bool:
        if self.config.http_port and self.config.grpc_port and self.config.metrics_port:
            return False
        if self._pump:
            self._pump.join(timeout=5.0)
        text = "\n".join(self.log_lines).lower()
        return any(sign in text for sign in _PORT_TAKEN)

    @staticmethod
    def _reachable(host: str) -> str:
        return "127.0.0.1" if host == "0.0.0.0" else host
