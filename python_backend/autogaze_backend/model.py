"""The model as a library: load a bundle, choose tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_client._errors import InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from numpy.typing import NDArray

from autogaze_backend.adaptation import resolve_target_scales
from autogaze_backend.budgets import Budget, Ratio, Tokens, resolve_budget
from autogaze_backend.bundle import Bundle
from autogaze_backend.engine import Engine, Floats
from autogaze_backend.generation import FrameTokens, RowState, generate_frame
from autogaze_backend.outputs import assemble
from autogaze_backend.preprocessing import preprocess, resize_to_input
from autogaze_backend.spec import ModelSpec
from autogaze_backend.streaming import DEFAULT_HORIZON, GazeStream, step_frames

# Frames encoded at once: bounds the memory of a long clip without starving the convolutions.
_ENCODE_FRAMES = 16


class GazeModel:
    """A bundle ready to run. Calls must not overlap: the engine is not thread-safe.

    Example:
        >>> model = GazeModel.load("build/bundle")  # doctest: +SKIP
        >>> gaze = model.generate(video, gazing_ratio=0.75, task_loss_requirement=0.7)  # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle = bundle
        self.engine = engine

    @classmethod
    def load(
        cls, bundle: str | Path | Bundle, *, device: str = "cpu", threads: int | None = None
    ) -> GazeModel:
        """Opens a bundle.

        Args:
            bundle: a folder that ``autogaze build`` wrote, or a loaded ``Bundle``.
            device: "cpu".
            threads: threads of a CPU engine; None for all physical cores.

        Raises:
            NotFoundError: there is no bundle.
            CheckpointError: the bundle is damaged or of another format.
            InvalidInputError: the device is unknown or the bundle's engine cannot run on it.
        """
        loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        if device != "cpu":
            raise InvalidInputError(f"device is {device!r}; this version runs on 'cpu'")
        from autogaze_backend.onnxruntime_engine import OnnxRuntimeEngine

        return cls(loaded, OnnxRuntimeEngine(loaded, threads=threads))

    @property
    def spec(self) -> ModelSpec:
        """The checkpoint's architecture and defaults."""
        return self.bundle.spec

    def preprocess(self, frames: NDArray[np.uint8]) -> Floats:
        """uint8 ``[T, H, W, 3 or 4]`` to the model input of the resize mode, float32 ``[T, 3, side, side]``."""
        return preprocess(frames, self.bundle.preprocessing, self.spec.input_size)

    def generate(
        self,
        video: NDArray[np.float32],
        *,
        gazing_ratio: Ratio = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: Tokens = None,
        target_scales: Sequence[int] | None = None,
        target_patch_size: int | None = None,
    ) -> AutoGazeGenerateOutput:
        """Chooses the tokens of a batch of clips; every row comes out as if it had run alone.

        Args:
            video: float32 ``[B, T, 3, H, W]``, normalised as upstream's processor does; resized to the
                model's square input (bicubic, aspect ignored) where it has another size.
            gazing_ratio: share of a frame's N tokens, in (0, 1], one or one a frame.
            task_loss_requirement: predicted loss at which a frame stops, at least 0.
            max_gaze_tokens_each_frame: tokens, at least 1, one or one a frame.
            target_scales: sizes in pixels of a downstream encoder's scales, ascending, as many as the
                model has; the video must then be as large as the last.
            target_patch_size: its patch in pixels.

        Returns:
            The tokens; see ``resolve_budget`` for how the three knobs combine. Under ``target_scales`` the
            budget is a tile's, and ids are the target's (``TargetScales.stitch``).

        Raises:
            InvalidInputError: a wrong shape, a value that is not finite, or a knob outside its range.
        """
        check_video(video)
        budget = resolve_budget(
            self.spec,
            video.shape[1],
            gazing_ratio=gazing_ratio,
            task_loss_requirement=task_loss_requirement,
            max_gaze_tokens_each_frame=max_gaze_tokens_each_frame,
        )
        target = resolve_target_scales(self.spec, target_scales, target_patch_size)
        if target is None:
            return assemble(self.spec, self.generate_rows([(row, budget) for row in video]))
        if video.shape[3:] != (target.size, target.size):
            raise InvalidInputError(
                f"video has frames of {video.shape[4]}×{video.shape[3]}; target_scales ends at {target.size}, so pass "
                f"{target.size}×{target.size}"
            )
        tiles = self.generate_rows([(tile, budget) for tile in target.cut(video)])
        return target.stitch(assemble(self.spec, tiles))

    def open_stream(self, *, horizon: int = DEFAULT_HORIZON) -> GazeStream:
        """Opens a stream: one frame or chunk at a time.

        Args:
            horizon: frames that the cache keeps, at least 1. Up to it the tokens are those of a whole clip.

        Raises:
            InvalidInputError: the horizon is below 1.
        """
        return GazeStream(self, horizon)

    def step_streams(
        self,
        items: Sequence[tuple[GazeStream, NDArray[np.float32]]],
        *,
        gazing_ratio: Ratio = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: Tokens = None,
    ) -> list[AutoGazeGenerateOutput]:
        """Runs one frame of many streams as one batch; each comes out as if it had been stepped alone.

        Args:
            items: streams of this model, each once, with a frame float32 ``[1, 3, H, W]`` each.
            gazing_ratio: of every frame; see ``generate``.
            task_loss_requirement: likewise.
            max_gaze_tokens_each_frame: likewise.

        Returns:
            The tokens of each frame, in order, ids counted within the frame.

        Raises:
            InvalidInputError: a wrong shape or knob, or a stream that is closed, lost, foreign or named
                twice. Nothing has run then.
        """
        budget = resolve_budget(
            self.spec,
            1,
            gazing_ratio=gazing_ratio,
            task_loss_requirement=task_loss_requirement,
            max_gaze_tokens_each_frame=max_gaze_tokens_each_frame,
        )
        for _, frame in items:
            if frame.ndim != 4 or len(frame) != 1:
                raise InvalidInputError(f"frame has shape {list(frame.shape)}; pass [1, 3, H, W]")
            check_video(frame[:, None])
        tokens = step_frames(self, [(stream, frame, budget) for stream, frame in items])
        return [assemble(self.spec, [[frame]]) for frame in tokens]

    def warm_up(self) -> None:
        """Runs every graph once, so that the first request does not pay for it."""
        frames = np.zeros((1, 2, 3, self.spec.input_size, self.spec.input_size), np.float32)
        self.generate(
            frames, max_gaze_tokens_each_frame=min(2 * self.spec.group_size, self.spec.tokens_per_frame)
        )

    def generate_rows(self, rows: Sequence[tuple[NDArray[np.float32], Budget]]) -> list[list[FrameTokens]]:
        """Chooses the tokens of rows that may differ in length, size and limits.

        Args:
            rows: a clip float32 ``[T, 3, H, W]`` and its budget each.

        Returns:
            ``[row][frame]``.
        """
        results: list[list[FrameTokens]] = [[] for _ in rows]
        # Rows of one length share a batch; the longest first, so that batches are even.
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
        while order:
            frames = len(rows[order[0]][0])
            same = [index for index in order if len(rows[index][0]) == frames][: self.engine.preferred_rows]
            order = [index for index in order if index not in same]
            clips = [resize_to_input(rows[index][0], self.spec.input_size) for index in same]
            for index, tokens in zip(
                same, self._run_batch(clips, [rows[index][1] for index in same]), strict=True
            ):
                results[index] = tokens
        return results

    def _run_batch(self, clips: list[Floats], budgets: list[Budget]) -> list[list[FrameTokens]]:
        frames = np.stack(clips)
        requirement = np.array(
            [np.nan if b.requirement is None else b.requirement for b in budgets], np.float32
        )
        max_tokens = np.stack([budget.max_tokens for budget in budgets])
        rows = RowState.start(self.engine, len(clips))
        state: Any = None
        results: list[list[FrameTokens]] = [[] for _ in clips]
        for start in range(0, frames.shape[1], _ENCODE_FRAMES):
            vision, state = self.engine.encode(frames[:, start : start + _ENCODE_FRAMES], state)
            for offset in range(vision.shape[1]):
                tokens = generate_frame(
                    self.engine, rows, vision[:, offset], max_tokens[:, start + offset], requirement
                )
                for result, row in zip(results, tokens, strict=True):
                    result.append(row)
        return results


def check_video(video: NDArray[Any]) -> None:
    """Checks a batch of normalised clips.

    Raises:
        InvalidInputError: not float32 ``[B, T, 3, H, W]``, an empty axis, or values that are not finite.
    """
    if video.ndim != 5 or video.shape[2] != 3:
        raise InvalidInputError(f"video has shape {list(video.shape)}; pass [B, T, 3, H, W]")
    if 0 in video.shape:
        raise InvalidInputError(f"video has shape {list(video.shape)}; every axis must be at least 1")
    if video.dtype != np.float32:
        raise InvalidInputError(f"video is {video.dtype}; pass float32, normalised as the processor does")
    if not np.isfinite(video).all():
        raise InvalidInputError("video holds NaN or infinite values; normalise uint8 frames instead")
