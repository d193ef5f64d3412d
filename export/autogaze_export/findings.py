"""What ``autogaze doctor`` finds: one check a line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(str, Enum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    """Works, with a limit worth knowing."""
    FAIL = "fail"
    """Something that was asked for will not work."""
    ABSENT = "absent"
    """An optional part is not here, which is no fault."""


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: How it went.
        found: What was found.
        remedy: What to do about it; empty when there is nothing to do.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
