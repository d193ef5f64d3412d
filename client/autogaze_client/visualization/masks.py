"""The mask panel, and the functions that draw one without a state (spec: visualization §4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError
from autogaze_client.device_mask import AutoGazeMaskPlanStats
from autogaze_client.readout.grids import Points
from autogaze_client.visualization.cells import PixelCells, active_rows, pixel_cells
from autogaze_client.visualization.coverage import Coverage
from autogaze_client.visualization.drawing import draw_cells, draw_scale_rows, drawing_order
from autogaze_client.visualization.mixing import mix_bytes
from autogaze_client.visualization.modes import AutoGazeMaskGeometryMode, AutoGazeMaskVisualizationMode
from autogaze_client.visualization.plans import merged_rects

__all__ = [
    "FrameMask",
    "fixation_effective_scale_mask_rgba",
    "fixation_effective_scale_mask_rgba_into",
    "fixation_image_mask_only_rgba",
    "fixation_image_mask_only_rgba_into",
    "fixation_image_overlay_mask_rgba",
    "fixation_image_overlay_mask_rgba_into",
    "fixation_mask_rgba",
    "fixation_mask_rgba_into",
    "fixation_scale_mask_rgba",
    "fixation_scale_mask_rgba_into",
    "fixation_scale_rows_mask_rgba",
    "fixation_scale_rows_mask_rgba_into",
    "rgba_image",
]

Image = NDArray[np.uint8]
_Geometry = AutoGazeMaskGeometryMode
_Style = AutoGazeMaskVisualizationMode


@dataclass(frozen=True, eq=False)
class FrameMask:
    """The cells of one frame and what they cover; pictures are drawn when asked for.

    Attributes:
        cells: as pixels, under the geometry.
        coverage: their union; panel, update, ratio and statistics come from it.
        geometry: the rule.
        cell_scale: grows the cells about their centres.
    """

    cells: PixelCells
    coverage: Coverage
    geometry: AutoGazeMaskGeometryMode
    cell_scale: float

    @classmethod
    def of(
        cls, points: Points, width: int, height: int, cell_scale: float, geometry: AutoGazeMaskGeometryMode
    ) -> FrameMask:
        """Resolves the fixations of a frame.

        Raises:
            InvalidInputError: a value is not finite.
        """
        rows = active_rows(points)
        cells = pixel_cells(rows, width, height, cell_scale, geometry)
        return cls(cells, Coverage.of(cells.rects, width, height), geometry, cell_scale)

    @cached_property
    def plan_rects(self) -> NDArray[np.int64]:
        """Rectangles of the update plan, int64 ``[n, 4]``."""
        return merged_rects(self.cells.rects)

    @property
    def plan_area(self) -> int:
        """Pixels of the plan's rectangles, overlaps counted for each."""
        x0, x1, y0, y1 = self.plan_rects.T
        return int(((x1 - x0) * (y1 - y0)).sum())

    @cached_property
    def stats(self) -> AutoGazeMaskPlanStats:
        """Its size in numbers."""
        coverage = self.coverage
        return AutoGazeMaskPlanStats(len(self.plan_rects), coverage.row_span_count, coverage.pixel_count)

    def colours(self, canvas: Image, style: AutoGazeMaskVisualizationMode) -> None:
        """Draws the cells in the colours of their scales over ``canvas``, uint8 RGBA, contiguous."""
        if style is _Style.SCALE_ROWS and self.geometry is not _Geometry.EFFECTIVE:
            draw_scale_rows(canvas, self.cells, self.cell_scale)
        else:
            draw_cells(canvas, drawing_order(self.cells, self.geometry))

    def panel(
        self, style: AutoGazeMaskVisualizationMode, source: Image | None, alpha: float, out: Image
    ) -> None:
        """Draws the mask panel into ``out``, uint8 RGBA ``[H, W, 4]``, contiguous."""
        blended = style in (_Style.IMAGE_OVERLAY, _Style.IMAGE_MASK_ONLY)
        if not blended or source is None:
            out[:] = (0, 0, 0, 255)
            self.colours(out, style)
            return
        canvas = np.zeros_like(out)
        self.colours(canvas, style)
        out[:] = source if style is _Style.IMAGE_OVERLAY else 0
        mix_bytes(source, canvas, alpha, self.coverage, out)


def rgba_image(source: Any, width: int, height: int, name: str = "source") -> Image:
    """A picture as uint8 ``[H, W, 4]``, contiguous; the memory is shared where that is possible.

    Raises:
        InvalidInputError: it does not hold W·H·4 bytes.
    """
    values = np.frombuffer(source, np.uint8) if isinstance(source, (bytes, bytearray, memoryview)) else source
    values = np.asarray(values)
    shape = (height, width, 4)
    if values.dtype != np.uint8 or (values.shape != shape and values.shape != (height * width * 4,)):
        raise InvalidInputError(
            f"{name} is {values.dtype} {list(values.shape)}; it must be uint8 RGBA [{height}, {width}, 4], "
            f"{width * height * 4} bytes"
        )
    return np.ascontiguousarray(values.reshape(shape))


def fixation_scale_mask_rgba(points: Points, width: int, height: int, cell_scale: float = 1.0) -> Image:
    """Native cells in the colours of their scales on black, uint8 RGBA ``[H, W, 4]``; a side of 0 counts as 1.

    Args:
        points: fixations; those whose confidence is not above 0 are left out.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        cell_scale: grows the cells about their centres.

    Raises:
        InvalidInputError: a value is not finite.
    """
    return _draw(points, width, height, cell_scale, _Style.OVERLAY, _Geometry.NATIVE)


