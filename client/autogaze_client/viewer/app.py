"""The ASGI application: the page, its files, and a WebSocket for frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from autogaze_client._async_client import AsyncGazeClient
from autogaze_client._errors import AutoGazeError
from autogaze_client.viewer.messages import FrameRequest, answer, failure
from autogaze_client.viewer.session import LOST, ViewerSession

__all__ = ["viewer_app"]

_STATIC = Path(__file__).parent / "static"
_POLICY_VIOLATION = 1008
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def viewer_app(connect: Callable[[], AsyncGazeClient], *, server_url: str, hosts: frozenset[str]) -> ASGIApp:
    """The application.

    Args:
        connect: makes a client of the gaze server, for each page its own.
        server_url: where that is, to tell the user.
        hosts: names under which the page may be asked for. Others are refused, so that a foreign site cannot
            reach it through a name of its own.
    """

    async def page(request: Request) -> Response:
        return FileResponse(_STATIC / "index.html")

    async def settings(request: Request) -> Response:
        return JSONResponse({"server_url": server_url})

    async def frames(socket: WebSocket) -> None:
        origin = urlsplit(socket.headers.get("origin", ""))
        if origin.netloc != socket.headers.get("host"):
            await socket.close(_POLICY_VIOLATION, "another site's page may not connect")
            return
        await socket.accept()
        session = ViewerSession(connect)
        try:
            while True:
                await socket.send_text(await _answered(session, await socket.receive_bytes()))
        except WebSocketDisconnect:
            pass
        finally:
            await session.close()

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/settings", settings),
            WebSocketRoute("/frames", frames),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ]
    )
    return _Guard(app, hosts)


async def _answered(session: ViewerSession, message: bytes) -> str:
    sequence = 0
    try:
        request = FrameRequest.parse(message)
        sequence = request.sequence
        started = time.perf_counter()
        result = await session.gaze(request)
        return answer(request, result, (time.perf_counter() - started) * 1e3)
    except AutoGazeError as error:
        return failure(sequence, error, lost=isinstance(error, LOST))


class _Guard:
    """Answers only under known host names, and adds headers that keep the page to itself."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if urlsplit(f"//{host}").hostname not in self._hosts:
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).close(_POLICY_VIOLATION)
            else:
                await Response("unknown host name", 421)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        await self._app(scope, receive, with_headers)
