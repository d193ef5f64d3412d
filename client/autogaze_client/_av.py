"""PyAV, where it is installed."""

from __future__ import annotations

from typing import Any

from autogaze_client._errors import MissingExtraError

__all__ = ["import_av"]


def import_av(feature: str) -> Any:
    """The module ``av``.

    Args:
        feature: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError.for_extra(feature, "video", error) from error
    return av
