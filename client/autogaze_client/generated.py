"""What the model chose: token ids with their padding flags, confidences and predicted losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client.layouts import AutoGazeScaleTokenLayout

Array = NDArray[Any]


@dataclass(frozen=True)
class AutoGazeGenerateOutput:
    """The tokens of one call (upstream's ``gaze_outputs``), B rows, T frames, S slots in all.

    Attributes:
        gazing_pos: int64 ``[B, S]``, id within the frame + N·t, t counted within this output. The frames
            are concatenated. A padded slot holds N + N·t, the id of the next frame's first token.
        if_padded_gazing: bool ``[B, S]``, True where the slot holds no choice: the only authority on
            padding. Padding may be interleaved with choices.
        num_gazing_each_frame: int64 ``[T]``, slots of each frame, padding included, shared by all rows.
        confidences: float32 ``[B, S]``, softmax probability of the id among those its head could still
            choose; 0 for padding.
        task_loss_predictions: float32 ``[B, S]``, predicted reconstruction loss *before* the slot's token,
            kept at slots that the stop padded; NaN where a row had already ended.
        scale_layouts: the scales of the ids, in id order; their token counts sum to N.
    """

    gazing_pos: NDArray[np.int64]
    if_padded_gazing: NDArray[np.bool_]
    num_gazing_each_frame: NDArray[np.int64]
    confidences: NDArray[np.float32]
    task_loss_predictions: NDArray[np.float32]
    scale_layouts: tuple[AutoGazeScaleTokenLayout, ...]

    def __post_init__(self) -> None:
        shape = self.gazing_pos.shape
        if len(shape) != 2:
            raise InvalidInputError(f"gazing_pos has shape {shape}; it must be [rows, slots]")
        for name in ("if_padded_gazing", "confidences", "task_loss_predictions"):
            found = getattr(self, name).shape
            if found != shape:
                raise InvalidInputError(f"{name} has shape {found}, but gazing_pos has {shape}; they must agree")
        if int(self.num_gazing_each_frame.sum()) != shape[1]:
            raise InvalidInputError(
                f"num_gazing_each_frame sums to {int(self.num_gazing_each_frame.sum())}, but there are {shape[1]} slots"
            )

    @property
    def num_vision_tokens_each_frame(self) -> int:
        """N, the ids of one frame."""
        return sum(layout.token_count for layout in self.scale_layouts)

    @property
    def frame_of_slot(self) -> NDArray[np.int64]:
        """int64 ``[S]``, the frame each slot belongs to."""
        return np.repeat(np.arange(len(self.num_gazing_each_frame)), self.num_gazing_each_frame)

    @property
    def gazing_mask(self) -> list[NDArray[np.float32]]:
        """One float32 ``[B, T, token_count]`` array a scale: 1 where the cell was chosen, padding excluded."""
        n = self.num_vision_tokens_each_frame
        rows, frames = self.gazing_pos.shape[0], len(self.num_gazing_each_frame)
        mask = np.zeros((rows, frames * n), np.float32)
        row, slot = np.nonzero(~self.if_padded_gazing)
        mask[row, self.gazing_pos[row, slot]] = 1.0
        edges = np.cumsum([layout.token_count for layout in self.scale_layouts])[:-1]
        return list(np.split(mask.reshape(rows, frames, n), edges, axis=2))

    @classmethod
    def concatenate(cls, parts: Sequence[AutoGazeGenerateOutput]) -> AutoGazeGenerateOutput:
        """Joins consecutive clips of the same rows in time; frames count on from part to part.

        Raises:
            InvalidInputError: no parts, or parts of different row counts or scales.
        """
        if not parts:
            raise InvalidInputError("there are no outputs to concatenate; pass at least one")
        first = parts[0]
        positions, offset = [], 0
        for part in parts:
            if part.scale_layouts != first.scale_layouts or len(part.gazing_pos) != len(first.gazing_pos):
                raise InvalidInputError(
                    "outputs with different scales or row counts cannot be joined in time; "
                    f"found {len(first.gazing_pos)} and {len(part.gazing_pos)} rows"
                )
            positions.append(part.gazing_pos + offset)
            offset += part.num_vision_tokens_each_frame * len(part.num_gazing_each_frame)
        return cls(
            gazing_pos=np.concatenate(positions, axis=1),
            if_padded_gazing=np.concatenate([part.if_padded_gazing for part in parts], axis=1),
            num_gazing_each_frame=np.concatenate([part.num_gazing_each_frame for part in parts]),
            confidences=np.concatenate([part.confidences for part in parts], axis=1),
            task_loss_predictions=np.concatenate([part.task_loss_predictions for part in parts], axis=1),
            scale_layouts=first.scale_layouts,
        )
