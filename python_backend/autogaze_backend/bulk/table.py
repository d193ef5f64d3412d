"""From a window's result to rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from autogaze_client.result import GazeResult
from numpy.typing import NDArray

from autogaze_backend.tiling import TileLayout

SCHEMA = pa.schema(
    [
        ("video", pa.dictionary(pa.int32(), pa.string())),
        ("frame", pa.int64()),
        ("timestamp", pa.float64()),
        ("tile", pa.int32()),
        ("token", pa.int32()),
        ("scale", pa.int16()),
        ("row", pa.int16()),
        ("column", pa.int16()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("width", pa.float32()),
        ("height", pa.float32()),
        ("confidence", pa.float32()),
        ("task_loss", pa.float32()),
        ("stop", pa.bool_()),
    ]
)
"""The columns; docs/bulk.md says what each means."""


def window_table(
    result: GazeResult,
    timestamps: NDArray[np.float64],
    *,
    video: str,
    input_size: int,
    first_frame: int,
    frame_stride: int,
) -> pa.Table:
    """The rows of a window, one a token. A frame has at least one, since the first is chosen before any stop.

    Args:
        result: of the window.
        timestamps: float64 ``[T]``, seconds of its frames.
        video: its name.
        input_size: side of the model's input in pixels, which tiles have.
        first_frame: number of the window's first frame in the video.
        frame_stride: frames of the video from one of the window to the next.

    Returns:
        Columns as ``SCHEMA``; by frame, then tile, then in the order of generation.
    """
    generated = result.generated
    rows, slots = np.nonzero(~generated.if_padded_gazing)
    frames = generated.frame_of_slot[slots]
    local = generated.gazing_pos[rows, slots] - frames * generated.num_vision_tokens_each_frame
    starts = np.cumsum([0, *(layout.token_count for layout in generated.scale_layouts)])
    scale = np.searchsorted(starts, local, side="right") - 1
    cell = local - starts[scale]
    boxes, shown = _boxes(result, input_size)
    grid = boxes[:, 6].astype(np.int64)
    columns: dict[str, NDArray[Any]] = {
        "frame": frames,
        "tile": rows,
        "token": local,
        "scale": grid,
        "row": cell // grid,
        "column": cell % grid,
        "x": boxes[:, 1],
        "y": boxes[:, 2],
        "width": boxes[:, 3],
        "height": boxes[:, 4],
        "confidence": generated.confidences[rows, slots],
        "task_loss": generated.task_loss_predictions[rows, slots],
    }
    hidden = dict.fromkeys(("x", "y", "width", "height"), ~shown)
    order = np.lexsort((slots, rows, frames))
    columns = {name: values[order] for name, values in columns.items()}
    hidden = {name: mask[order] for name, mask in hidden.items()}
    frames, rows = columns["frame"], columns["tile"]
    columns["timestamp"] = timestamps[frames]
    columns["stop"] = generated.stop_probabilities[rows, frames] > 0
    columns["frame"] = first_frame + frame_stride * frames
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(frames), np.int32)), pa.array([video]))
    arrays = [
        names
        if field.name == "video"
        else pa.array(columns[field.name], mask=hidden.get(field.name)).cast(field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _boxes(result: GazeResult, input_size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The cells of all tokens, row by row, as ``GazeResult.fixations`` has them, and which show any of the source."""
    size = result.source_size
    if result.mode.is_tiled:
        cells, shown = TileLayout(result.mode, size.height, size.width, input_size).cells(result.generated)
        return cells.astype(np.float32), shown
    fixations = result.generated.fixations(0)
    return fixations, np.ones(len(fixations), np.bool_)
