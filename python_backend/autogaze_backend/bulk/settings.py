"""What decides the results of a bulk run: the knobs and the checkpoint. Another value, another result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from autogaze_client._errors import CheckpointError, InvalidInputError
from autogaze_client.knobs import check_gazing_ratio, check_max_gaze_tokens, check_task_loss_requirement
from autogaze_client.modes import AutoGazeInferenceMode

from autogaze_backend.bundle import Bundle
from autogaze_backend.requests import Knobs
from autogaze_backend.streaming import DEFAULT_HORIZON

FORMAT = 1
"""Of the output folder; another number is another layout of files or columns."""


@dataclass(frozen=True)
class BulkSettings:
    """How each video is gazed at; the same for all videos of an output folder.

    Attributes:
        mode: how frames become model input; ``resize`` with ``stream``.
        gazing_ratio: share of a frame's tokens at most, in (0, 1].
        task_loss_requirement: predicted loss at which a frame stops, at least 0.
        max_gaze_tokens: tokens a frame at most, at least 1.
        window_frames: frames of a window; without ``stream`` each is a clip of its own.
        stream: whether a video's frames go through one stream, which remembers the frames before.
        horizon: frames that a stream keeps.
        start_frame: frames to skip first.
        max_frames: frames to take at most; None = all.
        frame_stride: take every n-th frame.
    """

    mode: AutoGazeInferenceMode = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT
    gazing_ratio: float | None = None
    task_loss_requirement: float | None = None
    max_gaze_tokens: int | None = None
    window_frames: int = 16
    stream: bool = False
    horizon: int = DEFAULT_HORIZON
    start_frame: int = 0
    max_frames: int | None = None
    frame_stride: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", AutoGazeInferenceMode.parse(self.mode))
        for name in ("window_frames", "horizon", "frame_stride", "max_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} is {value}; it must be 1 or more")
        if self.start_frame < 0:
            raise InvalidInputError(f"start_frame is {self.start_frame}; it must be 0 or more")
        if self.stream and self.mode.is_tiled:
            raise InvalidInputError(
                f"mode is {self.mode.value} and stream is on; a stream runs in the resize mode: leave one of them out"
            )
        if self.gazing_ratio is not None:
            check_gazing_ratio(self.gazing_ratio, 1)
        if self.task_loss_requirement is not None:
            check_task_loss_requirement(self.task_loss_requirement)
        if self.max_gaze_tokens is not None:
            check_max_gaze_tokens(self.max_gaze_tokens, 1)

    @property
    def knobs(self) -> Knobs:
        """The knobs as a clip request carries them."""
        return Knobs(
            mode=self.mode,
            gazing_ratio=None if self.gazing_ratio is None else np.array(self.gazing_ratio, np.float32),
            task_loss_requirement=self.task_loss_requirement,
            max_gaze_tokens=None if self.max_gaze_tokens is None else np.array(self.max_gaze_tokens),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form. A horizon decides nothing without a stream, so it is left out then."""
        fields = {**asdict(self), "mode": self.mode.value}
        if not self.stream:
            del fields["horizon"]
        return fields


@dataclass(frozen=True)
class RunIdentity:
    """Everything that the numbers of an output folder depend on, apart from the videos.

    Attributes:
        settings: the knobs.
        checkpoint: what is loaded: its hash, precision, architecture with defaults, and preprocessing.
    """

    settings: BulkSettings
    checkpoint: Mapping[str, Any]

    @classmethod
    def of(cls, settings: BulkSettings, bundle: Bundle) -> RunIdentity:
        """The identity of a run with this bundle; the engine is no part of it, since tokens do not depend on it.

        (At precision ``exact`` they do not. Precision ``fast`` is another identity.)

        Raises:
            CheckpointError: the bundle does not say what it was built from.
        """
        checkpoint = bundle.manifest.get("checkpoint")
        if not isinstance(checkpoint, Mapping) or "sha256" not in checkpoint:
            raise CheckpointError(
                f"{bundle.path} does not name the hash of its checkpoint, without which results of two checkpoints "
                "could be mixed; build it again with this version"
            )
        return cls(
            settings,
            {
                "sha256": checkpoint["sha256"],
                "precision": bundle.precision,
                "spec": bundle.spec.to_dict(),
                "preprocessing": asdict(bundle.preprocessing),
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        fields = {
            "format": FORMAT,
            "settings": self.settings.to_dict(),
            "checkpoint": dict(self.checkpoint),
        }
        plain: dict[str, Any] = json.loads(json.dumps(fields))
        return plain

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the JSON form: what a result's footer is compared with."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two JSON forms differ, in words: ``settings.gazing_ratio is 0.5 there, 0.25 now``."""
    before, after = _flat(there), _flat(now)
    return [
        f"{key} is {_short(before.get(key))} there, {_short(after.get(key))} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}…"
