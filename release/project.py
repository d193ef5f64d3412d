"""What ``pyproject.toml`` says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
NAME = "autogaze-triton"
PYTHONS = ("3.11", "3.12")
"""What the server runs on, hence what is locked."""
CLIENT_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""What the client runs on."""


@cache
def _project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def version() -> str:
    """Of the distribution."""
    return str(_project()["version"])


def requirements(*extras: str) -> list[Requirement]:
    """The base requirements and those of some extras, with extras that name other extras resolved.

    Raises:
        KeyError: there is no such extra.
    """
    found = [Requirement(line) for line in _project()["dependencies"]]
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for line in _project()["optional-dependencies"][extra]:
            requirement = Requirement(line)
            if canonicalize_name(requirement.name) == NAME:
                waiting += requirement.extras
            else:
                found.append(requirement)
    return found


def is_release(text: str) -> bool:
    """Whether a version is X.Y.Z or a release candidate of one."""
    return re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", text) is not None
