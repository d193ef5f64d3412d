"""The runtime: bundles, preprocessing, engines and the generation loop.

Names are imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autogaze_backend.bundle import Bundle
    from autogaze_backend.model import GazeModel
    from autogaze_backend.spec import ModelSpec

__all__ = ["Bundle", "GazeModel", "ModelSpec"]

_HOMES = {"Bundle": "bundle", "GazeModel": "model", "ModelSpec": "spec"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
