"""Decoding in Ray tasks: another process on the actor's machine reads a video a few windows ahead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from autogaze_client._errors import AutoGazeError, DeadlineExceededError, InferenceError, InvalidInputError
from autogaze_client.video import VideoReader
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autogaze_backend.preprocessing import Frames

# Windows that a decoder may be ahead of the model: enough to hide its time, and all that memory must hold.
_AHEAD = 2


@dataclass(frozen=True)
class DecodePlan:
    """What to read of a video.

    Attributes:
        path: of the file.
        window_frames: frames of a window.
        start_frame: frames to skip first.
        max_frames: frames to take at most; None = all.
        frame_stride: take every n-th frame.
        max_pixels: of a frame.
        max_window_bytes: of a window.
    """

    path: Path
    window_frames: int
    start_frame: int
    max_frames: int | None
    frame_stride: int
    max_pixels: int
    max_window_bytes: int

    def check(self, frames: int, height: int, width: int) -> None:
        """Raises InvalidInputError where frames of this size are too large."""
        if height * width > self.max_pixels:
            raise InvalidInputError(
                f"{self.path}: frames of {width}×{height} have {height * width} pixels, above the limit of "
                f"{self.max_pixels} (--max-pixels)"
            )
        size = min(max(frames, 1), self.window_frames) * height * width * 3
        if size > self.max_window_bytes:
            raise InvalidInputError(
                f"{self.path}: a window of {self.window_frames} frames of {width}×{height} takes over {size - 1} bytes "
                f"decoded, above the limit of {self.max_window_bytes} (--max-window-bytes)"
            )


@dataclass(frozen=True)
class DecodedWindow:
    """Some frames of a video.

    Attributes:
        timestamps: float64 ``[t]``, seconds.
        frames: uint8 ``[t, H, W, 3]``, read-only where they come from another process.
        fps: frames a second of the file, as numerator and denominator.
    """

    timestamps: NDArray[np.float64]
    frames: Frames
    fps: tuple[int, int]


def decode(plan: DecodePlan, skip: int = 0) -> Iterator[DecodedWindow | AutoGazeError]:
    """Yields the windows of a video; where it ends early, the reason is the last item.

    An error is an item, because one that is raised in a Ray task comes out as another type.

    Args:
        plan: what to read.
        skip: windows that were taken already.
    """
    try:
        # The reader checks the declared size with one frame; a window of it is what memory must hold.
        reader = VideoReader(
            plan.path,
            start_frame=plan.start_frame,
            max_frames=plan.max_frames,
            frame_stride=plan.frame_stride,
            max_pixels=plan.max_pixels,
            check=plan.check,
        )
        fps = (reader.fps.numerator, reader.fps.denominator)
        for index, (timestamps, frames) in enumerate(reader.timed_windows(plan.window_frames)):
            if index >= skip:
                yield DecodedWindow(timestamps, frames, fps)
    except AutoGazeError as error:
        yield error


class TaskWindows:
    """The windows of a video, decoded by a Ray task on this machine; an iterator.

    The task waits when it is two windows ahead, so a long video takes no more memory than a short one. Where its
    process dies, another one goes on after the last window that was taken. (Ray could retry the task itself, but
    then it no longer waits: measured with Ray 2.60.)

    Args:
        plan: what to read.
        attempts: how many processes may die.
        timeout: seconds that a window may take.
    """

    def __init__(self, plan: DecodePlan, *, attempts: int, timeout: float) -> None:
        self._plan, self._attempts, self._timeout = plan, attempts, timeout
        self._taken = 0
        self.deaths = 0
        self._task = self._start()

    def __iter__(self) -> TaskWindows:
        return self

    def __next__(self) -> DecodedWindow:
        """The next window.

        Raises:
            VideoDecodeError: the file is missing, damaged or no video.
            InvalidInputError: a limit is broken.
            DeadlineExceededError: decoding takes too long.
            InferenceError: the decoder's process died too often, or failed.
        """
        while True:
            item = self._next_item()
            if item is None:
                continue
            if isinstance(item, AutoGazeError):
                raise item
            self._taken += 1
            return item

    def close(self) -> None:
        """Ends the task, if it still runs."""
        with contextlib.suppress(RayError, ValueError):
            ray.cancel(self._task)

    def _next_item(self) -> DecodedWindow | AutoGazeError | None:
        """The task's next item; None where its process died and another one was started."""
        ready, _ = ray.wait([self._task], timeout=self._timeout)
        if not ready:
            self.close()
            raise DeadlineExceededError(
                f"{self._plan.path}: decoding a window took longer than {self._timeout:g} s (--decode-timeout); check "
                "the file and its disk"
            )
        try:
            item: DecodedWindow | AutoGazeError = ray.get(next(self._task))
        except RayTaskError as error:
            raise InferenceError(f"{self._plan.path}: the decoder failed: {error.cause!r}") from error
        except RayError as error:
            self._bury(error)
            return None
        return item

    def _bury(self, error: RayError) -> None:
        self.deaths += 1
        if self.deaths >= self._attempts:
            raise InferenceError(
                f"{self._plan.path}: the decoder's process died {self.deaths} times ({type(error).__name__}); out of "
                "memory, or a file that crashes it"
            ) from error
        self._task = self._start()

    def _start(self) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        # The actor has reserved the CPU for it. On the actor's machine, frames cross no network.
        task = ray.remote(num_cpus=0, max_retries=0)(decode)
        options = {"scheduling_strategy": here, "_generator_backpressure_num_objects": _AHEAD}
        return task.options(**options, name="autogaze-decode").remote(self._plan, self._taken)
