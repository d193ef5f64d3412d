"""A browser, a gaze server that can be killed, and the page between them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# Of a module: while playwright runs, no test of asyncio can start a loop of its own.
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with a profile of its own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; make setup")
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=executable,
            args=list(FLAGS),
            headless=True,
            viewport={"width": 1360, "height": 860},
            permissions=["camera"],
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def triton(bundle: Callable[[str], Path]) -> Iterator[Callable[[int], Any]]:
    """Starts the real server with the seeded bundle on a port (0 = a free one)."""
    running: list[TritonServer] = []

    def start(port: int) -> TritonServer:
        config = TritonServerConfig(
            model_repository_path(),
            grpc_port=port,
            http_port=0,
            metrics_port=0,
            environment={"AUTOGAZE_BUNDLE": str(bundle("release"))},
        )
        server = TritonServer(config, on_log=lambda line: None)
        server.start()
        running.append(server)
        server.wait_until_ready(timeout=120)
        return server

    yield start
    for server in running:
        server.stop()
