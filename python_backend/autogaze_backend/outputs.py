"""From rows of frame tokens to one ``AutoGazeGenerateOutput``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from autogaze_client.generated import AutoGazeGenerateOutput

from autogaze_backend.engine import Floats, Integers
from autogaze_backend.generation import FrameTokens, RowTokens
from autogaze_backend.spec import ModelSpec


def assemble(spec: ModelSpec, rows: Sequence[Sequence[FrameTokens]]) -> AutoGazeGenerateOutput:
    """Pads the rows of each frame to the frame's longest and joins the frames.

    Args:
        spec: the architecture.
        rows: ``rows[b][t]``, frame t of row b.

    Returns:
        B = len(rows) rows; a slot beyond a row's own length is padding with a predicted loss of NaN.
    """
    padding = spec.tokens_per_frame
    if len(rows) == 1:
        # One row needs no padding.
        counts, ids, confidences, losses = _joined(rows[0])
        return AutoGazeGenerateOutput(
            gazing_pos=(ids + np.repeat(np.arange(len(counts)) * padding, counts))[None],
            if_padded_gazing=(ids == padding)[None],
            num_gazing_each_frame=counts,
            confidences=confidences[None],
            task_loss_predictions=losses[None],
            scale_layouts=spec.scale_layouts,
        )
    frames = [[row[t].arrays() for row in rows] for t in range(len(rows[0]))]
    lengths = np.array([max(len(ids) for ids, _, _ in frame) for frame in frames], np.int64)
    starts = np.cumsum(lengths) - lengths
    shape = (len(rows), int(lengths.sum()))
    positions = np.full(shape, padding, np.int64)
    confidences = np.zeros(shape, np.float32)
    losses = np.full(shape, np.nan, np.float32)
    for frame, start in zip(frames, starts, strict=True):
        for row, (ids, confidence, loss) in enumerate(frame):
            slots = slice(int(start), int(start) + len(ids))
            positions[row, slots], confidences[row, slots], losses[row, slots] = ids, confidence, loss
    return AutoGazeGenerateOutput(
        gazing_pos=positions + np.repeat(np.arange(len(frames)) * padding, lengths),
        if_padded_gazing=positions == padding,
        num_gazing_each_frame=lengths,
        confidences=confidences,
        task_loss_predictions=losses,
        scale_layouts=spec.scale_layouts,
    )


def _joined(row: Sequence[FrameTokens]) -> tuple[Integers, Integers, Floats, Floats]:
    """Entries of each frame of a row; its ids, confidences and losses, frames one after another."""
    if isinstance(row, RowTokens):
        return row.counts, row.ids, row.confidences, row.losses
    frames = [frame.arrays() for frame in row]
    ids, confidences, losses = (np.concatenate(parts) for parts in zip(*frames, strict=True))
    return np.array([len(part) for part, _, _ in frames], np.int64), ids, confidences, losses
