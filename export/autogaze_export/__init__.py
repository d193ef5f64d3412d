"""Checkpoints to bundles. ``build`` needs neither torch nor onnx; ``export`` needs the extra ``export``.

Names are imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autogaze_export.bundle_writer import build
    from autogaze_export.checkpoint import Checkpoint, load_checkpoint
    from autogaze_export.exporting import export

__all__ = ["Checkpoint", "build", "export", "load_checkpoint"]

_HOMES = {
    "Checkpoint": "checkpoint",
    "build": "bundle_writer",
    "export": "exporting",
    "load_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
