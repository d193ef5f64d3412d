"""Bulk work: folders of videos through Ray Data, one Parquet file a video (docs/bulk.md).

Names are imported on first use: Ray and Arrow come with the extra ``bulk``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from autogaze_client._errors import MissingExtraError

if TYPE_CHECKING:
    from autogaze_backend.bulk.job import BulkJob
    from autogaze_backend.bulk.report import BulkSummary
    from autogaze_backend.bulk.running import run_bulk
    from autogaze_backend.bulk.settings import BulkSettings

__all__ = ["BulkJob", "BulkSettings", "BulkSummary", "run_bulk"]

_HOMES = {"BulkJob": "job", "BulkSettings": "settings", "BulkSummary": "report", "run_bulk": "running"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_HOMES[name]}")
    except ImportError as error:
        if isinstance(error, MissingExtraError):
            raise
        # Arrow also refuses a numpy that it was not made for, with an ImportError that names no module.
        raise MissingExtraError.for_extra("bulk work", "bulk", error) from error
    return getattr(module, name)
