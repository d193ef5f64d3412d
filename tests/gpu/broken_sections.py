"""Sections that end in each of the ways in which one can."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.context import Context


def run(context: Context) -> Iterator[dict[str, Any]]:
    """What the scratch folder is named after."""
    yield {"what": "first"}
    kind = context.settings.folder.name
    if kind == "raises":
        raise ValueError("on purpose")
    if kind == "dies":
        os._exit(3)
    if kind == "hangs":
        time.sleep(600)
    context.cut("nothing", reserve=1e9)
    yield {"what": "second"}
