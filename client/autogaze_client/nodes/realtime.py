"""When a live viewer starts work, and which results it still wants (spec: visualization §7, pipeline §6)."""

from __future__ import annotations

from dataclasses import dataclass

from autogaze_client._errors import InvalidInputError
from autogaze_client.modes import AutoGazeInferenceMode

__all__ = [
    "DEFAULT_MAX_IN_FLIGHT",
    "DEFAULT_MODEL_GENERATION_BUDGET",
    "DEFAULT_PATCH_DIFF_GRID_SIZE",
    "DEFAULT_PATCH_DIFF_THRESHOLD",
    "DEFAULT_REALTIME_FRAMES_PER_CLIP",
    "DEFAULT_REALTIME_TOP_K",
    "DEFAULT_TILED_FRAMES_PER_CLIP",
    "DEFAULT_TILED_MAX_GAZE_TOKENS",
    "DEFAULT_TILED_TILE_BATCH_SIZE",
    "DEFAULT_TILED_TOP_K",
    "AutoGazeInferenceSequencer",
    "AutoGazeRealtimePolicy",
    "should_use_streaming_cache",
]

DEFAULT_MODEL_GENERATION_BUDGET = 0
"""Tokens a frame: 0 leaves them to the model."""

DEFAULT_REALTIME_TOP_K = 10
DEFAULT_TILED_TOP_K = 2
DEFAULT_TILED_MAX_GAZE_TOKENS = 24
DEFAULT_REALTIME_FRAMES_PER_CLIP = 2
DEFAULT_TILED_FRAMES_PER_CLIP = 2
DEFAULT_TILED_TILE_BATCH_SIZE = 64
DEFAULT_MAX_IN_FLIGHT = 1
DEFAULT_PATCH_DIFF_GRID_SIZE = 14
DEFAULT_PATCH_DIFF_THRESHOLD = 0.45


class AutoGazeInferenceSequencer:
    """Numbers requests, and refuses results that are older than one already accepted.

    Example:
        >>> sequencer = AutoGazeInferenceSequencer()
        >>> first, second = sequencer.reserve(), sequencer.reserve()
        >>> sequencer.accept(second), sequencer.accept(first)
        (True, False)
    """

    def __init__(self) -> None:
        self._reserved = 0
        self._accepted = 0

    @property
    def latest_accepted(self) -> int:
        """The number of the newest result accepted, or given up; 0 before the first."""
        return self._accepted

    def reserve(self) -> int:
        """The next request's number: 1, 2, …."""
        self._reserved += 1
        return self._reserved

    def accept(self, number: int) -> bool:
        """Whether a result is newer than every one before; it then counts as accepted."""
        if self.is_stale(number):
            return False
        self._accepted = number
        return True

    def is_stale(self, number: int) -> bool:
        """Whether a result has been overtaken."""
        return number <= self._accepted

    def invalidate_pending(self) -> None:
        """Gives up everything reserved so far: their results are stale."""
        self._accepted = max(self._accepted, self._reserved)


@dataclass(frozen=True, slots=True)
class AutoGazeRealtimePolicy:
    """When to start another request, and what to draw meanwhile.

    Attributes:
        max_in_flight: requests at a time; 0 counts as 1.

    Raises:
        InvalidInputError: it is negative.
    """

    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT

    def __post_init__(self) -> None:
        if self.max_in_flight < 0:
            raise InvalidInputError(f"max_in_flight is {self.max_in_flight}; it must be at least 1")
        object.__setattr__(self, "max_in_flight", max(self.max_in_flight, 1))

    def inference_busy(self, in_flight: int) -> bool:
        """Whether as many requests are under way as may be."""
        return in_flight >= self.max_in_flight

    def should_start_inference(self, in_flight: int) -> bool:
        """Whether another request may start."""
        return not self.inference_busy(in_flight)

    def should_draw_live_preview(self, result_ready: bool) -> bool:
        """Whether to draw the newest frame with the last mask: until the result is there."""
        return not result_ready

    def should_draw_async_stream_preview(self) -> bool:
        """Whether frames are drawn while a stream computes: always."""
        return True


def should_use_streaming_cache(enabled: bool, frames: int, mode: AutoGazeInferenceMode) -> bool:
    """Whether a stream can replace clips: where it is enabled, for more than one frame, in the resize mode."""
    return enabled and frames > 1 and not mode.is_tiled
