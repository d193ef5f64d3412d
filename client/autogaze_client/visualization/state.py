"""Visualisation over time on the CPU, in RGBA bytes (spec: visualization §5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client.readout.grids import Points
from autogaze_client.visualization.cadence import Cadence
from autogaze_client.visualization.masks import FrameMask, rgba_image
from autogaze_client.visualization.mixing import WHITE, image_pixels, mix_bytes
from autogaze_client.visualization.modes import (
    AutoGazeMaskVisualizationMode,
    AutoGazeTensorInterframePath,
    AutoGazeVisualizationMode,
)
from autogaze_client.visualization.options import (
    DEFAULT_BLEND_ALPHA,
    DEFAULT_KEYFRAME_DURATION,
    AutoGazeRgbaVisualizationOptions,
)
from autogaze_client.visualization.results import (
    AutoGazeRgbaVisualizationBuffers,
    AutoGazeVisualization,
    AutoGazeVisualizationPanels,
    AutoGazeVisualizationPanelsView,
)

__all__ = ["AutoGazeVisualizationState", "visualize_fixations_rgba"]

Image = NDArray[np.uint8]
_Style = AutoGazeMaskVisualizationMode


@dataclass(frozen=True, eq=False)
class _Frame:
    """A drawn frame, before its mask panel."""

    source: Image
    mask: FrameMask
    output: Image
    updated: int


class AutoGazeVisualizationState:
    """Draws frame after frame: a mask panel and an output panel.

    In ``full-blend`` the output is the frame, tinted white where the cells are. In ``interframe`` it is a video
    that takes the cells' pixels from each frame and keeps the others, with a whole frame now and then.

    Args:
        mode: what the output shows.
        keyframe_duration: frames from one keyframe to the next; 0 = only the first.

    Raises:
        InvalidInputError: the duration is negative.

    Example:
        >>> state = AutoGazeVisualizationState(AutoGazeVisualizationMode.INTERFRAME)
        >>> left = FixationPoint.with_extent(0.25, 0.5, 0.5, 1.0, 1.0)
        >>> options = AutoGazeRgbaVisualizationOptions(width=2, height=1)
        >>> reds = []
        >>> for red in (10, 30):
        ...     frame = np.array([[[red, 0, 0, 255], [red + 10, 0, 0, 255]]], np.uint8)
        ...     reds.append(state.visualize_rgba_panels(frame, [left], options).output_rgba()[0, :, 0].tolist())
        >>> reds
        [[10, 20], [30, 20]]
    """

    def __init__(
        self,
        mode: AutoGazeVisualizationMode = AutoGazeVisualizationMode.FULL_BLEND,
        keyframe_duration: int = DEFAULT_KEYFRAME_DURATION,
    ) -> None:
        self._cadence = Cadence(AutoGazeVisualizationMode.parse(mode), keyframe_duration)
        self._previous: Image | None = None
        self._path: AutoGazeTensorInterframePath | None = None

    @property
    def mode(self) -> AutoGazeVisualizationMode:
        """What the output shows."""
        return self._cadence.mode

    @property
    def keyframe_duration(self) -> int:
        """Frames from one keyframe to the next; 0 = only the first."""
        return self._cadence.keyframe_duration

    @property
    def frame_index(self) -> int:
        """Frames drawn so far."""
        return self._cadence.frame_index

    @property
    def last_frame_was_keyframe(self) -> bool:
        """Whether the last frame was taken whole; False in full blend."""
        return self._cadence.last_frame_was_keyframe

    @property
    def last_interframe_path(self) -> AutoGazeTensorInterframePath | None:
        """How the last output was put together; None in full blend and before the first frame."""
        return self._path

    def configure(self, mode: AutoGazeVisualizationMode, keyframe_duration: int) -> None:
        """Changes the settings. Another mode starts anew; another duration counts on the running index.

        Raises:
            InvalidInputError: the duration is negative.
        """
        if self._cadence.configure(AutoGazeVisualizationMode.parse(mode), keyframe_duration):
            self._previous, self._path = None, None

    def reset(self) -> None:
        """Forgets every frame: the next is a keyframe."""
        self._cadence.reset()
        self._previous, self._path = None, None

    def visualize_rgba_panels(
        self, source: Any, points: Points, options: AutoGazeRgbaVisualizationOptions
    ) -> AutoGazeVisualizationPanels:
        """Draws the next frame.

        Args:
            source: uint8 RGBA ``[H, W, 4]``, or its bytes.
            points: its fixations: points, a ``FixationSet``, or an array ``[n, 6]`` or ``[n, 7]``.
            options: how.

        Returns:
            Read-only panels; the mask panel is drawn on first use, from the frame as it is now.

        Raises:
            InvalidInputError: the source is of another size, or a fixation is not finite. The state is then
                as before.
        """
        frame = self._advance(source, points, options, np.empty_like)
        frame.output.flags.writeable = False
        self._previous = frame.output
        kept = _panel_source(frame.source, frame.output, self.mode, options.mask_visualization_mode)
        return AutoGazeVisualizationPanels(
            lambda: _drawn_panel(frame.mask, kept, options),
            frame.output,
            frame.mask.coverage.pixel_count,
            frame.updated,
            frame.mask.stats,
        )

    def visualize_rgba(
        self, source: Any, points: Points, options: AutoGazeRgbaVisualizationOptions
    ) -> AutoGazeVisualization:
        """As ``visualize_rgba_panels``, with the three panels side by side."""
        return self.visualize_rgba_panels(source, points, options).into_side_by_side(source)

    def visualize_rgba_panels_into(
        self,
        source: Any,
        points: Points,
        options: AutoGazeRgbaVisualizationOptions,
        buffers: AutoGazeRgbaVisualizationBuffers,
    ) -> AutoGazeVisualizationPanelsView:
        """As ``visualize_rgba_panels``, into the caller's memory; both panels are drawn at once.

        Returns:
            Panels that lie in ``buffers``.
        """
        frame = self._advance(
            source, points, options, lambda like: buffers.resized("blend", like.shape[1], like.shape[0])
        )
        if self.mode is AutoGazeVisualizationMode.INTERFRAME:
            self._previous = frame.output.copy()
            self._previous.flags.writeable = False
        mask = buffers.resized("mask", options.width, options.height)
        frame.mask.panel(options.mask_visualization_mode, frame.source, options.blend_alpha, mask)
        return AutoGazeVisualizationPanelsView(
            mask, frame.output, frame.mask.coverage.pixel_count, frame.updated, frame.mask.stats
        )

    def _advance(
        self,
        source: Any,
        points: Points,
        options: AutoGazeRgbaVisualizationOptions,
        make: Callable[[Image], Image],
    ) -> _Frame:
        picture = rgba_image(source, options.width, options.height)
        mask = FrameMask.of(
            points, options.width, options.height, options.cell_scale, options.mask_geometry_mode
        )
        output = make(picture)
        updated = mask.coverage.pixel_count
        size = (options.width, options.height)
        if self.mode is AutoGazeVisualizationMode.FULL_BLEND:
            np.copyto(output, picture)
            mix_bytes(picture, WHITE, options.blend_alpha, mask.coverage, output)
            self._cadence.advance(size, keyframe=False)
            self._path = None
            return _Frame(picture, mask, output, updated)
        keyframe = self._cadence.is_keyframe(size) or self._previous is None
        if keyframe:
            np.copyto(output, picture)
            updated = options.width * options.height
            self._path = AutoGazeTensorInterframePath.KEYFRAME
        else:
            _merge(picture, self._previous, mask, output)
            self._path = options.policy.path(mask.coverage, len(mask.plan_rects), mask.plan_area)
        self._cadence.advance(size, keyframe)
        return _Frame(picture, mask, output, updated)


def visualize_fixations_rgba(
    source: Any,
    width: int,
    height: int,
    points: Points,
    cell_scale: float = 1.0,
    blend_alpha: float = DEFAULT_BLEND_ALPHA,
) -> AutoGazeVisualization:
    """One frame by itself: full blend, cells in the colours of their scales on black, native geometry.

    Args:
        source: uint8 RGBA ``[H, W, 4]``, or its bytes.
        width: of the frame, in pixels.
        height: of the frame, in pixels.
        points: its fixations.
        cell_scale: grows the cells about their centres.
        blend_alpha: share of white in the output's cells, clamped to 0..1.

    Raises:
        InvalidInputError: the source is of another size, or a value is not finite.
    """
    options = AutoGazeRgbaVisualizationOptions(
        width, height, cell_scale, blend_alpha, AutoGazeMaskVisualizationMode.OVERLAY
    )
    return AutoGazeVisualizationState().visualize_rgba(source, points, options)


def _merge(source: Image, previous: Any, mask: FrameMask, out: Image) -> None:
    """The source where the mask covers, else the previous output, without a branch a pixel.

    Rows between two edges of the coverage share one row of it, so that the time is the same whatever is
    covered.
    """
    coverage = mask.coverage
    new, old, merged = image_pixels(source), image_pixels(previous), image_pixels(out)
    chosen = -np.repeat(coverage.cells, np.diff(coverage.columns), axis=1).astype(np.int32)
    for top, bottom, row in zip(coverage.rows[:-1], coverage.rows[1:], chosen.view(np.uint32), strict=True):
        band = merged[top:bottom]
        np.bitwise_xor(new[top:bottom], old[top:bottom], out=band)
        np.bitwise_and(band, row, out=band)
        np.bitwise_xor(band, old[top:bottom], out=band)


def _panel_source(source: Image, output: Image, mode: AutoGazeVisualizationMode, style: _Style) -> Image:
    """What the mask panel will be drawn from later: the caller may fill its frame anew before that."""
    if style in (_Style.OVERLAY, _Style.SCALE_ROWS) or _is_frozen(source):
        return source
    if mode is AutoGazeVisualizationMode.INTERFRAME and style is _Style.IMAGE_MASK_ONLY:
        # Only covered pixels are looked at, and there the output is the frame.
        return output
    return source.copy()


def _drawn_panel(mask: FrameMask, source: Image, options: AutoGazeRgbaVisualizationOptions) -> Image:
    out = np.empty_like(source)
    mask.panel(options.mask_visualization_mode, source, options.blend_alpha, out)
    return out


def _is_frozen(image: Image) -> bool:
    """Whether nobody can change an array: neither it nor what it is a view of is writable."""
    owner: Any = image
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    return owner is None or isinstance(owner, bytes)
