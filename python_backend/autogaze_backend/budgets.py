"""How many tokens a frame may take and when it stops: the caller's knobs, checked and resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from autogaze_client._errors import InvalidInputError
from autogaze_client.knobs import check_gazing_ratio, check_max_gaze_tokens, check_task_loss_requirement
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
        gazing_ratio: in (0, 1], one or one a frame. An array of one value is one for every frame, as on the
            wire; a list of one is for a clip of one frame.
        task_loss_requirement: finite and at least 0.
        max_gaze_tokens_each_frame: at least 1, one or one a frame, as ``gazing_ratio``.

    Raises:
        InvalidInputError: a value of another type or outside its range, a list of another length than the
            clip, or neither given where the checkpoint has no fixed default.
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
        requirement = check_task_loss_requirement(task_loss_requirement)
    if gazing_ratio is not None:
        ratios = check_gazing_ratio(gazing_ratio, frames)
        caps = np.minimum(caps, np.maximum((ratios * np.float32(full)).astype(np.int64), 1))
    if max_gaze_tokens_each_frame is not None:
        caps = np.minimum(caps, check_max_gaze_tokens(max_gaze_tokens_each_frame, frames))
    return Budget(caps, requirement)
