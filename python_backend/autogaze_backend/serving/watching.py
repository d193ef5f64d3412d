"""Watches one running server: its processes all the time, its answers at intervals."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

from autogaze_client._errors import ServerUnavailableError

from autogaze_backend.serving.probing import ServerCanary
from autogaze_backend.serving.processes import ServerProcess
from autogaze_backend.serving.server import TritonServer
from autogaze_backend.serving.supervision_config import SupervisionConfig

__all__ = ["ServerWatch"]

# Models may be loaded and unloaded; a new stub is watched from then on.
_LOOK_AROUND_SECONDS = 1.0
# A server that has ended takes its stubs along, and its guard a moment to clear up after them.
_CLEARING_SECONDS = 2.0
# After a canary that failed.
_RETRY_SECONDS = 0.5


class ServerWatch:
    """A context manager; a thread of its own runs the canary, which may hang.

    Args:
        server: one that is ready.
        stubs: its processes from before it was found to be; one that died since is missed.
        supervision: how it is watched.
        explicit: whether clients may load and unload models, so that the end of a stub need not be a fault.
    """

    def __init__(
        self,
        server: TritonServer,
        stubs: frozenset[ServerProcess],
        supervision: SupervisionConfig,
        *,
        explicit: bool,
    ) -> None:
        self._server, self._supervision, self._explicit = server, supervision, explicit
        self._canary = ServerCanary(
            server.connect(), server.metrics_url, server.name, timeout=supervision.canary_timeout
        )
        self._stubs = stubs
        self._looked = time.monotonic()
        self._failures = 0
        self._complaint = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run_canaries, name="autogaze-canary", daemon=True)

    def __enter__(self) -> ServerWatch:
        """Begins with the canaries."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends them; one that is under way is left to its timeout."""
        self._closed.set()

    def complaint(self) -> str:
        """What the last canary complained about; empty where it was content."""
        return self._complaint

    def broken(self) -> str | None:
        """What makes a restart necessary; None where nothing does."""
        if self._server.poll() is not None:
            return self._end_of_server()
        for stub in self._stubs:
            if not stub.is_alive() and self._is_missed(stub):
                if self._server.process() is None:
                    return self._end_of_server()
                return f"the process {stub.pid} of {stub.instance} has died"
        if time.monotonic() - self._looked > _LOOK_AROUND_SECONDS:
            self._look_around()
        if self._failures >= self._supervision.canary_failures:
            return f"{self._failures} canaries in a row failed, the last: {self._complaint}"
        return None

    def _end_of_server(self) -> str:
        """In full: its log says why."""
        deadline = time.monotonic() + _CLEARING_SECONDS
        while self._server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return str(self._server.exit_error())

    def _is_missed(self, stub: ServerProcess) -> bool:
        if not self._explicit:
            return True
        self._look_around()
        if any(other.role == stub.role for other in self._stubs):
            return False
        return self._canary.is_loaded(Path(stub.model).parents[1].name)

    def _look_around(self) -> None:
        self._looked = time.monotonic()
        self._stubs = self._server.stubs() if self._explicit else self._stubs

    def _run_canaries(self) -> None:
        pause = self._supervision.canary_interval
        while not self._closed.wait(pause):
            try:
                self._canary.run()
                self._complaint, self._failures = "", 0
                pause = self._supervision.canary_interval
            except ServerUnavailableError as error:
                self._complaint = str(error)
                self._failures += 1
                pause = min(_RETRY_SECONDS, self._supervision.canary_interval)
            except Exception as error:
                # The connection may be cut anywhere when the server ends.
                self._complaint = f"the canary failed: {error!r}"
                self._failures += 1
                pause = min(_RETRY_SECONDS, self._supervision.canary_interval)
        self._canary.close()
