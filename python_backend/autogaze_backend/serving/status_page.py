"""The supervisor's own page: /ready and /live for probes, /metrics for Prometheus."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from autogaze_backend.serving.errors import ServerStartError
from autogaze_backend.serving.supervision_config import SupervisionStatus

__all__ = ["StatusPage"]

# A probe that hangs must not keep a thread.
_SOCKET_SECONDS = 5.0


class StatusPage:
    """Serves a status over HTTP until it is closed.

    Args:
        host: IPv4 address to listen on.
        port: 0 picks a free one.
        status: asked at each request.

    Raises:
        ServerStartError: the port is taken.
    """

    def __init__(self, host: str, port: int, status: Callable[[], SupervisionStatus]) -> None:
        class Handler(_Handler):
            ask = staticmethod(status)

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ServerStartError(
                f"supervisor port {port} on {host} cannot be used ({error.strerror}): stop what listens there, or "
                "choose another with --supervisor-port (SupervisionConfig.port), 0 for a free one"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="autogaze-status",
            daemon=True,
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    ask: Callable[[], SupervisionStatus]
    timeout = _SOCKET_SECONDS

    def do_GET(self) -> None:
        """Answers a probe."""
        status = self.ask()
        good = {"/ready": status.is_ready, "/live": status.is_live, "/metrics": True}.get(
            self.path.partition("?")[0]
        )
        if good is None:
            code, kind, text = 404, "text/plain", "ask for /ready, /live or /metrics\n"
        elif self.path.startswith("/metrics"):
            code, kind, text = 200, "text/plain; version=0.0.4", _metrics(status)
        else:
            code, kind, text = (200 if good else 503), "application/json", _json(status)
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  as BaseHTTPRequestHandler names it

    def log_message(self, *_: object) -> None:
        """Says nothing: probes come every few seconds."""


def _json(status: SupervisionStatus) -> str:
    fields = {
        "state": status.state.value,
        "reason": status.reason,
        "restarts": status.restarts,
        "last_restart_seconds": status.last_restart_seconds,
    }
    return json.dumps(fields) + "\n"


def _metrics(status: SupervisionStatus) -> str:
    families = (
        ("ready", "gauge", "Whether the server answers its canary", int(status.is_ready)),
        ("restarts_total", "counter", "Restarts that brought the server back", status.restarts),
        (
            "last_restart_seconds",
            "gauge",
            "From noticing the last fault to serving again",
            status.last_restart_seconds,
        ),
    )
    return "".join(
        f"# HELP autogaze_supervisor_{name} {text}\n# TYPE autogaze_supervisor_{name} {kind}\n"
        f"autogaze_supervisor_{name} {value}\n"
        for name, kind, text, value in families
        if value is not None
    )
