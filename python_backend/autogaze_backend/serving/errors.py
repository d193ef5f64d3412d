"""What can go wrong before the embedded server answers."""

from __future__ import annotations

from autogaze_client._errors import AutoGazeError, ServerUnavailableError

__all__ = ["ServerFetchError", "ServerStartError", "UnsupportedHostError"]


class UnsupportedHostError(AutoGazeError):
    """This machine or Python cannot run the embedded Triton server."""


class ServerFetchError(AutoGazeError):
    """The embedded Triton server could not be downloaded or unpacked."""


class ServerStartError(ServerUnavailableError):
    """The server process ended before it was ready, or while it was needed; the message ends with its log."""
