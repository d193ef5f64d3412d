"""Serves the page from a thread, as a context manager."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from autogaze_client._async_client import AsyncGazeClient
from autogaze_client._config import check_url
from autogaze_client._errors import InvalidInputError, MissingExtraError

__all__ = ["ViewerServer"]

_START_SECONDS = 10.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ViewerServer:
    """The viewer page; a context manager.

    Args:
        url: gRPC endpoint of the gaze server, ``host:port``. It need not run yet.
        host: address to listen on; the loopback unless somebody else is to see the page.
        port: 0 takes a free one.
        connect: makes a client, in place of ``AsyncGazeClient(url)``.

    Raises:
        InvalidInputError: ``url`` is not host:port, or the port is taken.
        MissingExtraError: Starlette or uvicorn is not installed.

    Example:
        >>> with ViewerServer("localhost:8001", port=0) as viewer:  # doctest: +SKIP
        ...     print(viewer.page_url)
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        connect: Callable[[], AsyncGazeClient] | None = None,
    ) -> None:
        try:
            import uvicorn

            from autogaze_client.viewer.app import viewer_app
        except ImportError as error:
            raise MissingExtraError.for_extra("the viewer page", "view", error) from error
        check_url(url)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise InvalidInputError(
                f"the page cannot listen on {host}:{port} ({error.strerror}); pass another --port, or 0"
            ) from error
        self.host, self.port = host, int(self._socket.getsockname()[1])
        app = viewer_app(
            connect or (lambda: AsyncGazeClient(url)),
            server_url=url,
            hosts=frozenset({host, *_LOOPBACK, *((socket.gethostname(),) if host not in _LOOPBACK else ())}),
        )
        config = uvicorn.Config(app, log_level="warning", ws_max_size=2**27, timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="autogaze-viewer", daemon=True
        )

    @property
    def page_url(self) -> str:
        """Where a browser finds the page."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}/"

    def start(self) -> None:
        """Starts serving; returns when the page answers.

        Raises:
            InvalidInputError: it does not start.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise InvalidInputError(f"the page did not start on {self.page_url}; see the log above")
            time.sleep(0.02)

    def wait(self) -> None:
        """Returns when the server ends."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def stop(self) -> None:
        """Ends serving."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_START_SECONDS)
        self._socket.close()

    def __enter__(self) -> ViewerServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
