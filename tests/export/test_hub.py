"""Checkpoints from a hub: the genuine huggingface_hub against a small server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

OLD, NEW = "a" * 40, "b" * 40
REPOSITORY = "someone/gaze"


class Hub:
    """One repository with two commits; ``main`` names the newer one."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.commits = {OLD: dict(files), NEW: {**files, "preprocessor_config.json": b'{"do_resize": true}'}}
        self.branches = {"main": NEW, "stable": OLD}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = request.path.split("?")[0]
        self.asked.append(path)
        information = f"/api/models/{REPOSITORY}/revision/"
        tree, files = f"/api/models/{REPOSITORY}/tree/", f"/{REPOSITORY}/resolve/"
        headers: dict[str, str] = {}
        content: bytes | None = None
        if path.startswith(information):
            commit = self._commit(path.removeprefix(information))
            if commit is not None:
                siblings = [{"rfilename": name} for name in self.commits[commit]]
                content = json.dumps({"id": REPOSITORY, "sha": commit, "siblings": siblings}).encode()
        elif path.startswith(tree):
            commit = self._commit(path.removeprefix(tree))
            content = None if commit is None else json.dumps(self._listing(commit)).encode()
        elif path.startswith(files):
            revision, _, name = path.removeprefix(files).partition("/")
            commit = self._commit(revision)
            content = None if commit is None else self.commits[commit].get(name)
            if content is not None:
                # Large files are known by their SHA-256, small ones by git's hash.
                large = name.endswith(".safetensors")
                digest = hashlib.sha256(content) if large else hashlib.sha1(content)
                headers = {"X-Repo-Commit": commit, "ETag": f'"{digest.hexdigest()}"'}
        request.send_response(200 if content is not None else 404)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content or b"")))
        request.end_headers()
        if body and content:
            request.wfile.write(content)

    def _listing(self, commit: str) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        for name, content in self.commits[commit].items():
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(content)}
            entry["oid"] = hashlib.sha1(content).hexdigest()
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries

    def _commit(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


@pytest.fixture
def hub(seeded_checkpoint) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in seeded_checkpoint().iterdir()}
    running = Hub(files)
    yield running
    running.server.shutdown()
    running.server.server_close()


def build(hub: Hub, folder: Path, *options: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """``autogaze build`` of the hub's repository, in a process of its own: the library reads its settings once."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "NO_PROXY": "127.0.0.1",
    }
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        environment.pop(name, None)
    command = [
        sys.executable,
        "-m",
        "autogaze_client._cli",
        "build",
        REPOSITORY,
        str(folder / "bundle"),
        *options,
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def recorded(folder: Path) -> dict[str, str]:
    checkpoint: dict[str, str] = json.loads((folder / "bundle" / "manifest.json").read_text())["checkpoint"]
    return checkpoint


@pytest.mark.parametrize(
    ("options", "revision", "commit"),
    [
        ([], None, NEW),
        (["--revision", "stable"], "stable", OLD),
        (["--revision", OLD], OLD, OLD),
    ],
)
def test_a_revision_is_resolved_to_its_commit_and_recorded_with_the_hash(
    options, revision, commit, hub, tmp_path
):
    done = build(hub, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    weights = hub.commits[commit]["model.safetensors"]
    assert recorded(tmp_path) == {
        "source": REPOSITORY,
        "revision": revision,
        "commit": commit,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "stored_dtype": "F32",
    }


def test_nothing_but_the_checkpoints_files_is_downloaded(hub, tmp_path):
    hub.commits[NEW]["pytorch_model.bin"] = b"never"
    hub.commits[NEW]["run.py"] = b"never"
    assert build(hub, tmp_path).returncode == 0
    asked = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert asked == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_a_file_that_is_not_what_the_hub_declared_is_refused(hub, tmp_path):
    assert build(hub, tmp_path).returncode == 0
    (blob,) = [path for path in (tmp_path / "home").rglob("blobs/*") if path.stat().st_size > 1_000_000]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    before = recorded(tmp_path)
    done = build(hub, tmp_path, offline=True)
    assert done.returncode == 1
    assert f"but the hub declared {blob.name}" in done.stderr
    assert "Traceback" not in done.stderr
    assert recorded(tmp_path) == before


def test_a_pinned_hash_refuses_what_a_branch_has_moved_to(hub, tmp_path):
    pinned = hashlib.sha256(hub.commits[OLD]["model.safetensors"]).hexdigest()
    assert build(hub, tmp_path, "--sha256", pinned).returncode == 0
    moved = "c" * 40
    weights = bytearray(hub.commits[NEW]["model.safetensors"])
    weights[-3] ^= 1
    hub.commits[moved] = {**hub.commits[NEW], "model.safetensors": bytes(weights)}
    hub.branches["main"] = moved
    done = build(hub, tmp_path, "--sha256", pinned)
    assert done.returncode == 1
    assert f"but {pinned} was asked for" in done.stderr
    assert recorded(tmp_path)["commit"] == NEW


def test_a_revision_that_does_not_exist_is_named(hub, tmp_path):
    done = build(hub, tmp_path, "--revision", "nowhere")
    assert done.returncode == 1
    assert "the hub did not give 'someone/gaze'" in done.stderr or "hub cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
