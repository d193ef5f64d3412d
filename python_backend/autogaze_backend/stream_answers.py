"""The output tensors of a batch of streams' frames, made together: a frame alone is too small for numpy to be quick."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from autogaze_client.generated import fixation_table
from numpy.typing import NDArray

from autogaze_backend.clips import CLIP_OUTPUTS
from autogaze_backend.generation import FrameTokens
from autogaze_backend.spec import ModelSpec

Array = NDArray[Any]

STREAM_OUTPUTS = CLIP_OUTPUTS
"""What ``autogaze_stream`` can answer."""


@dataclass
class StreamAnswer:
    """The answer to one request.

    Attributes:
        tensors: the outputs that were asked for, without a batch dimension.
        frames: 1, or 0 where the request only ended its stream.
        tokens: chosen, padding not counted.
    """

    tensors: dict[str, Array]
    frames: int
    tokens: int


class StreamAnswers:
    """Makes answers from tokens."""

    def __init__(self, spec: ModelSpec) -> None:
        self._padding = spec.tokens_per_frame
        self._cells = fixation_table(spec.scale_layouts)
        self._grids = np.array([layout.grid for layout in spec.scale_layouts], np.int32)
        # Equal answers share these arrays, so nobody may write to them.
        self._grids.flags.writeable = False

    def of_frames(
        self,
        tokens: Sequence[FrameTokens],
        sizes: Sequence[tuple[int, int]],
        wanted: Sequence[Container[str]],
    ) -> list[StreamAnswer]:
        """The answers to one frame of each of several streams.

        Args:
            tokens: of each.
            sizes: height and width of each frame.
            wanted: the outputs that each caller asks for, of ``STREAM_OUTPUTS``; the others are not made.
        """
        ids = _joined([part for item in tokens for part in item.ids])
        confidences = _joined([part for item in tokens for part in item.confidences])
        losses = _joined([part for item in tokens for part in item.losses])
        padded = ids == self._padding
        counts = [sum(map(len, item.ids)) for item in tokens]
        ends = np.cumsum(counts)
        # Chosen ids before each place, so that a frame's number is a difference.
        before = np.concatenate([[0], np.cumsum(~padded)])
        chosen_ends = before[ends].tolist()
        fixations = None
        if any("FIXATIONS" in names for names in wanted):
            real = ~padded
            fixations = self._cells[ids[real]]
            fixations[:, 5] = confidences[real]
        rows = (ids[None], padded[None], confidences[None], losses[None])
        answers: list[StreamAnswer] = []
        start = chosen_start = 0
        for count, end, chosen_end, size, names in zip(
            counts, ends.tolist(), chosen_ends, sizes, wanted, strict=True
        ):
            tensors = {
                name: row[:, start:end] for name, row in zip(_ROWS, rows, strict=True) if name in names
            }
            if "NUM_GAZING_EACH_FRAME" in names:
                tensors["NUM_GAZING_EACH_FRAME"] = _numbers(count)
            if "SCALE_GRIDS" in names:
                tensors["SCALE_GRIDS"] = self._grids
            if fixations is not None and "FIXATIONS" in names:
                tensors["FIXATIONS"] = fixations[chosen_start:chosen_end]
            if "SOURCE_SIZE" in names:
                tensors["SOURCE_SIZE"] = _source_size(1, *size)
            answers.append(StreamAnswer(tensors, 1, chosen_end - chosen_start))
            start, chosen_start = end, chosen_end
        return answers

    def of_nothing(self, wanted: Container[str]) -> StreamAnswer:
        """The answer to a request that only ends its stream: one row without slots."""
        tensors: dict[str, Array] = {
            "GAZING_POS": np.zeros((1, 0), np.int64),
            "IF_PADDED_GAZING": np.zeros((1, 0), np.bool_),
            "NUM_GAZING_EACH_FRAME": np.zeros(0, np.int64),
            "CONFIDENCES": np.zeros((1, 0), np.float32),
            "TASK_LOSS_PREDICTIONS": np.zeros((1, 0), np.float32),
            "SCALE_GRIDS": self._grids,
            "FIXATIONS": np.zeros((0, 7), np.float32),
            "SOURCE_SIZE": _source_size(0, 0, 0),
        }
        return StreamAnswer({name: array for name, array in tensors.items() if name in wanted}, 0, 0)


_ROWS = ("GAZING_POS", "IF_PADDED_GAZING", "CONFIDENCES", "TASK_LOSS_PREDICTIONS")


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@lru_cache(maxsize=1024)
def _numbers(count: int) -> Array:
    array = np.array([count], np.int64)
    array.flags.writeable = False
    return array


@lru_cache(maxsize=1024)
def _source_size(frames: int, height: int, width: int) -> Array:
    array = np.array([frames, height, width], np.int32)
    array.flags.writeable = False
    return array
