"""The exceptions of every AutoGaze package.

They live in the client because it is the one package that all the others may import.
"""

from __future__ import annotations

__all__ = [
    "AutoGazeError",
    "CheckpointError",
    "DeadlineExceededError",
    "InferenceError",
    "InvalidInputError",
    "MissingExtraError",
    "NotFoundError",
    "PlanBuildError",
    "PlanMismatchError",
    "RequestCancelledError",
    "ServerUnavailableError",
    "StreamExpired",
    "VideoDecodeError",
]


class AutoGazeError(Exception):
    """Base of every error that AutoGaze raises on purpose."""


class InvalidInputError(AutoGazeError, ValueError):
    """A value breaks a rule; the message names value, rule and remedy. Triton: INVALID_ARGUMENT."""


class VideoDecodeError(InvalidInputError):
    """A video cannot be decoded: not a video, truncated, or over a limit."""


class CheckpointError(InvalidInputError):
    """A checkpoint or bundle is incomplete, of the wrong shape or type, or of an unsupported architecture."""


class PlanBuildError(AutoGazeError):
    """TensorRT could not build a plan, or its parser made something else of the graph than what it says."""


class PlanMismatchError(CheckpointError):
    """Plans are whole but do not fit: another library, version, GPU, checkpoint or graph, or a missing bucket."""


class NotFoundError(AutoGazeError):
    """A model, file, stream or version does not exist. Triton: NOT_FOUND."""


class StreamExpired(NotFoundError):  # noqa: N818  the name that callers know
    """The server no longer holds a stream: it was idle too long, was evicted, or the server restarted."""


class ServerUnavailableError(AutoGazeError):
    """The server cannot be reached, is not ready, or sheds load. Triton: UNAVAILABLE."""


class RequestCancelledError(AutoGazeError):
    """The caller gave up a request before it was finished. Triton: CANCELLED."""


class DeadlineExceededError(AutoGazeError, TimeoutError):
    """The request did not finish within its timeout."""


class InferenceError(AutoGazeError):
    """The server failed although the request was valid. Triton: INTERNAL."""


class MissingExtraError(AutoGazeError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    @classmethod
    def for_extra(cls, feature: str, extra: str, cause: ImportError) -> MissingExtraError:
        """Builds the error for ``feature``, which needs ``pip install 'autogaze-triton[extra]'``."""
        return cls(f"{feature} needs {cause.name or cause}: pip install 'autogaze-triton[{extra}]'")
