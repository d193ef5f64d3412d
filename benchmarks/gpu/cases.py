"""The golden runs of the published model, as ``tests/goldens`` keeps them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from autogaze_backend import GazeModel
from autogaze_client import AutoGazeGenerateOutput
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks.gpu.context import ROOT, clips

_FOLDER = ROOT / "tests" / "goldens" / "upstream"
_KNOBS = ("gazing_ratio", "task_loss_requirement", "target_scales", "target_patch_size")
_COMPARED = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")


@dataclass(frozen=True)
class Golden:
    """A recorded run."""

    settings: dict[str, Any]
    expected: dict[str, NDArray[Any]]

    @property
    def name(self) -> str:
        """Of the case."""
        return str(self.settings["name"])

    @property
    def weights(self) -> str:
        """The seeded checkpoint's layout."""
        return str(self.settings.get("layout", "release"))

    def run(self, model: GazeModel) -> AutoGazeGenerateOutput:
        """The same run of ours; a streaming case goes frame by frame."""
        settings = self.settings
        size = (settings["frames"], settings["height"], settings["width"])
        seeds = settings["clip_seeds"]
        video = np.stack([clips.normalise(clips.synthetic_clip(*size, seed)) for seed in seeds])
        knobs = {name: settings[name] for name in _KNOBS if name in settings}
        if not settings.get("streaming"):
            return model.generate(video, **knobs)
        with model.open_stream() as stream:
            parts = [stream.push(video[:, t : t + 1], **knobs) for t in range(video.shape[1])]
        return AutoGazeGenerateOutput.concatenate(parts)

    def differences(self, found: AutoGazeGenerateOutput) -> int:
        """Slots, padding marks and counts that differ from the recorded ones; -1 where even a shape does."""
        pairs = [(np.asarray(getattr(found, name)), self.expected[name]) for name in _COMPARED]
        if any(ours.shape != theirs.shape for ours, theirs in pairs):
            return -1
        return sum(int((ours != theirs).sum()) for ours, theirs in pairs)


def goldens() -> list[Golden]:
    """Every case."""
    cases = json.loads((_FOLDER / "cases.json").read_text(encoding="utf-8"))
    return [Golden(case, load_file(_FOLDER / f"{case['name']}.safetensors")) for case in cases]
