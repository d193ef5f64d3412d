"""Locked dependencies: ``python -m release.locks`` writes requirements/*.txt with uv (make lock).

A lock names the one version of every package that an installation gets, and the hashes of its files.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from release.project import PYTHONS, ROOT

FOLDER = ROOT / "requirements"
LOCKS = {
    "server": ("server", "video", "view", "viz"),
    "bulk": ("server", "video", "view", "viz", "bulk"),
    "dev": ("dev", "bulk"),
}
"""The extras of each lock: of a server's container, of a bulk worker's, and of the tests."""

# glibc of the oldest supported machine; the hashes of other platforms' files are in the lock, too.
_PLATFORM = "x86_64-manylinux_2_35"
_COMMAND = "make lock"


@dataclass(frozen=True)
class Locked:
    """A package of a lock.

    Attributes:
        name: canonical.
        version: the one that is installed.
        hashes: ``sha256:…`` of its files.
    """

    name: str
    version: str
    hashes: tuple[str, ...]


def path_of(lock: str, python: str) -> Path:
    """The file of a lock."""
    return FOLDER / f"{lock}-py{python}.txt"


def read_lock(path: Path) -> dict[str, Locked]:
    """The packages of a lock by canonical name.

    Raises:
        ValueError: a line is no ``name==version`` with hashes: a URL, an option or an open range.
    """
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    found = {}
    for line in text.splitlines():
        line = line.split("#")[0].strip() if line.lstrip().startswith("#") else line.strip()
        if not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)((?: *--hash=\S+)+)", line)
        if match is None:
            raise ValueError(f"{path.name}: {line[:80]!r} is no pinned package with hashes")
        name = canonicalize_name(match[1])
        found[name] = Locked(name, match[2], tuple(re.findall(r"--hash=(\S+)", match[3])))
    return found


def write_locks(upgrade: bool) -> None:
    """Writes every lock; without ``upgrade`` versions that still fit stay."""
    FOLDER.mkdir(exist_ok=True)
    for lock, extras in LOCKS.items():
        for python in PYTHONS:
            command = [
                sys.executable, "-m", "uv", "pip", "compile", "--quiet", "pyproject.toml",
                "--python-version", python, "--python-platform", _PLATFORM, "--no-python-downloads",
                "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate",
                "--custom-compile-command", _COMMAND, "--output-file", str(path_of(lock, python)),
            ]  # fmt: skip
            for extra in extras:
                command += ["--extra", extra]
            if upgrade:
                command.append("--upgrade")
            subprocess.run(command, cwd=ROOT, check=True)
            print(
                f"{path_of(lock, python).relative_to(ROOT)}: {len(read_lock(path_of(lock, python)))} packages"
            )


if __name__ == "__main__":
    write_locks(upgrade="--upgrade" in sys.argv[1:])
