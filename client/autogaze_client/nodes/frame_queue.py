"""The last frames of a camera, as clips whose memory is used again (spec: pipeline §6)."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client.nodes.clips import AutoGazeRgbaFrameClip
from autogaze_client.readout import _checks

__all__ = ["AutoGazeRgbaFrameQueue"]

Image = NDArray[np.uint8]


class AutoGazeRgbaFrameQueue:
    """A rolling window of RGBA frames of one size.

    Args:
        max_spare: clip buffers kept for the next clips, at most.

    Raises:
        InvalidInputError: it is negative.

    Example:
        >>> queue = AutoGazeRgbaFrameQueue(max_spare=1)
        >>> for _ in range(3):
        ...     queue.push(np.zeros((4, 6, 4), np.uint8), max_len=2)
        >>> clip = queue.build_clip(2)
        >>> clip.frames.shape, queue.build_clip(3)
        ((2, 4, 6, 4), None)
        >>> queue.recycle_clip_buffer(clip)
    """

    def __init__(self, max_spare: int = 1) -> None:
        self._max_spare = _checks.count("max_spare", max_spare)
        self._frames: deque[Image] = deque()
        self._free: list[Image] = []
        self._spare: list[Image] = []

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def spare_buffers(self) -> int:
        """Clip buffers that wait for the next clip."""
        return len(self._spare)

    def push(self, frame: Image, max_len: int) -> None:
        """Appends a copy of a frame and drops the oldest beyond ``max(max_len, 1)``.

        A frame of another size empties the queue and its buffers first.

        Raises:
            InvalidInputError: it is not uint8 ``[H, W, 4]``.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 4 or 0 in frame.shape:
            raise InvalidInputError(
                f"the frame is {frame.dtype} {list(frame.shape)}; it must be uint8 RGBA [H, W, 4]"
            )
        if self._frames and self._frames[0].shape != frame.shape:
            self.clear()
        while len(self._frames) >= max(max_len, 1):
            self._free.append(self._frames.popleft())
        del self._free[1:]
        memory = self._free.pop() if self._free else np.empty_like(frame, order="C")
        np.copyto(memory, frame)
        self._frames.append(memory)

    def build_clip(self, frames: int) -> AutoGazeRgbaFrameClip | None:
        """The frames as a clip, oldest first; None unless exactly ``frames`` are held."""
        if not self._frames or frames != len(self._frames):
            return None
        return self._clip(list(self._frames))

    def build_latest_clip(self) -> AutoGazeRgbaFrameClip | None:
        """The newest frame as a clip of one; None where there is none."""
        return self._clip([self._frames[-1]]) if self._frames else None

    def recycle_clip_buffer(self, clip: AutoGazeRgbaFrameClip) -> None:
        """Takes a clip's memory back for the next clip. The clip must not be used any more."""
        if len(self._spare) < self._max_spare:
            memory = clip.frames
            while isinstance(memory.base, np.ndarray):
                memory = memory.base
            self._spare.append(memory.reshape(-1))

    def clear(self) -> None:
        """Forgets frames and buffers."""
        self._frames.clear()
        self._free.clear()
        self._spare.clear()

    def _clip(self, frames: list[Image]) -> AutoGazeRgbaFrameClip:
        shape = (len(frames), *frames[0].shape)
        size = int(np.prod(shape))
        memory = self._spare.pop() if self._spare else np.empty(size, np.uint8)
        if memory.size < size:
            memory = np.empty(size, np.uint8)
        values = memory[:size].reshape(shape)
        np.stack(frames, out=values)
        return AutoGazeRgbaFrameClip(values)
