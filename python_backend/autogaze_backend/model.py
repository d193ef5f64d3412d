"""The model as a library: load a bundle, choose tokens."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_client._errors import InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.result import GazeResult
from numpy.typing import NDArray

from autogaze_backend.adaptation import resolve_target_scales
from autogaze_backend.budgets import Budget, Ratio, Tokens, resolve_budget
from autogaze_backend.bundle import Bundle
from autogaze_backend.engine import Engine, Floats
from autogaze_backend.engines import EngineInfo, open_engine
from autogaze_backend.generation import FrameTokens
from autogaze_backend.outputs import assemble
from autogaze_backend.preprocessing import check_frames, normalise, preprocess, resize_exact, resize_to_input
from autogaze_backend.requests import Knobs
from autogaze_backend.resident import is_resident, scheduler_for
from autogaze_backend.scheduling import Row, RowJob, cancelled_error
from autogaze_backend.spec import ModelSpec
from autogaze_backend.streaming import DEFAULT_HORIZON, GazeStream, step_frames


class GazeModel:
    """A bundle ready to run. Calls must not overlap: the engine is not thread-safe.

    Example:
        >>> model = GazeModel.load("build/bundle")  # doctest: +SKIP
        >>> gaze = model.generate(video, gazing_ratio=0.75, task_loss_requirement=0.7)  # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle, engine: Engine, info: EngineInfo | None = None) -> None:
        self.bundle = bundle
        self.engine = engine
        self.info = info

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        device: str = "cpu",
        engine: str = "auto",
        threads: int | None = None,
    ) -> GazeModel:
        """Opens a bundle.

        Args:
            bundle: a folder that ``autogaze build`` wrote, or a loaded ``Bundle``.
            device: "cpu", "cuda" (which is "cuda:0"), "cuda:<number>", or "auto" for a GPU where an engine fits one,
                else the CPU.
            engine: a name of ``autogaze_backend.engines.ENGINES``, such as "tensorrt" or "onnxruntime"; "auto" takes
                the first of them that fits bundle and device. What it was is in ``info``.
            threads: threads of a CPU engine; None for all physical cores.

        Raises:
            NotFoundError: there is no bundle.
            CheckpointError: the bundle is damaged or of another format.
            InvalidInputError: the device or engine is unknown, or the bundle cannot run on them.
            MissingExtraError: the engine's packages are not installed.
            PlanMismatchError: the bundle's TensorRT plans do not fit the machine, and "tensorrt" was asked for.
        """
        loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        opened = open_engine(loaded, device=device, engine=engine, threads=threads)
        return cls(loaded, opened.engine, opened.info)

    @property
    def spec(self) -> ModelSpec:
        """The checkpoint's architecture and defaults."""
        return self.bundle.spec

    def preprocess(self, frames: NDArray[np.uint8]) -> Floats:
        """uint8 ``[T, H, W, 3 or 4]`` to the model input of the resize mode, float32 ``[T, 3, side, side]``."""
        return preprocess(frames, self.bundle.preprocessing, self.spec.input_size)

    def stream_input(self, frames: NDArray[np.uint8]) -> NDArray[Any]:
        """What the engine takes for uint8 ``[T, H, W, 3 or 4]`` in the resize mode.

        The bytes themselves where it preprocesses on its device; else what ``preprocess`` gives.
        """
        return check_frames(frames) if is_resident(self.engine) else self.preprocess(frames)

    def preprocess_exact(self, frames: NDArray[np.uint8], size: int) -> Floats:
        """uint8 ``[T, H, W, 3 or 4]`` to float32 ``[T, 3, size, size]``, aspect ignored, as for target scales."""
        return normalise(resize_exact(check_frames(frames), (size, size)), self.bundle.preprocessing)

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
                model's square input (bicubic, aspect ignored) where it has another size. With the torch engine
                also a tensor on its device, of the model's size.
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
        largest: Any = 0.0
        if isinstance(video, np.ndarray):
            check_video(video)
        else:
            largest = self._check_device_video(video, target_scales)
        budget = resolve_budget(
            self.spec,
            video.shape[1],
            gazing_ratio=gazing_ratio,
            task_loss_requirement=task_loss_requirement,
            max_gaze_tokens_each_frame=max_gaze_tokens_each_frame,
        )
        target = resolve_target_scales(self.spec, target_scales, target_patch_size)
        if target is None:
            tokens = self._generate_all([self.row(clip, budget) for clip in video])
            # Asked only now: the device need not be waited for twice.
            if not math.isfinite(largest):
                raise InvalidInputError("video holds NaN or infinite values; normalise uint8 frames instead")
            return tokens
        if video.shape[3:] != (target.size, target.size):
            raise InvalidInputError(
                f"video has frames of {video.shape[4]}×{video.shape[3]}; target_scales ends at {target.size}, so pass "
                f"{target.size}×{target.size}"
            )
        return target.stitch(self._generate_all([self.row(tile, budget) for tile in target.cut(video)]))

    def row(self, clip: Floats, budget: Budget) -> Row:
        """A row from a normalised clip float32 ``[T, 3, H, W]`` of any size, or a tensor of the model's."""
        side = self.spec.input_size
        if not isinstance(clip, np.ndarray):
            return Row(len(clip), lambda start, stop: clip[start:stop], budget)
        return Row(len(clip), lambda start, stop: resize_to_input(clip[start:stop], side), budget)

    def _check_device_video(self, video: Any, target_scales: Sequence[int] | None) -> Any:
        """Checks all but the values; the largest of them, on the device, tells whether all are finite."""
        import torch

        side = self.spec.input_size
        if not isinstance(video, torch.Tensor) or not is_resident(self.engine):
            raise InvalidInputError(
                f"video is {type(video).__name__}; pass a numpy array (or, with the torch engine, a torch tensor)"
            )
        if target_scales is not None:
            raise InvalidInputError("video is a tensor, but target_scales cut arrays; pass a numpy array")
        if video.ndim != 5 or video.shape[2:] != (3, side, side) or 0 in video.shape:
            raise InvalidInputError(
                f"video is a tensor of {list(video.shape)}; pass [B, T, 3, {side}, {side}], or an array of any size"
            )
        if video.dtype != torch.float32:
            raise InvalidInputError(f"video is {video.dtype}; pass torch.float32, normalised")
        return torch.linalg.vector_norm(video, ord=float("inf"))

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

    def gaze(
        self,
        frames: NDArray[np.uint8],
        *,
        mode: AutoGazeInferenceMode | str = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT,
        gazing_ratio: Ratio = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: Tokens = None,
        target_scales: Sequence[int] | None = None,
        target_patch_size: int | None = None,
        top_k: int | None = None,
    ) -> GazeResult:
        """What ``GazeClient.gaze`` gives for an array of frames, without a server.

        Args:
            frames: uint8 ``[T, H, W, 3 or 4]``.
            mode: how frames become model input; in tiled modes the budget is a tile's.
            gazing_ratio: see ``generate``.
            task_loss_requirement: likewise.
            max_gaze_tokens_each_frame: likewise.
            target_scales: likewise; the frames may then have any size.
            target_patch_size: likewise.
            top_k: the fewest tokens that a frame's budget allows.

        Raises:
            InvalidInputError: frames or knobs break a rule.
        """
        from autogaze_backend.clips import gaze

        knobs = Knobs(
            mode=AutoGazeInferenceMode.parse(mode),
            gazing_ratio=None if gazing_ratio is None else np.asarray(gazing_ratio, np.float32),
            task_loss_requirement=task_loss_requirement,
            max_gaze_tokens=None
            if max_gaze_tokens_each_frame is None
            else np.asarray(max_gaze_tokens_each_frame),
            top_k=top_k,
            target_scales=None if target_scales is None else tuple(target_scales),
            target_patch_size=target_patch_size,
        )
        return gaze(self, frames, knobs)

    def warm_up(self) -> None:
        """Runs every graph once, so that the first request does not pay for it."""
        frames = np.zeros((1, 2, 3, self.spec.input_size, self.spec.input_size), np.float32)
        self.generate(
            frames, max_gaze_tokens_each_frame=min(2 * self.spec.group_size, self.spec.tokens_per_frame)
        )

    def generate_rows(
        self, rows: Sequence[Row], *, cancelled: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, Sequence[FrameTokens] | Exception]]:
        """Chooses the tokens of rows that may differ in length and limits; yields each as it is finished.

        Args:
            rows: the clips.
            cancelled: whether nobody waits for row i any more; asked between calls of the engine.

        Yields:
            A row's index in ``rows`` and its frames' tokens, or the error that ended it alone.
        """
        scheduler = scheduler_for(self.engine)
        finished: deque[tuple[int, Sequence[FrameTokens] | Exception]] = deque()

        def done(index: int, result: Sequence[FrameTokens] | Exception) -> None:
            finished.append((index, result))

        def ended(index: int, frame: int) -> Exception | None:
            if cancelled is None or not cancelled(index):
                return None
            return cancelled_error(frame, rows[index].frames)

        try:
            for index, row in enumerate(rows):
                scheduler.add(RowJob(row, partial(done, index), partial(ended, index)))
            while len(scheduler):
                scheduler.tick()
                while finished:
                    yield finished.popleft()
        finally:
            scheduler.abandon()

    def _generate_all(self, rows: Sequence[Row]) -> AutoGazeGenerateOutput:
        tokens: list[Sequence[FrameTokens]] = [[] for _ in rows]
        for index, row in self.generate_rows(rows):
            if isinstance(row, Exception):
                raise row
            tokens[index] = row
        return assemble(self.spec, tokens)


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
