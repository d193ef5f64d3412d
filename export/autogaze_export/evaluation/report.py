"""The evaluation of a bundle on videos: figures, curves, and the targets that a checkpoint should meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend.model import GazeModel
from autogaze_client._errors import InvalidInputError
from autogaze_client.video import VideoReader

from autogaze_export.evaluation.policies import BASELINES, ORACLE, Policy
from autogaze_export.evaluation.reconstruction import CellTables, Floats
from autogaze_export.evaluation.runs import ModelRun, run_model, run_policy, spaced_starts

MODEL = "model"


@dataclass(frozen=True)
class EvaluationConfig:
    """What to measure.

    Attributes:
        requirement: the task-loss requirement.
        clips: of each video, evenly spaced.
        frames: consecutive frames of a clip.
        still_frames: repeats of a clip's first frame, for the still scene.
        curve_tokens: tokens a frame at which curves are sampled; empty for no curves.
    """

    requirement: float = 0.7
    clips: int = 4
    frames: int = 16
    still_frames: int = 6
    curve_tokens: tuple[int, ...] = (1, 2, 5, 10, 20, 30, 40, 60, 80, 100)


@dataclass(frozen=True)
class VideoEvaluation:
    """One video's figures; a policy's tokens are those with which it reaches the model's loss, frame by frame.

    Attributes:
        name: of the file.
        frames: evaluated.
        tokens: mean tokens a frame of the model and of each policy.
        first_tokens: likewise, of first frames only.
        later_tokens: likewise, of the other frames.
        loss: mean true loss that the model stopped at.
        stop_error: mean relative error of the predictions that stopped a frame; NaN when none did.
        still_tokens: the most tokens that any frame after the first took on a still scene.
        curve_tokens: tokens a frame of the curves.
        curves: mean loss at each of them, of the model and of each policy.
    """

    name: str
    frames: int
    tokens: dict[str, float]
    first_tokens: dict[str, float]
    later_tokens: dict[str, float]
    loss: float
    stop_error: float
    still_tokens: int
    curve_tokens: tuple[int, ...]
    curves: dict[str, tuple[float, ...]]

    @property
    def best_baseline(self) -> str:
        """The baseline with the fewest tokens."""
        return min((policy.name for policy in BASELINES), key=lambda name: self.tokens[name])

    @property
    def against_baseline(self) -> float:
        """The model's tokens over those of the best baseline; the target is at most 0.5."""
        return self.tokens[MODEL] / self.tokens[self.best_baseline]

    @property
    def against_oracle(self) -> float:
        """The model's tokens over the oracle's; the target is at most 1.6."""
        return self.tokens[MODEL] / self.tokens[ORACLE.name]

    def to_json(self) -> dict[str, Any]:
        """Everything, ratios included."""
        derived = {
            "best_baseline": self.best_baseline,
            "against_baseline": self.against_baseline,
            "against_oracle": self.against_oracle,
        }
        return asdict(self) | derived


def evaluate_video(
    model: GazeModel,
    path: str | Path,
    config: EvaluationConfig | None = None,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> VideoEvaluation:
    """Evaluates a bundle on a video.

    Args:
        model: the bundle, loaded.
        path: any file that PyAV reads.
        config: what to measure.
        progress: told of each step.

    Raises:
        InvalidInputError: the video is shorter than a clip of two frames.
        VideoDecodeError: the video cannot be read.
    """
    config = config or EvaluationConfig()
    reader = VideoReader(path)
    frames = model.preprocess(np.stack(list(reader)))
    return evaluate_frames(model, frames, Path(path).name, config, progress=progress)


def evaluate_frames(
    model: GazeModel,
    frames: Floats,
    name: str,
    config: EvaluationConfig,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> VideoEvaluation:
    """``evaluate_video`` for frames that are already model input, ``[T, 3, H, W]``."""
    from autogaze_backend.preprocessing import resize_to_input

    if len(frames) < 2:
        raise InvalidInputError(f"{name} has {len(frames)} frames; pass at least 2")
    frames = resize_to_input(frames, model.spec.input_size)
    length = min(config.frames, len(frames))
    clips = [frames[start : start + length] for start in spaced_starts(len(frames), length, config.clips)]
    tables = CellTables(model.spec)
    runs, counts = [], []
    still = 0
    for number, clip in enumerate(clips, start=1):
        progress(f"{name}: clip {number} of {len(clips)}")
        run = run_model(model, tables, clip, requirement=config.requirement)
        runs.append(run)
        counts.append(_counts(tables, run, clip))
        repeated = np.repeat(clip[:1], config.still_frames, axis=0)
        resting = run_model(model, tables, repeated, requirement=config.requirement)
        still = max(still, int(resting.counts[1:].max(initial=0)))
    errors = np.concatenate([run.stop_errors for run in runs])
    names = counts[0].keys()
    return VideoEvaluation(
        name=name,
        frames=length * len(clips),
        tokens={n: float(np.mean([c[n] for c in counts])) for n in names},
        first_tokens={n: float(np.mean([c[n][0] for c in counts])) for n in names},
        later_tokens={n: float(np.mean([c[n][1:] for c in counts])) for n in names},
        loss=float(np.mean([run.losses for run in runs])),
        stop_error=float(errors.mean()) if len(errors) else float("nan"),
        still_tokens=still,
        curve_tokens=config.curve_tokens,
        curves=_curves(model, tables, clips, config.curve_tokens, lambda step: progress(f"{name}: {step}")),
    )


def _counts(tables: CellTables, run: ModelRun, clip: Floats) -> dict[str, Any]:
    policies: Sequence[Policy] = (*BASELINES, ORACLE)
    others = {p.name: run_policy(tables, p, clip, until=run.losses).counts for p in policies}
    return {MODEL: run.counts} | others


def _curves(
    model: GazeModel,
    tables: CellTables,
    clips: Sequence[Floats],
    tokens: tuple[int, ...],
    progress: Callable[[str], None],
) -> dict[str, tuple[float, ...]]:
    curves: dict[str, list[float]] = {name: [] for name in (MODEL, *(p.name for p in (*BASELINES, ORACLE)))}
    for count in tokens:
        progress(f"{count} tokens a frame")
        runs = [run_model(model, tables, clip, tokens=count) for clip in clips]
        curves[MODEL].append(float(np.mean([run.losses for run in runs])))
        for policy in (*BASELINES, ORACLE):
            played = [run_policy(tables, policy, clip, tokens=count) for clip in clips]
            curves[policy.name].append(float(np.mean([run.losses for run in played])))
    return {name: tuple(values) for name, values in curves.items()}
