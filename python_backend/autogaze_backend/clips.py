"""The middle and last stages: clips to tokens, tokens to fixations in source coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from autogaze_client._errors import AutoGazeError, InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.layouts import layouts_from_grids
from numpy.typing import NDArray

from autogaze_backend.budgets import Budget, resolve_budget
from autogaze_backend.engine import Floats
from autogaze_backend.model import GazeModel
from autogaze_backend.outputs import assemble
from autogaze_backend.requests import Knobs

Array = NDArray[Any]


@dataclass(frozen=True)
class PreparedClip:
    """A clip ready for the engine.

    Attributes:
        rows: normalised model input float32 ``[T, 3, side, side]``, one a row.
        budget: of every row.
    """

    rows: tuple[Floats, ...]
    budget: Budget


def prepare_clip(model: GazeModel, tensors: Mapping[str, Array]) -> PreparedClip:
    """Checks a request of ``autogaze_generate`` and preprocesses its frames.

    Raises:
        InvalidInputError: frames or knobs break a rule.
    """
    knobs = Knobs.from_tensors(tensors)
    if knobs.mode.is_tiled:
        raise InvalidInputError(
            f"MODE is {knobs.mode.code} ({knobs.mode.value}); this version serves 0 (resize) only"
        )
    if knobs.target_scales is not None or knobs.target_patch_size is not None:
        raise InvalidInputError(
            "TARGET_SCALES and TARGET_PATCH_SIZE are not served by this version; leave them out"
        )
    frames = tensors["FRAMES"]
    budget = resolve_budget(
        model.spec,
        len(frames),
        gazing_ratio=knobs.gazing_ratio,
        task_loss_requirement=knobs.task_loss_requirement,
        max_gaze_tokens_each_frame=knobs.max_gaze_tokens,
    )
    if knobs.top_k is not None:
        budget = budget.at_least(min(knobs.top_k, model.spec.tokens_per_frame))
    return PreparedClip((model.preprocess(frames),), budget)


def generate_clips(
    model: GazeModel, batch: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array] | Exception]:
    """Serves a batch of requests of ``autogaze_generate``: the rows of all of them share the engine's batches.

    Returns:
        For each request its output tensors, or the error that it alone gets.
    """
    prepared: list[PreparedClip | Exception] = []
    for tensors in batch:
        try:
            prepared.append(prepare_clip(model, tensors))
        except AutoGazeError as error:
            prepared.append(error)
    clips = [clip for clip in prepared if isinstance(clip, PreparedClip)]
    rows = iter(model.generate_rows([(row, clip.budget) for clip in clips for row in clip.rows]))
    answers: list[dict[str, Array] | Exception] = []
    for clip in prepared:
        if isinstance(clip, Exception):
            answers.append(clip)
            continue
        answers.append(token_tensors(assemble(model.spec, [next(rows) for _ in clip.rows])))
    return answers


def token_tensors(generated: AutoGazeGenerateOutput) -> dict[str, Array]:
    """The output tensors that hold the tokens."""
    return {
        "GAZING_POS": generated.gazing_pos,
        "IF_PADDED_GAZING": generated.if_padded_gazing,
        "NUM_GAZING_EACH_FRAME": generated.num_gazing_each_frame,
        "CONFIDENCES": generated.confidences,
        "TASK_LOSS_PREDICTIONS": generated.task_loss_predictions,
        "SCALE_GRIDS": np.array([layout.grid for layout in generated.scale_layouts], np.int32),
    }


def decode_clip(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Serves a request of ``autogaze_decode``: the chosen cells as ``FIXATIONS`` float32 ``[n, 7]``.

    Columns: frame, centre x, centre y, width, height (fractions of the source frame), confidence, cells
    per side of the token's scale; in generation order, padding left out.
    """
    generated = AutoGazeGenerateOutput(
        gazing_pos=tensors["GAZING_POS"],
        if_padded_gazing=tensors["IF_PADDED_GAZING"],
        num_gazing_each_frame=tensors["NUM_GAZING_EACH_FRAME"],
        confidences=tensors["CONFIDENCES"],
        task_loss_predictions=tensors["TASK_LOSS_PREDICTIONS"],
        scale_layouts=layouts_from_grids(tensors["SCALE_GRIDS"].tolist()),
    )
    return {"FIXATIONS": generated.fixations(0)}
