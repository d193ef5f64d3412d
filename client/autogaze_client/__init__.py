"""AutoGaze client SDK: numpy and tritonclient only; pictures, video and progress bars are extras.

Names are imported on first use, so that a process that wants the vocabulary alone (the server's, for
instance) does not load gRPC. Type checkers read ``__init__.pyi``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from autogaze_client._exports import HOME

__all__ = sorted(HOME)


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
