"""A picture to judge a checkpoint by: chosen cells beside what they show, frame after frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from autogaze_backend.model import GazeModel
from autogaze_backend.preprocessing import resize_to_input
from autogaze_client._errors import MissingExtraError
from autogaze_client.video import VideoReader
from autogaze_client.visualize import (
    contact_sheet,
    legend_strip,
    resize_image,
    scale_mask_image,
    side_by_side,
)
from numpy.typing import NDArray

from autogaze_export.evaluation.reconstruction import CellTables, Floats, FrameState, blank_canvas
from autogaze_export.evaluation.runs import run_model

_WIDTH, _COLUMNS = 480, 2

Image = NDArray[np.uint8]


def write_sheet(
    path: str | Path,
    model: GazeModel,
    video: str | Path,
    *,
    requirement: float,
    start: int = 0,
    frames: int = 16,
    shown: int = 8,
) -> Path:
    """Writes a PNG with two pictures a frame: the cells of this frame, and the canvas after it.

    Args:
        path: of the PNG.
        model: the bundle, loaded.
        video: any file that PyAV reads.
        requirement: the task-loss requirement.
        start: first frame of the clip.
        frames: of the clip.
        shown: frames of it in the picture, evenly spaced, the first and the last included.

    Raises:
        MissingExtraError: Pillow is not installed.
        VideoDecodeError: the video cannot be read.
    """
    try:
        from PIL import Image as PillowImage
    except ImportError as error:
        raise MissingExtraError.for_extra("Drawing a contact sheet", "viz", error) from error
    clip = np.stack(list(VideoReader(video, start_frame=start, max_frames=frames)))
    inputs = resize_to_input(model.preprocess(clip), model.spec.input_size)
    tables = CellTables(model.spec)
    run = run_model(model, tables, inputs, requirement=requirement)
    picked = np.linspace(0, len(clip) - 1, min(shown, len(clip))).round().astype(int)
    canvas = blank_canvas(model.spec)
    pictures = []
    for time, (frame, ids) in enumerate(zip(inputs, run.ids, strict=True)):
        state = FrameState(tables, frame, canvas)
        for token in ids:
            state.show(int(token))
        canvas = state.canvas()
        if time not in picked:
            continue
        height = round(_WIDTH * clip.shape[1] / clip.shape[2])
        seen = PillowImage.fromarray(_pixels(model, canvas)).resize((_WIDTH, height))
        cells = scale_mask_image(clip[time], run.trace.frames[time])
        label = legend_strip(
            2 * _WIDTH + 4, [(2, f"frame {start + time}: {len(ids)} tokens, loss {state.loss:.2f}")]
        )
        pair = side_by_side(resize_image(cells, _WIDTH)[:height], np.asarray(seen), gap=4)
        pictures.append(np.concatenate((label[:, : pair.shape[1]], pair)))
    sheet = contact_sheet(pictures, _COLUMNS)
    names = [(grid, f"{grid}x{grid} cells") for grid in tables.grids]
    sheet = np.concatenate((sheet, legend_strip(sheet.shape[1], names)))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(sheet).save(target, optimize=True)
    return target


def _pixels(model: GazeModel, canvas: Floats) -> Image:
    """A normalised picture ``[3, side, side]`` as uint8 ``[side, side, 3]``."""
    config = model.bundle.preprocessing
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (config.image_mean, config.image_std))
    values = (canvas * std + mean + 1) * 127.5
    pixels: Image = values.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels
