"""Where the unpacked server lies."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SERVER_VERSION", "TritonInstallation", "cache_directory", "find_installation"]

SERVER_VERSION = "2.51.0"


@dataclass(frozen=True)
class TritonInstallation:
    """An unpacked Triton server.

    The folders keep the wheel's layout: the run paths inside the binaries are relative to it. Each Python
    version has a backend folder of its own, so that environments of different versions share one copy.

    Attributes:
        root: Folder that holds ``pytriton/tritonserver`` and ``nvidia_pytriton.libs``.
    """

    root: Path

    @property
    def binary(self) -> Path:
        """The ``tritonserver`` program."""
        return self.root / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def libraries(self) -> Path:
        """Shared libraries that the binaries need."""
        return self.root / "nvidia_pytriton.libs"

    @property
    def caches(self) -> Path:
        """Value of ``--cache-directory``."""
        return self.root / "pytriton" / "tritonserver" / "caches"

    def backends(self, python: tuple[int, int] | None = None) -> Path:
        """Value of ``--backend-directory`` for a Python version (the running one by default)."""
        major, minor = python or sys.version_info[:2]
        return self.root / "pytriton" / "tritonserver" / f"backends-cp{major}{minor}"

    def stub(self, python: tuple[int, int] | None = None) -> Path:
        """The program that runs ``model.py`` for a Python version."""
        return self.backends(python) / "python" / "triton_python_backend_stub"

    def is_complete(self) -> bool:
        """Whether it can serve with the running Python."""
        return all(os.access(path, os.X_OK) for path in (self.binary, self.stub()))


def cache_directory() -> Path:
    """``$AUTOGAZE_CACHE``, or ``autogaze-triton`` in the user's cache folder."""
    if chosen := os.environ.get("AUTOGAZE_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "autogaze-triton"


def find_installation(cache: Path | None = None) -> TritonInstallation | None:
    """The server unpacked in ``cache``, or None if it has not been fetched; touches no network."""
    installation = TritonInstallation((cache or cache_directory()) / f"tritonserver-{SERVER_VERSION}")
    return installation if installation.is_complete() else None
