"""Licences of everything that a container holds: ``python -m release.licences`` writes docs/licences.md.

The package list comes from the metadata of an environment made from the locks, the rest from bundled.toml.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tomllib
from packaging.utils import canonicalize_name

from release.locks import path_of, read_lock
from release.project import NAME, PYTHONS, ROOT

PAGE = ROOT / "docs" / "licences.md"
BUNDLED = Path(__file__).parent / "bundled.toml"
LISTED = ("server", "bulk")
"""The locks whose packages a container may hold."""

_UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Package:
    """A row of the list.

    Attributes:
        name: canonical.
        versions: one for each locked Python where they differ.
        licence: as its metadata states.
        locks: that hold it.
    """

    name: str
    versions: tuple[str, ...]
    licence: str
    locks: tuple[str, ...]


def locked_packages() -> dict[str, dict[str, set[str]]]:
    """Of each package, the versions (``versions``) and the locks (``locks``) that hold it."""
    found: dict[str, dict[str, set[str]]] = {}
    for lock in LISTED:
        for python in PYTHONS:
            for name, locked in read_lock(path_of(lock, python)).items():
                entry = found.setdefault(name, {"versions": set(), "locks": set()})
                entry["versions"].add(locked.version)
                entry["locks"].add(lock)
    return found


def environment(lock: str, folder: Path, python: str = sys.executable) -> Path:
    """An environment with exactly what a lock names; made anew. Returns its python.

    Raises:
        CalledProcessError: pip refuses: a hash differs, or a version is gone.
    """
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    inside = folder / "bin" / "python"
    running = subprocess.run(
        [inside, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    command = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    subprocess.run([*command, "-r", path_of(lock, running)], check=True)
    return inside


def stated_licences(python: Path) -> dict[str, str]:
    """What the packages of an environment state: the SPDX expression, else the classifiers, else the free text."""
    done = subprocess.run(
        [Path(sys.executable).parent / "pip-licenses", f"--python={python}", "--from=all", "--format=json"],
        check=True,
        capture_output=True,
        text=True,
    )
    found = {}
    for row in json.loads(done.stdout):
        stated = (row["License-Expression"], row["License-Classifier"], row["License-Metadata"])
        licence = next((text for text in stated if text != _UNKNOWN), _UNKNOWN)
        found[canonicalize_name(row["Name"])] = " ".join(licence.split("\n")[0].split())
    return found


def packages(stated: dict[str, str]) -> list[Package]:
    """The rows of the list.

    Raises:
        KeyError: a locked package is not in the environment.
        ValueError: one states no licence, and bundled.toml does not say what it is.
    """
    known = tomllib.loads(BUNDLED.read_text(encoding="utf-8")).get("stated-nowhere", {})
    rows = []
    for name, entry in sorted(locked_packages().items()):
        licence = stated[name]
        if licence == _UNKNOWN:
            if name not in known:
                raise ValueError(f"{name} states no licence; look it up and add it to {BUNDLED.name}")
            licence = f"{known[name]} (not in its metadata)"
        rows.append(
            Package(
                name, tuple(sorted(entry["versions"])), licence, tuple(sorted(entry["locks"], reverse=True))
            )
        )
    return rows


def page(rows: list[Package]) -> str:
    """The Markdown page."""
    bundled = tomllib.loads(BUNDLED.read_text(encoding="utf-8"))
    lines = [
        "# Licences",
        "",
        "What a container or machine that serves this package holds, and under which licence. `make licences` writes "
        "this page: the packages from the metadata of an environment made from the [locks](../requirements), the rest "
        "from [release/bundled.toml](../release/bundled.toml). A test compares it with the locks. It is a list, not "
        "legal advice.",
        "",
        "## Not Python packages",
        "",
        "| what | where it comes from | licence |",
        "|---|---|---|",
        *(f"| {item['what']} | {item['source']} | {item['licence']} |" for item in bundled["component"]),
        "",
        "## Carried inside wheels",
        "",
        "A wheel's own licence does not cover the libraries that it carries.",
        "",
        "| wheel | carries | licence |",
        "|---|---|---|",
        *(f"| {item['wheel']} | {item['what']} | {item['licence']} |" for item in bundled["inside"]),
        "",
        "## Python packages",
        "",
        f"`{NAME}` itself is Apache-2.0. The column *locks* names the [requirements](../requirements) that hold a "
        "package: `server` is what a server's container holds, `bulk` what `autogaze bulk` adds. Two versions are "
        f"those for Python {' and '.join(PYTHONS)}.",
        "",
        "| package | version | licence | locks |",
        "|---|---|---|---|",
        *(
            f"| {row.name} | {', '.join(row.versions)} | {row.licence} | {', '.join(row.locks)} |"
            for row in rows
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    inside = environment("bulk", ROOT / "build" / "licences-env")
    PAGE.write_text(page(packages(stated_licences(inside))), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
