"""Files that show a gaze: JSON, metrics, a video of input and mask, and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError, MissingExtraError
from autogaze_client.result import GazeResult, write_json
from autogaze_client.video import VideoReader
from autogaze_client.video_writer import VideoWriter
from autogaze_client.visualize import (
    contact_sheet,
    legend_strip,
    resize_image,
    scale_mask_image,
    side_by_side,
)

__all__ = ["ReportPaths", "check_report_extras", "write_report"]

_EXTRAS = {"av": "video", "PIL": "viz"}

_SHEET_FRAMES = 16
_SHEET_COLUMNS = 4
_SHEET_WIDTH = 1920
_VIDEO_WIDTH = 960
_GAP = 4


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report.

    Attributes:
        gaze: mode, scales, and the fixations of every frame.
        metrics: tokens a frame, gaze ratio, and milliseconds a stage.
        mask_video: the input and the mask, side by side.
        contact_sheet: the masks of up to 16 frames, evenly spaced.
    """

    gaze: Path
    metrics: Path
    mask_video: Path
    contact_sheet: Path


def check_report_extras() -> None:
    """Makes sure that a report can be written: call it before the work that the report is about.

    Raises:
        MissingExtraError: PyAV or Pillow is not installed.
    """
    for module, extra in _EXTRAS.items():
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError.for_extra("writing a report", extra, error) from error


def write_report(
    out_dir: str | Path,
    video_path: str | Path,
    result: GazeResult,
    stage_ms: Mapping[str, float],
    *,
    start_frame: int = 0,
    frame_stride: int = 1,
) -> ReportPaths:
    """Writes ``gaze.json``, ``metrics.json``, ``mask.mp4`` and ``contact_sheet.png``.

    Args:
        out_dir: a folder, made if missing; files of these names are replaced.
        video_path: the video that was gazed at.
        result: its gaze.
        stage_ms: milliseconds by stage, for the metrics.
        start_frame: the video's frame that is the result's first.
        frame_stride: of the gaze: every n-th frame was gazed at. What is written then plays at the same pace, with
            fewer frames a second.

    Raises:
        InvalidInputError: the result is of a video of another size.
        VideoDecodeError: the video cannot be read, or is shorter than the result.
        MissingExtraError: PyAV or Pillow is not installed.
    """
    check_report_extras()
    size = result.source_size
    reader = VideoReader(
        video_path, start_frame=start_frame, max_frames=size.frames, frame_stride=frame_stride
    )
    if (reader.width, reader.height) != (size.width, size.height):
        raise InvalidInputError(
            f"the result is of {size.width}x{size.height} frames, but {Path(reader.name).name} has "
            f"{reader.width}x{reader.height}; pass the video that was gazed at"
        )
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(
        gaze=folder / "gaze.json",
        metrics=folder / "metrics.json",
        mask_video=folder / "mask.mp4",
        contact_sheet=folder / "contact_sheet.png",
    )
    result.write_json(paths.gaze)
    write_json(paths.metrics, {**result.metrics(), "stage_ms": dict(stage_ms)})
    sheet = _write_mask_video(paths.mask_video, reader, result, reader.fps / frame_stride)
    _write_png(paths.contact_sheet, sheet)
    return paths


def _labels(result: GazeResult) -> list[tuple[int, str]]:
    grids, counts = np.unique(result.fixations[result.fixations[:, 5] > 0, 6].astype(int), return_counts=True)
    chosen = dict(zip(grids.tolist(), counts.tolist(), strict=True))
    total = max(sum(chosen.values()), 1)
    return [
        (
            layout.grid,
            f"{layout.grid}x{layout.grid} cells: {chosen.get(layout.grid, 0) / total:.0%} of tokens",
        )
        for layout in result.generated.scale_layouts
    ]


def _write_mask_video(
    path: Path, reader: VideoReader, result: GazeResult, fps: Fraction
) -> NDArray[np.uint8]:
    """Writes the video frame by frame; returns the contact sheet, made on the way."""
    frames = result.source_size.frames
    picked = set(np.linspace(0, frames - 1, min(frames, _SHEET_FRAMES)).round().astype(int).tolist())
    columns = min(_SHEET_COLUMNS, len(picked))
    thumbnail_width = max(_SHEET_WIDTH // columns - 4, 1)
    panel_width = min(reader.width, _VIDEO_WIDTH)
    labels = _labels(result)
    legend = legend_strip(2 * panel_width + _GAP, labels)
    thumbnails = []
    written = 0
    with VideoWriter(path, fps=fps) as writer:
        for index, (frame, fixations) in enumerate(zip(reader, result.trace.frames, strict=False)):
            # Cells are drawn after the picture is shrunk, so their borders stay crisp.
            panel = resize_image(frame, panel_width)
            panels = side_by_side(panel, scale_mask_image(panel, fixations), gap=_GAP)
            writer.write(np.concatenate([panels, legend]))
            if index in picked:
                thumbnails.append(scale_mask_image(resize_image(frame, thumbnail_width), fixations))
            written += 1
    if written < frames:
        raise InvalidInputError(
            f"the result has {frames} frames, but {Path(reader.name).name} only {written}; "
            "pass the video that was gazed at, with its start_frame and frame_stride"
        )
    sheet = contact_sheet(thumbnails, columns)
    return np.concatenate([sheet, legend_strip(sheet.shape[1], labels, height=36)])


def _write_png(path: Path, image: NDArray[np.uint8]) -> None:
    from PIL import Image

    Image.fromarray(image).save(path)
