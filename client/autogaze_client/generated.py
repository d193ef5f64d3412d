"""What the model chose: token ids with their padding flags, confidences and predicted losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client.fixations import FrameFixationTrace
from autogaze_client.layouts import AutoGazeScaleTokenLayout

__all__ = ["AutoGazeGenerateOutput", "AutoGazeScaleTokenMask"]


@dataclass(frozen=True)
class AutoGazeScaleTokenMask:
    """Which cells of one scale a row chose.

    Attributes:
        grid: cells per side.
        token_count: cells of the scale.
        frames: bool ``[T, token_count]``, row-major cells of each frame.
    """

    grid: int
    token_count: int
    frames: NDArray[np.bool_]


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
                raise InvalidInputError(
                    f"{name} has shape {found}, but gazing_pos has {shape}; they must agree"
                )
        if int(self.num_gazing_each_frame.sum()) != shape[1]:
            raise InvalidInputError(
                f"num_gazing_each_frame sums to {int(self.num_gazing_each_frame.sum())}, but there "
                f"are {shape[1]} slots"
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
        """One float32 ``[B, T, token_count]`` array a scale: 1 where the cell was chosen, else 0."""
        n = self.num_vision_tokens_each_frame
        rows, frames = self.gazing_pos.shape[0], len(self.num_gazing_each_frame)
        mask = np.zeros((rows, frames, n), np.float32)
        row, slot, local = self._choices()
        mask[row, self.frame_of_slot[slot], local] = 1.0
        return list(np.split(mask, self._scale_offsets[1:], axis=2))

    def scale_token_masks(self) -> list[list[AutoGazeScaleTokenMask]]:
        """The chosen cells as one mask a row and scale: ``masks[row][scale]``."""
        scales = [mask.astype(np.bool_) for mask in self.gazing_mask]
        return [
            [
                AutoGazeScaleTokenMask(layout.grid, layout.token_count, scale[row])
                for layout, scale in zip(self.scale_layouts, scales, strict=True)
            ]
            for row in range(self.gazing_pos.shape[0])
        ]

    @property
    def stop_probabilities(self) -> NDArray[np.float32]:
        """float32 ``[B, T]``: 1 where any slot of the frame is padding, else 0."""
        rows, frames = self.gazing_pos.shape[0], len(self.num_gazing_each_frame)
        stops = np.zeros((rows, frames), np.float32)
        row, slot = np.nonzero(self.if_padded_gazing)
        stops[row, self.frame_of_slot[slot]] = 1.0
        return stops

    @property
    def tokens_of_rows(self) -> NDArray[np.int64]:
        """int64 ``[B, T]``, tokens that each row chose in each frame, padding excluded."""
        counts = np.zeros((self.gazing_pos.shape[0], len(self.num_gazing_each_frame)), np.int64)
        row, slot, _ = self._choices()
        np.add.at(counts, (row, self.frame_of_slot[slot]), 1)
        return counts

    def fixations(self, row: int) -> NDArray[np.float32]:
        """Decodes one row's tokens to cells of the image that the row saw (a tile in tiled modes).

        An id that lies outside its frame's vocabulary is skipped, as padding is (spec: readout §2).

        Returns:
            float32 ``[n, 7]`` in decoder order: frame, x, y (centre), width, height, confidence, grid.

        Raises:
            InvalidInputError: there is no such row.
        """
        if not 0 <= row < len(self.gazing_pos):
            raise InvalidInputError(f"row is {row}; this output has rows 0..{len(self.gazing_pos) - 1}")
        cells = fixation_table(self.scale_layouts)
        n, frames = len(cells), self.frame_of_slot
        local = self.gazing_pos[row] - frames * n
        chosen = ~self.if_padded_gazing[row] & (local >= 0) & (local < n)
        if not chosen.all():
            local, frames = local[chosen], frames[chosen]
            confidences = self.confidences[row][chosen]
        else:
            confidences = self.confidences[row]
        found: NDArray[np.float32] = cells[local]
        found[:, 0], found[:, 5] = frames, confidences
        return found

    def traces(self, k: int = 0) -> tuple[FrameFixationTrace, ...]:
        """One trace a row; each frame keeps all its points and is padded up to ``k`` (spec: readout §2)."""
        return tuple(
            FrameFixationTrace.from_array(self.fixations(row), len(stops), stops, min_len=k)
            for row, stops in enumerate(self.stop_probabilities)
        )

    @property
    def _scale_offsets(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(layout.token_count for layout in self.scale_layouts[:-1])])

    def _choices(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Row, slot and frame-local id of every slot that holds a choice, in row then slot order."""
        n = self.num_vision_tokens_each_frame
        local = self.gazing_pos - self.frame_of_slot * n
        row, slot = np.nonzero(~self.if_padded_gazing & (local >= 0) & (local < n))
        return row, slot, local[row, slot]

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


@lru_cache(maxsize=16)
def fixation_table(layouts: tuple[AutoGazeScaleTokenLayout, ...]) -> NDArray[np.float32]:
    """The fixation of every id of a frame, as ``fixations`` gives it, float32 ``[N, 7]``; frame and confidence are 0.

    Read-only.
    """
    counts = [layout.token_count for layout in layouts]
    grid = np.repeat(np.array([layout.grid for layout in layouts], np.int64), counts)
    cell = np.concatenate([np.arange(count) for count in counts])
    # A scale whose tokens do not fill its square has cells beyond the last row: clamped as points are.
    columns = (
        np.zeros(len(cell)),
        (cell % grid + 0.5) / grid,
        np.minimum((cell // grid + 0.5) / grid, 1.0),
        1.0 / grid,
        1.0 / grid,
        np.zeros(len(cell)),
        grid,
    )
    table = np.stack([np.asarray(column, np.float32) for column in columns], axis=1)
    table.flags.writeable = False
    return table
