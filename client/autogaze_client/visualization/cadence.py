"""When an interframe output starts anew from a whole frame (spec: visualization §5)."""

from __future__ import annotations

from collections.abc import Hashable

from autogaze_client._errors import InvalidInputError
from autogaze_client.visualization.modes import AutoGazeVisualizationMode

__all__ = ["Cadence"]


class Cadence:
    """Counts frames and says which are keyframes; CPU and tensor states share it.

    Attributes:
        mode: what the output shows.
        keyframe_duration: frames from one keyframe to the next; 0 = only the first.
        frame_index: frames drawn so far, in either mode.
        last_frame_was_keyframe: of the last frame; False in full blend.
    """

    def __init__(self, mode: AutoGazeVisualizationMode, keyframe_duration: int) -> None:
        self.mode = mode
        self.keyframe_duration = _duration(keyframe_duration)
        self.frame_index = 0
        self.last_frame_was_keyframe = False
        self._layout: Hashable = None

    def configure(self, mode: AutoGazeVisualizationMode, keyframe_duration: int) -> bool:
        """Changes the settings; a new duration counts on the running index. Returns whether the mode changed."""
        changed = mode is not self.mode
        self.keyframe_duration = _duration(keyframe_duration)
        if changed:
            self.mode = mode
            self.reset()
        return changed

    def reset(self) -> None:
        """Starts anew."""
        self.frame_index = 0
        self.last_frame_was_keyframe = False
        self._layout = None

    def is_keyframe(self, layout: Hashable) -> bool:
        """Whether the next frame, of this size (and device), is a keyframe."""
        due = self.keyframe_duration > 0 and self.frame_index % self.keyframe_duration == 0
        return self.frame_index == 0 or due or layout != self._layout

    def advance(self, layout: Hashable, keyframe: bool) -> None:
        """Counts a frame that was drawn."""
        self.frame_index += 1
        self.last_frame_was_keyframe = keyframe
        self._layout = layout


def _duration(frames: int) -> int:
    if frames < 0:
        raise InvalidInputError(
            f"keyframe_duration is {frames}; it must be 0 (no keyframe after the first) or more frames"
        )
    return int(frames)
