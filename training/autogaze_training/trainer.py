"""One training step after another: render, teach, learn."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path as FilePath

import torch
from torch import Tensor

from autogaze_training.config import Shape, TrainConfig
from autogaze_training.lessons import Lesson, Limits, correct, demonstrate
from autogaze_training.model import GazeNetwork
from autogaze_training.objective import Learner
from autogaze_training.render import Atlas, Renderer
from autogaze_training.rollout import choose

_STATE_FILES = ("model", "average", "matrix", "other")


class Trainer:
    """A run that can stop after any step and go on from its files."""

    def __init__(self, config: TrainConfig, atlas: Atlas, device: torch.device, *, compiled: bool) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        network = GazeNetwork()
        network.initialise(config.seed)
        self.learner = Learner(network, config.objective).to(device)
        self.average = copy.deepcopy(network).to(device)
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.renderer = Renderer(atlas, self.generator)
        self.step = 0
        self.lessons = 0
        matrices = [p for n, p in network.named_parameters() if ".layers." in n and p.dim() == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.learner.parameters() if id(p) not in chosen]
        self.matrix = torch.optim.Muon(
            matrices,
            lr=config.matrix_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self.other = torch.optim.AdamW(
            others,
            lr=config.other_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=device.type == "cuda",
        )
        if compiled:
            for layer in network.layers:
                layer.compile(dynamic=False)

    @property
    def network(self) -> GazeNetwork:
        """The network in training."""
        return self.learner.network

    def autocast(self) -> torch.autocast:
        """bfloat16 where it is safe; off on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def run(self, seconds: float = math.inf, *, every: int = 1) -> Iterator[dict[str, float]]:
        """Steps until the run is over or the time is up; yields the figures of every n-th step.

        Reading a figure waits for the device, so it is done seldom.
        """
        until = time.monotonic() + seconds
        while self.step < self.config.steps and time.monotonic() < until:
            for frames, lesson, own in self._round():
                figures = self.advance(frames, lesson)
                if self.step % every == 0 or self.step <= 3:
                    read = {name: float(value) for name, value in figures.items()}
                    yield {"step": self.step, "own": float(own), **read}

    def _round(self) -> list[tuple[Tensor, Lesson, bool]]:
        """A few batches, each to be stepped on several times; a run is only saved between rounds."""
        config, made = self.config, []
        for _ in range(config.lessons):
            # Not from the device's generator: reading that would wait for the device.
            share = random.Random(config.seed * 1_000_003 + self.lessons).random()
            own = self.step >= config.own_path_from and share < config.own_path_share
            frames, lesson = self._lesson(config.shape_at(self.lessons), own)
            made.append((frames, lesson, own))
            self.lessons += 1
        most = max(config.passes, config.own_passes)
        return [
            entry
            for turn in range(most)
            for entry in made
            if turn < (config.own_passes if entry[2] else config.passes)
        ]

    def advance(self, frames: Tensor, lesson: Lesson) -> dict[str, Tensor]:
        """One step; the figures stay on the device."""
        config = self.config
        with self.autocast():
            loss, parts = self.learner(frames, lesson)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
        factor = config.rate_at(self.step)
        for optimizer, rate in ((self.matrix, config.matrix_rate), (self.other, config.other_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        counts = lesson.path.counts.float()
        return {
            "frames": counts.new_tensor(frames.shape[1]),
            **parts,
            "norm": norm,
            "first": counts[:, 0].mean(),
            "later": counts[:, 1:].mean(),
        }

    def _lesson(self, shape: Shape, own: bool) -> tuple[Tensor, Lesson]:
        frames = self.renderer.clips(shape.clips, shape.frames)
        limits = self._limits(shape)
        if not own:
            return frames, demonstrate(frames, limits, shape.slots, shape.length)
        with self.autocast():
            path, picks, _ = choose(self.network, frames, limits, shape.slots)
        return frames, correct(frames, path, picks, shape.length)

    def _limits(self, shape: Shape) -> Limits:
        """Requirements around the default, some far off, some none; caps for a quarter of the clips."""

        def uniform(low: float, high: float) -> Tensor:
            draw = torch.rand(shape.clips, generator=self.generator, device=self.device)
            return low + (high - low) * draw

        near = 0.7 * uniform(-0.3, 0.3).exp()
        far = uniform(math.log(0.2), math.log(2.0)).exp()
        requirement = torch.where(uniform(0, 1) < 0.5, near, far)
        requirement = torch.where(uniform(0, 1) < 0.1, -1.0, requirement)
        caps = torch.where(uniform(0, 1) < 0.25, uniform(1, shape.slots), float(shape.slots)).long()
        return Limits(requirement, caps)

    @torch.no_grad()
    def _update_average(self) -> None:
        weight = 1 - min(self.config.average, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), weight)

    def save(self, folder: FilePath) -> None:
        """Writes four files, each small."""
        folder.mkdir(parents=True, exist_ok=True)
        states = {
            "model": {
                "learner": self.learner.state_dict(),
                "step": self.step,
                "lessons": self.lessons,
                "generator": self.generator.get_state(),
            },
            "average": self.average.state_dict(),
            "matrix": self.matrix.state_dict(),
            "other": self.other.state_dict(),
        }
        for name in _STATE_FILES:
            torch.save(states[name], folder / f"{name}.pt")

    def resume(self, folder: FilePath) -> None:
        """Goes on from what ``save`` wrote."""

        def read(name: str) -> dict[str, object]:
            state: dict[str, object] = torch.load(
                folder / f"{name}.pt", map_location="cpu", weights_only=True
            )
            return state

        model = read("model")
        self.learner.load_state_dict(model["learner"])  # type: ignore[arg-type]
        self.step = int(model["step"])  # type: ignore[call-overload]
        self.lessons = int(model["lessons"])  # type: ignore[call-overload]
        self.generator.set_state(model["generator"])  # type: ignore[arg-type]
        self.average.load_state_dict(read("average"))
        self.matrix.load_state_dict(read("matrix"))
        self.other.load_state_dict(read("other"))
