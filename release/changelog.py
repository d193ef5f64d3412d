"""The changelog's discipline: Keep a Changelog, and headings that agree with the version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from packaging.version import Version

KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
_HEADING = re.compile(r"(\d+\.\d+\.\d+(?:rc\d+)?) - (\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True)
class Entry:
    """A release in the changelog.

    Attributes:
        version: of it.
        day: when it was made.
    """

    version: Version
    day: date


def problems(text: str, version: str) -> list[str]:
    """What is wrong with a changelog; nothing where it is fine.

    The first section is Unreleased, even where it is empty; the others are ``X.Y.Z - YYYY-MM-DD``, newest first.
    The project's version is the newest of them, or a higher one whose changes are still under Unreleased.
    """
    found = []
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if not sections or sections[0] != "Unreleased":
        found.append(
            f"the first section is {sections[0] if sections else 'missing'!r}; it must be 'Unreleased'"
        )
    entries: list[Entry] = []
    for section in sections[1:]:
        match = _HEADING.fullmatch(section)
        try:
            if match is None:
                raise ValueError
            entries.append(Entry(Version(match[1]), date.fromisoformat(match[2])))
        except ValueError:
            found.append(f"the heading {section!r} must be 'X.Y.Z - YYYY-MM-DD'")
    for newer, older in pairwise(entries):
        if newer.version <= older.version or newer.day < older.day:
            found.append(f"{newer.version} comes before {older.version}; the newest release comes first")
    for kind in re.findall(r"^### (.+)$", text, re.MULTILINE):
        if kind not in KINDS:
            found.append(f"the heading {kind!r} is none of {', '.join(KINDS)}")
    if entries and Version(version) < entries[0].version:
        found.append(f"the version is {version}, below the newest release {entries[0].version}")
    if not entries or Version(version) > entries[0].version:
        if not unreleased(text):
            found.append(f"version {version} is not released, and Unreleased is empty")
    elif unreleased(text):
        found.append(f"version {version} is released, but Unreleased has changes; raise the version")
    return found


def unreleased(text: str) -> list[str]:
    """The changes that no release has yet."""
    match = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^[*-] (.+)$", match[1], re.MULTILINE) if match else []
