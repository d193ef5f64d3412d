"""Windows of several videos through one model, without Ray."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from autogaze_client._errors import AutoGazeError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.result import GazeResult, GazeTimings, SourceSize

from autogaze_backend.bulk.settings import BulkSettings
from autogaze_backend.clips import gaze_clips
from autogaze_backend.model import GazeModel
from autogaze_backend.preprocessing import Frames, Video
from autogaze_backend.streaming import GazeStream


class WindowGazer:
    """Gazes at the next window of each of several videos; their rows share the engine's batches.

    A video's results do not depend on the others. Calls must not overlap: the engine is not thread-safe.

    Args:
        model: runs it.
        settings: of the run.
    """

    def __init__(self, model: GazeModel, settings: BulkSettings) -> None:
        self.model, self.settings = model, settings

    def open_stream(self) -> GazeStream | None:
        """What a video's windows share: a stream, or nothing where each is a clip of its own."""
        return self.model.open_stream(horizon=self.settings.horizon) if self.settings.stream else None

    def gaze(self, windows: Sequence[tuple[GazeStream | None, Frames]]) -> list[GazeResult | Exception]:
        """Gazes at one window of each video.

        Args:
            windows: what ``open_stream`` gave for the video, and its next frames, uint8 ``[t, H, W, 3]``.

        Returns:
            Each window's result without timestamps, frames counted from 0, or the error that it alone gets.
        """
        if not self.settings.stream:
            return gaze_clips(self.model, [frames for _, frames in windows], self.settings.knobs)
        return self._step([(stream, frames) for stream, frames in windows if stream is not None])

    def _step(self, windows: Sequence[tuple[GazeStream, Frames]]) -> list[GazeResult | Exception]:
        started = time.perf_counter()
        outputs: list[list[AutoGazeGenerateOutput]] = [[] for _ in windows]
        errors: dict[int, Exception] = {}
        for t in range(max(len(frames) for _, frames in windows)):
            turn: dict[int, Video] = {}
            for index, (_, frames) in enumerate(windows):
                if t < len(frames) and index not in errors:
                    try:
                        turn[index] = self.model.preprocess(frames[t : t + 1])
                    except AutoGazeError as error:
                        errors[index] = error
            if not turn:
                break
            try:
                answers = self.model.step_streams(
                    [(windows[index][0], frame) for index, frame in turn.items()],
                    gazing_ratio=self.settings.gazing_ratio,
                    task_loss_requirement=self.settings.task_loss_requirement,
                    max_gaze_tokens_each_frame=self.settings.max_gaze_tokens,
                )
            except Exception as error:
                # Nobody knows what the streams of a failed step hold.
                errors |= dict.fromkeys(turn, error)
                continue
            for index, answer in zip(turn, answers, strict=True):
                outputs[index].append(answer)
        elapsed = (time.perf_counter() - started) * 1e3
        return [
            errors[index] if index in errors else _joined(outputs[index], frames, elapsed)
            for index, (_, frames) in enumerate(windows)
        ]


def _joined(outputs: Sequence[AutoGazeGenerateOutput], frames: Frames, elapsed_ms: float) -> GazeResult:
    generated = AutoGazeGenerateOutput.concatenate(outputs)
    return GazeResult(
        generated=generated,
        fixations=np.asarray(generated.fixations(0)),
        mode=AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT,
        source_size=SourceSize(*(int(side) for side in frames.shape[:3])),
        timings=GazeTimings(request_ms=elapsed_ms, requests=len(outputs)),
    )
