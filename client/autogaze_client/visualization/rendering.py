"""A gazed-at video as panels, in files: MP4, GIF and PNG, and what was measured on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError, MissingExtraError
from autogaze_client._progress import progress_bar
from autogaze_client.result import GazeResult
from autogaze_client.video import VideoReader
from autogaze_client.video_writer import VideoWriter
from autogaze_client.visualization.modes import (
    AutoGazeMaskGeometryMode,
    AutoGazeMaskVisualizationMode,
    AutoGazeVisualizationMode,
)
from autogaze_client.visualization.options import (
    DEFAULT_BLEND_ALPHA,
    DEFAULT_KEYFRAME_DURATION,
    AutoGazeRgbaVisualizationOptions,
)
from autogaze_client.visualization.results import AutoGazeVisualizationPanels
from autogaze_client.visualization.state import AutoGazeVisualizationState
from autogaze_client.visualize import resize_image

__all__ = ["Panel", "PanelFormat", "PanelOptions", "PanelsReport", "write_panels"]

Image = NDArray[np.uint8]

_BACKGROUND = 18
_GAP = 4
_VIDEO_WIDTH = 3 * 1280
_GIF_WIDTH = 960
_PNG_WIDTH = 1920
_PNG_ROWS = 4


class Panel(str, Enum):
    """A column of the picture."""

    INPUT = "input"
    MASK = "mask"
    OUTPUT = "output"


class PanelFormat(str, Enum):
    """A file: all frames as a video or an animation, or four of them in a picture."""

    MP4 = "mp4"
    GIF = "gif"
    PNG = "png"


@dataclass(frozen=True)
class PanelOptions:
    """What to draw.

    Attributes:
        panels: columns, left to right.
        formats: files to write.
        style: of the mask panel.
        geometry: which pixels cells stand for.
        view: what the output shows.
        keyframe_duration: frames from one keyframe to the next; 0 = only the first.
        blend_alpha: share of a colour where it is mixed in.

    Raises:
        InvalidInputError: no panel, no format, or a number that breaks its rule.
    """

    panels: tuple[Panel, ...] = tuple(Panel)
    formats: tuple[PanelFormat, ...] = (PanelFormat.MP4,)
    style: AutoGazeMaskVisualizationMode = AutoGazeMaskVisualizationMode.IMAGE_MASK_ONLY
    geometry: AutoGazeMaskGeometryMode = AutoGazeMaskGeometryMode.NATIVE
    view: AutoGazeVisualizationMode = AutoGazeVisualizationMode.INTERFRAME
    keyframe_duration: int = DEFAULT_KEYFRAME_DURATION
    blend_alpha: float = DEFAULT_BLEND_ALPHA

    def __post_init__(self) -> None:
        for name, chosen in (("panels", self.panels), ("formats", self.formats)):
            if not chosen:
                raise InvalidInputError(f"there are no {name}; pass at least one")
        if self.keyframe_duration < 0:
            raise InvalidInputError(
                f"keyframe_duration is {self.keyframe_duration}; it must be 0 (only the first) or more frames"
            )
        if not math.isfinite(self.blend_alpha):
            raise InvalidInputError(f"blend_alpha is {self.blend_alpha}; it must be finite")


@dataclass(frozen=True)
class PanelsReport:
    """What was written, and measured.

    Attributes:
        paths: the files.
        metrics: ratios, PSNR and frames a second of each stage, ready for JSON.
    """

    paths: tuple[Path, ...]
    metrics: dict[str, Any]


class _Measurements:
    def __init__(self) -> None:
        self.mask: list[float] = []
        self.update: list[float] = []
        self.psnr: list[float | None] = []
        self.keyframes = 0
        self.ms = {"read": 0.0, "visualise": 0.0, "encode": 0.0}

    def to_dict(self, options: PanelOptions) -> dict[str, Any]:
        finite = [value for value in self.psnr if value is not None]
        frames = len(self.mask)
        return {
            "style": options.style.value,
            "geometry": options.geometry.value,
            "view": options.view.value,
            "keyframe_duration": options.keyframe_duration,
            "keyframes": self.keyframes,
            "mask_ratio": float(np.mean(self.mask)),
            "update_ratio": float(np.mean(self.update)),
            "psnr_db": float(np.mean(finite)) if finite else None,
            "mask_ratio_per_frame": self.mask,
            "update_ratio_per_frame": self.update,
            "psnr_db_per_frame": self.psnr,
            "fps": {stage: 1e3 * frames / ms if ms > 0 else None for stage, ms in self.ms.items()},
        }


def write_panels(
    out_dir: str | Path,
    video_path: str | Path,
    result: GazeResult,
    options: PanelOptions,
    *,
    start_frame: int = 0,
    frame_stride: int = 1,
    progress: bool = False,
) -> PanelsReport:
    """Writes ``panels.mp4``, ``panels.gif`` and ``panels.png``, as the options ask.

    Ratios and PSNR are those of frames of the video's own size, even where a file shows them smaller. PSNR is
    left out of keyframes, and None where the output equals the input.

    Args:
        out_dir: a folder, made if missing; files of these names are replaced.
        video_path: the video that was gazed at.
        result: its gaze.
        options: what to draw.
        start_frame: the video's frame that is the result's first.
        frame_stride: of the gaze: every n-th frame was gazed at. What is written then plays at the same pace, with
            fewer frames a second.
        progress: draw a progress bar, where rich is installed.

    Raises:
        InvalidInputError: the result is of a video of another size or length.
        VideoDecodeError: the video cannot be read.
        MissingExtraError: PyAV or Pillow is not installed.
    """
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
    measured = _Measurements()
    paths = {kind: folder / f"panels.{kind.value}" for kind in options.formats}
    picked = set(np.linspace(0, size.frames - 1, min(size.frames, _PNG_ROWS)).round().astype(int).tolist())
    small: list[Image] = []
    rows: list[Image] = []
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar(progress, "panels", size.frames))
        writer = None
        if PanelFormat.MP4 in paths:
            writer = stack.enter_context(VideoWriter(paths[PanelFormat.MP4], fps=reader.fps / frame_stride))
        for index, picture in enumerate(_pictures(reader, result, options, measured)):
            started = time.perf_counter()
            if writer is not None:
                writer.write(_at_most(picture, _VIDEO_WIDTH))
            if PanelFormat.GIF in paths:
                small.append(_at_most(picture, _GIF_WIDTH))
            if PanelFormat.PNG in paths and index in picked:
                rows.append(_at_most(picture, _PNG_WIDTH))
            measured.ms["encode"] += (time.perf_counter() - started) * 1e3
            advance(1)
    if len(measured.mask) < size.frames:
        raise InvalidInputError(
            f"the result has {size.frames} frames, but {Path(reader.name).name} only {len(measured.mask)}; "
            "pass the video that was gazed at, with its start_frame and frame_stride"
        )
    if PanelFormat.GIF in paths:
        _write_gif(paths[PanelFormat.GIF], small, float(reader.fps / frame_stride))
    if PanelFormat.PNG in paths:
        gap = np.full((_GAP, rows[0].shape[1], 3), _BACKGROUND, np.uint8)
        stacked = [part for row in rows for part in (row, gap)][:-1]
        _pillow("writing a PNG").fromarray(np.concatenate(stacked)).save(paths[PanelFormat.PNG])
    return PanelsReport(tuple(paths.values()), measured.to_dict(options))


def _pictures(
    reader: VideoReader, result: GazeResult, options: PanelOptions, measured: _Measurements
) -> Iterator[Image]:
    """The chosen panels of every frame in one picture, uint8 RGB."""
    state = AutoGazeVisualizationState(options.view, options.keyframe_duration)
    drawing = AutoGazeRgbaVisualizationOptions(
        reader.width,
        reader.height,
        blend_alpha=options.blend_alpha,
        mask_visualization_mode=options.style,
        mask_geometry_mode=options.geometry,
    )
    clock = time.perf_counter()
    for frame, fixations in zip(reader, result.trace.frames, strict=False):
        measured.ms["read"] += (time.perf_counter() - clock) * 1e3
        clock = time.perf_counter()
        rgba = np.empty((*frame.shape[:2], 4), np.uint8)
        rgba[..., :3], rgba[..., 3] = frame, 255
        panels = state.visualize_rgba_panels(rgba, fixations, drawing)
        picture = _side_by_side([_panel(panel, frame, panels) for panel in options.panels])
        measured.mask.append(panels.mask_ratio())
        measured.update.append(panels.update_ratio())
        measured.keyframes += state.last_frame_was_keyframe
        psnr = math.inf if state.last_frame_was_keyframe else panels.output_psnr_db(rgba)
        measured.psnr.append(psnr if math.isfinite(psnr) else None)
        measured.ms["visualise"] += (time.perf_counter() - clock) * 1e3
        yield picture
        clock = time.perf_counter()


def _panel(panel: Panel, frame: Image, panels: AutoGazeVisualizationPanels) -> Image:
    if panel is Panel.INPUT:
        return frame
    return _on_background(panels.mask_rgba) if panel is Panel.MASK else panels.output_rgba()[..., :3]


def _on_background(rgba: Image) -> Image:
    return np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(_BACKGROUND))


def _side_by_side(panels: Sequence[Image]) -> Image:
    gap = np.full((panels[0].shape[0], _GAP, 3), _BACKGROUND, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def _at_most(picture: Image, width: int) -> Image:
    return picture if picture.shape[1] <= width else resize_image(np.ascontiguousarray(picture), width)


def _pillow(feature: str) -> Any:
    try:
        from PIL import Image as PillowImage
    except ImportError as error:
        raise MissingExtraError.for_extra(feature, "viz", error) from error
    return PillowImage


def _write_gif(path: Path, pictures: Sequence[Image], fps: float) -> None:
    pillow = _pillow("writing a GIF")
    first, *rest = [pillow.fromarray(picture) for picture in pictures]
    # Players take frames shorter than 20 ms for ten times as long.
    first.save(path, save_all=True, append_images=rest, duration=max(round(1000 / fps), 20), loop=0)
