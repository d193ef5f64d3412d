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

# What a tile of a frame without tokens leaves open.
_OF_A_TOKEN = ("token", "scale", "row", "column", "x", "y", "width", "height", "confidence")


def window_table(
    result: GazeResult,
    timestamps: NDArray[np.float64],
    *,
    video: str,
    input_size: int,
    first_frame: int,
    frame_stride: int,
) -> pa.Table:
    """The rows of a window: one a token, and one for each tile of a frame that has none.

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
    empty_rows, empty_frames = np.nonzero(generated.tokens_of_rows == 0)
    if len(empty_rows):
        columns, hidden = _with_empty(result, columns, hidden, empty_rows, empty_frames)
    order = np.lexsort((np.arange(len(columns["frame"])), columns["tile"], columns["frame"]))
    columns = {name: values[order] for name, values in columns.items()}
    hidden = {name: mask[order] for name, mask in hidden.items()}
    frames, rows = columns["frame"], columns["tile"]
    columns["timestamp"] = timestamps[frames]
    columns["stop"] = generated.stop_probabilities[rows, frames] > 0
    columns["frame"] = first_frame + frame_stride * frames
    # A prediction that was never made is no number; null says so to every reader.
    hidden["task_loss"] = np.isnan(columns["task_loss"])
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


def _with_empty(
    result: GazeResult,
    columns: dict[str, NDArray[Any]],
    hidden: dict[str, NDArray[np.bool_]],
    rows: NDArray[np.int64],
    frames: NDArray[np.int64],
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
    """Adds a row for each tile of a frame without tokens, with the prediction that ended it before it began."""
    generated = result.generated
    first_slot = np.cumsum([0, *generated.num_gazing_each_frame[:-1]])[frames]
    added = {
        "frame": frames,
        "tile": rows,
        "task_loss": generated.task_loss_predictions[rows, first_slot],
    }
    count, tokens = len(rows), len(columns["frame"])
    joined = {
        name: np.concatenate([values, added.get(name, np.zeros(count)).astype(values.dtype)])
        for name, values in columns.items()
    }
    masks = {
        name: np.concatenate([hidden.get(name, np.zeros(tokens, np.bool_)), np.ones(count, np.bool_)])
        for name in _OF_A_TOKEN
    }
    return joined, masks