def fixation_scale_rows_mask_rgba(points: Points, width: int, height: int, cell_scale: float = 1.0) -> Image:
    """As ``fixation_scale_mask_rgba``, one band for each scale that has cells, coarsest on top."""
    return _draw(points, width, height, cell_scale, _Style.SCALE_ROWS, _Geometry.NATIVE)


def fixation_effective_scale_mask_rgba(
    points: Points, width: int, height: int, cell_scale: float = 1.0
) -> Image:
    """As ``fixation_scale_mask_rgba``, of effective cells."""
    return _draw(points, width, height, cell_scale, _Style.OVERLAY, _Geometry.EFFECTIVE)


def fixation_mask_rgba(
    points: Points,
    width: int,
    height: int,
    cell_scale: float = 1.0,
    mode: AutoGazeMaskVisualizationMode = _Style.OVERLAY,
) -> Image:
    """Scale rows for that mode, else ``fixation_scale_mask_rgba``: there is no source to mix with."""
    style = _Style.SCALE_ROWS if mode is _Style.SCALE_ROWS else _Style.OVERLAY
    return _draw(points, width, height, cell_scale, style, _Geometry.NATIVE)


def fixation_image_overlay_mask_rgba(
    source: Any, points: Points, width: int, height: int, cell_scale: float = 1.0, blend_alpha: float = 0.38
) -> Image:
    """The source with native cells mixed into it in the colours of their scales.

    Args:
        source: uint8 RGBA ``[H, W, 4]``, or its bytes.
        points: fixations; those whose confidence is not above 0 are left out.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        cell_scale: grows the cells about their centres.
        blend_alpha: share of the colour, clamped to 0..1.

    Raises:
        InvalidInputError: the source is of another size, a side is below 1, or a value is not finite.
    """
    return _blend(source, points, width, height, cell_scale, blend_alpha, _Style.IMAGE_OVERLAY)


def fixation_image_mask_only_rgba(
    source: Any, points: Points, width: int, height: int, cell_scale: float = 1.0, blend_alpha: float = 0.38
) -> Image:
    """As ``fixation_image_overlay_mask_rgba``; pixels that no cell covers are (0, 0, 0, 0)."""
    return _blend(source, points, width, height, cell_scale, blend_alpha, _Style.IMAGE_MASK_ONLY)


def fixation_scale_mask_rgba_into(
    points: Points, width: int, height: int, cell_scale: float, out: bytearray
) -> None:
    """``fixation_scale_mask_rgba`` into a buffer, which is resized to W·H·4 bytes."""
    _fill(out, fixation_scale_mask_rgba(points, width, height, cell_scale))


def fixation_scale_rows_mask_rgba_into(
    points: Points, width: int, height: int, cell_scale: float, out: bytearray
) -> None:
    """``fixation_scale_rows_mask_rgba`` into a buffer, which is resized to W·H·4 bytes."""
    _fill(out, fixation_scale_rows_mask_rgba(points, width, height, cell_scale))


def fixation_effective_scale_mask_rgba_into(
    points: Points, width: int, height: int, cell_scale: float, out: bytearray
) -> None:
    """``fixation_effective_scale_mask_rgba`` into a buffer, which is resized to W·H·4 bytes."""
    _fill(out, fixation_effective_scale_mask_rgba(points, width, height, cell_scale))


def fixation_mask_rgba_into(
    points: Points,
    width: int,
    height: int,
    cell_scale: float,
    mode: AutoGazeMaskVisualizationMode,
    out: bytearray,
) -> None:
    """``fixation_mask_rgba`` into a buffer, which is resized to W·H·4 bytes."""
    _fill(out, fixation_mask_rgba(points, width, height, cell_scale, mode))


def fixation_image_overlay_mask_rgba_into(
    source: Any,
    points: Points,
    width: int,
    height: int,
    cell_scale: float,
    blend_alpha: float,
    out: bytearray,
) -> None:
    """``fixation_image_overlay_mask_rgba`` into a buffer, which is resized to W·H·4 bytes."""
    _fill(out, fixation_image_overlay_mask_rgba(source, points, width, height, cell_scale, blend_alpha))


def fixation_image_mask_only_rgba_into(
    source: Any,
    points: Points,
    width: int,
    height: int,
    cell_scale: float,
    blend_alpha: float,
    out: bytearray,
) -> None:
    """``fixation_image_mask_only_rgba`` into a buffer, which is resized to W·H·4 bytes."""
    _fill(out, fixation_image_mask_only_rgba(source, points, width, height, cell_scale, blend_alpha))


def _draw(
    points: Points, width: int, height: int, cell_scale: float, style: _Style, geometry: _Geometry
) -> Image:
    width, height = max(width, 1), max(height, 1)
    out = np.empty((height, width, 4), np.uint8)
    FrameMask.of(points, width, height, cell_scale, geometry).panel(style, None, 0.0, out)
    return out


def _blend(
    source: Any,
    points: Points,
    width: int,
    height: int,
    cell_scale: float,
    blend_alpha: float,
    style: _Style,
) -> Image:
    if width < 1 or height < 1:
        raise InvalidInputError(f"the picture is {width}x{height} pixels; both sides must be at least 1")
    if not np.isfinite(blend_alpha):
        raise InvalidInputError(f"blend_alpha is {blend_alpha}; it must be finite (it is clamped to 0..1)")
    picture = rgba_image(source, width, height)
    out = np.empty_like(picture)
    FrameMask.of(points, width, height, cell_scale, _Geometry.NATIVE).panel(style, picture, blend_alpha, out)
    return out


def _fill(out: bytearray, image: Image) -> None:
    out[:] = image.tobytes()
