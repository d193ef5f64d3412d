"""How many tokens a frame may take and when it stops: the caller's knobs, checked and resolved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from autogaze_client._errors import InvalidInputError
from numpy.typing import NDArray

from autogaze_backend.spec import ModelSpec

Ratio = float | Sequence[float] | NDArray[np.float32] | None
Tokens = int | Sequence[int] | NDArray[np.int64] | None


@dataclass(frozen=True)
class Budget:
    """The limits of a clip.

    Attributes:
        max_tokens: int64 ``[T]``, the most tokens that each frame may take, 1 to N.
        requirement: the predicted loss at which a frame stops, or None.
    """

    max_tokens: NDArray[np.int64]
    requirement: float | None

    def of_frame(self, frame: int) -> Budget:
        """The limits of one frame, as a clip of that frame alone."""
        return Budget(self.max_tokens[frame : frame + 1], self.requirement)

    def at_least(self, tokens: int) -> Budget:
        """The budget with no frame's cap below ``tokens`` (the pipeline's ``top_k``)."""
        return Budget(np.maximum(self.max_tokens, tokens), self.requirement)


def resolve_budget(
    spec: ModelSpec,
    frames: int,
    *,
    gazing_ratio: Ratio = None,
    task_loss_requirement: float | None = None,
    max_gaze_tokens_each_frame: Tokens = None,
) -> Budget:
    """Applies upstream's rules (pipeline §5, Budgets).

    A cap (ratio or tokens; the smaller where both are given) without a requirement turns the stop off; a
    requirement alone caps at N; neither takes the checkpoint's defaults. A ratio becomes
    trunc(float32(ratio)·N) tokens, at least one.

    Args:
        spec: the architecture and its defaults.
        frames: T.
        gazing_ratio: in (0, 1], one or one a frame.
        task_loss_requirement: finite and at least 0.
        max_gaze_tokens_each_frame: at least 1, one or one a frame.

    Raises:
        InvalidInputError: a value outside its range, a list of another length than the clip, or neither
            given where the checkpoint has no fixed default.
    """
    full = spec.tokens_per_frame
    caps = np.full(frames, full, np.int64)
    requirement = None
    if gazing_ratio is None and max_gaze_tokens_each_frame is None and task_loss_requirement is None:
        if spec.default_gazing_ratio is None:
            raise InvalidInputError(
                "the checkpoint's config has no fixed gazing ratio; pass gazing_ratio, task_loss_requirement or "
                "max_gaze_tokens_each_frame"
            )
        gazing_ratio, requirement = spec.default_gazing_ratio, spec.default_task_loss_requirement
    if task_loss_requirement is not None:
        if not math.isfinite(task_loss_requirement) or task_loss_requirement < 0:
            raise InvalidInputError(
                f"task_loss_requirement is {task_loss_requirement}; it must be finite and at least 0 "
                "(0.7 is usual; a smaller one keeps more tokens)"
            )
        requirement = float(task_loss_requirement)
    if gazing_ratio is not None:
        ratios = _per_frame("gazing_ratio", np.asarray(gazing_ratio, np.float32), frames)
        if not ((ratios > 0) & (ratios <= 1)).all():
            raise InvalidInputError(
                f"gazing_ratio is {_show(gazing_ratio)}; it must be above 0 and at most 1"
            )
        caps = np.minimum(caps, np.maximum((ratios * np.float32(full)).astype(np.int64), 1))
    if max_gaze_tokens_each_frame is not None:
        raw = np.asarray(max_gaze_tokens_each_frame)
        if raw.dtype.kind not in "iu":
            raise InvalidInputError(
                f"max_gaze_tokens_each_frame is {_show(max_gaze_tokens_each_frame)}; it must be whole numbers"
            )
        tokens = _per_frame("max_gaze_tokens_each_frame", raw.astype(np.int64), frames)
        if (tokens < 1).any():
            raise InvalidInputError(
                f"max_gaze_tokens_each_frame is {_show(max_gaze_tokens_each_frame)}; it must be at least 1"
            )
        caps = np.minimum(caps, tokens)
    return Budget(caps, requirement)


def _per_frame(name: str, values: NDArray, frames: int) -> NDArray:  # type: ignore[type-arg]
    if values.ndim > 1 or values.size not in (1, frames):
        raise InvalidInputError(
            f"{name} has {values.size} values for {frames} frames; pass one, or one a frame"
        )
    return np.broadcast_to(values.reshape(-1), (frames,))


def _show(value: object) -> str:
    return str(np.asarray(value).tolist())
