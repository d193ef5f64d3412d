"""Visualisation over time on the device of the frames (spec: visualization §6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autogaze_client._arrays import Array, NumpyLibrary, is_device_array, library_of
from autogaze_client._errors import InvalidInputError
from autogaze_client.device_mask import AutoGazeDeviceMask, AutoGazeMaskPlanStats
from autogaze_client.layouts import AutoGazeScaleTokenLayout
from autogaze_client.readout.grids import Points
from autogaze_client.visualization.cadence import Cadence
from autogaze_client.visualization.device_cells import device_token_cells
from autogaze_client.visualization.masks import FrameMask
from autogaze_client.visualization.mixing import WHITE, mix_levels, unit_levels
from autogaze_client.visualization.modes import (
    AutoGazeMaskVisualizationMode,
    AutoGazeTensorInterframePath,
    AutoGazeVisualizationMode,
)
from autogaze_client.visualization.options import (
    DEFAULT_KEYFRAME_DURATION,
    AutoGazeTensorVisualizationOptions,
)
from autogaze_client.visualization.tensor_results import (
    AutoGazeTensorVisualization,
    AutoGazeTensorVisualizationPanels,
)

__all__ = ["AutoGazeTensorVisualizationState", "normalized_rgb_clip_to_unit_rgba_tensor"]

_Style = AutoGazeMaskVisualizationMode
_Path = AutoGazeTensorInterframePath

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def normalized_rgb_clip_to_unit_rgba_tensor(frame: Array) -> Array:
    """A normalised frame as RGBA in 0..1: ``(v · std + mean + 1) / 2``, clamped; alpha 1.

    Args:
        frame: floating ``[1, 1, 3, H, W]``, normalised as upstream's processor does.

    Returns:
        float32 ``[H, W, 4]``, of the frame's library and device.

    Raises:
        InvalidInputError: another shape.
    """
    library = library_of(frame=frame)
    shape = tuple(int(size) for size in frame.shape)
    if len(shape) != 5 or shape[:3] != (1, 1, 3) or 0 in shape:
        raise InvalidInputError(f"the frame has shape {list(shape)}; it must be [1, 1, 3, H, W], one frame")
    values = library.float32(frame)[0, 0]
    planes = [
        library.clip((values[channel] * std + mean + 1.0) / 2.0, 0.0, 1.0)
        for channel, (mean, std) in enumerate(zip(_MEAN, _STD, strict=True))
    ]
    return library.stack([*planes, planes[0] * 0 + 1.0], axis=2)


class AutoGazeTensorVisualizationState:
    """``AutoGazeVisualizationState`` for torch and CuPy (and numpy) frames: nothing is copied to the host.

    Converted to bytes, its panels are those of the CPU state. Cells come from the host and only the small grid
    of their edges travels, or from the device (``…_device_tokens_panels``, ``…_device_mask_panels``).

    Args:
        mode: what the output shows.
        keyframe_duration: frames from one keyframe to the next; 0 = only the first.

    Raises:
        InvalidInputError: the duration is negative.

    Example:
        >>> state = AutoGazeTensorVisualizationState(AutoGazeVisualizationMode.INTERFRAME)
        >>> panels = state.visualize_normalized_rgb_clip_panels(
        ...     np.zeros((1, 1, 3, 4, 4), np.float32), [], AutoGazeTensorVisualizationOptions()
        ... )
        >>> panels.update_ratio(), str(state.last_interframe_path)
        (1.0, 'keyframe')
    """

    def __init__(
        self,
        mode: AutoGazeVisualizationMode = AutoGazeVisualizationMode.FULL_BLEND,
        keyframe_duration: int = DEFAULT_KEYFRAME_DURATION,
    ) -> None:
        self._cadence = Cadence(AutoGazeVisualizationMode.parse(mode), keyframe_duration)
        self._forget()

    def _forget(self) -> None:
        self._previous: Array = None
        self._path: AutoGazeTensorInterframePath | None = None
        self._stats: Callable[[], AutoGazeMaskPlanStats] | None = None

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

    @property
    def last_mask_plan_stats(self) -> AutoGazeMaskPlanStats | None:
        """The last frame's cells in numbers; None before the first. Of device tokens, this waits for the device."""
        return None if self._stats is None else self._stats()

    def configure(self, mode: AutoGazeVisualizationMode, keyframe_duration: int) -> None:
        """Changes the settings. Another mode starts anew; another duration counts on the running index.

        Raises:
            InvalidInputError: the duration is negative.
        """
        if self._cadence.configure(AutoGazeVisualizationMode.parse(mode), keyframe_duration):
            self._forget()

    def reset(self) -> None:
        """Forgets every frame: the next is a keyframe."""
        self._cadence.reset()
        self._forget()

    def visualize_normalized_rgb_clip_panels(
        self, frame: Array, points: Points, options: AutoGazeTensorVisualizationOptions
    ) -> AutoGazeTensorVisualizationPanels:
        """Draws the next frame.

        Args:
            frame: floating ``[1, 1, 3, H, W]``, normalised as upstream's processor does.
            points: its fixations, on the host.
            options: how.

        Returns:
            Panels on the frame's device; the mask panel is drawn on first use.

        Raises:
            InvalidInputError: a frame of another shape, or a fixation that is not finite.
        """
        unit = normalized_rgb_clip_to_unit_rgba_tensor(frame)
        library, (height, width) = library_of(unit=unit), unit.shape[:2]
        if is_device_array(points):
            raise InvalidInputError(
                "points are on a device; pass host points, or use the device tokens or mask"
            )
        mask = FrameMask.of(points, width, height, options.cell_scale, options.mask_geometry_mode)
        coverage = mask.coverage
        path = options.policy.path(coverage, len(mask.plan_rects), mask.plan_area)
        covered = coverage.mask_on(library)

        def colours() -> Array:
            canvas = np.zeros((height, width, 4), np.uint8)
            mask.colours(canvas, options.mask_visualization_mode)
            return library.float32(library.asarray(canvas[..., :3]))

        def merge(previous: Array) -> Array:
            if path is not _Path.SPARSE_RECTS:
                return library.xp.where(covered[:, :, None], unit, previous)
            result = previous + 0.0
            for x0, x1, y0, y1 in mask.plan_rects.tolist():
                result[y0:y1, x0:x1] = unit[y0:y1, x0:x1]
            return result

        self._stats = lambda: mask.stats
        return self._draw(library, unit, options, covered, colours, lambda: coverage.pixel_count, path, merge)

    def visualize_normalized_rgb_clip(
        self, frame: Array, points: Points, options: AutoGazeTensorVisualizationOptions
    ) -> AutoGazeTensorVisualization:
        """As ``visualize_normalized_rgb_clip_panels``, the panels side by side."""
        return self.visualize_normalized_rgb_clip_panels(frame, points, options).into_side_by_side()

    def visualize_normalized_rgb_clip_device_tokens_panels(
        self,
        frame: Array,
        tokens: Array,
        layouts: Sequence[AutoGazeScaleTokenLayout],
        options: AutoGazeTensorVisualizationOptions,
    ) -> AutoGazeTensorVisualizationPanels:
        """Draws the next frame from token ids that stay on their device; nothing waits for it.

        Cells have their exact pixels and the colours of their scales, fine ones on top, without borders.
        The options' cell scale and geometry do not apply.

        Args:
            frame: as ``visualize_normalized_rgb_clip_panels``.
            tokens: integers ``[n]`` or ``[1, n]`` on the frame's device; ids outside 0..N−1 are padding.
            layouts: the scales, in id order.
            options: how.

        Raises:
            InvalidInputError: a shape is wrong, or the tokens are on another device.
        """
        library_of(frame=frame, tokens=tokens)
        unit = normalized_rgb_clip_to_unit_rgba_tensor(frame)
        library, (height, width) = library_of(unit=unit), unit.shape[:2]
        covered, colours = device_token_cells(tokens, layouts, width, height)

        def stats() -> AutoGazeMaskPlanStats:
            runs = int(covered[:, 0].sum()) + int((covered[:, 1:] & ~covered[:, :-1]).sum())
            known = (tokens >= 0) & (tokens < sum(layout.token_count for layout in layouts))
            return AutoGazeMaskPlanStats(int(known.sum()), runs, int(covered.sum()))

        self._stats = stats
        return self._draw(
            library,
            unit,
            options,
            covered,
            lambda: colours,
            lambda: int(covered.sum()),
            _Path.FULL_FRAME,
            lambda previous: library.xp.where(covered[:, :, None], unit, previous),
        )

    def visualize_normalized_rgb_clip_device_mask_panels(
        self, frame: Array, mask: AutoGazeDeviceMask, options: AutoGazeTensorVisualizationOptions
    ) -> AutoGazeTensorVisualizationPanels:
        """Draws the next frame from a mask that stays on its device; values between 0 and 1 mix.

        A mask has no scales, so its cells are white. The options' cell scale and geometry do not apply.

        Args:
            frame: as ``visualize_normalized_rgb_clip_panels``.
            mask: alpha ``[H, W, 1]`` on the frame's device.
            options: how.

        Raises:
            InvalidInputError: a shape is wrong, or the mask is on another device.
        """
        library = library_of(frame=frame, mask=mask.alpha)
        unit = normalized_rgb_clip_to_unit_rgba_tensor(frame)
        height, width = (int(size) for size in unit.shape[:2])
        if tuple(mask.alpha.shape) != (height, width, 1):
            raise InvalidInputError(
                f"the mask has shape {list(mask.alpha.shape)}; it must be [{height}, {width}, 1]"
            )
        alpha = library.clip(library.float32(mask.alpha), 0.0, 1.0)
        count = min(mask.stats.pixel_count, width * height)
        self._stats = lambda: mask.stats
        white = library.float32(library.asarray(np.array(WHITE, np.float32)))
        levels = unit_levels(library, unit[..., :3])

        def mixed() -> Array:
            tinted = mix_levels(library, levels, white, options.blend_alpha)
            return _with_alpha(library, unit[..., :3] + (tinted - unit[..., :3]) * alpha, unit)

        def panel() -> Array:
            if options.mask_visualization_mode is _Style.IMAGE_OVERLAY:
                return mixed()
            if options.mask_visualization_mode is _Style.IMAGE_MASK_ONLY:
                return mixed() * alpha
            return library.repeat(alpha, (1, 1, 4))

        return self._finish(
            unit,
            panel,
            mixed,
            lambda: count,
            _Path.FULL_FRAME,
            lambda previous: previous + (unit - previous) * alpha,
        )

    def _draw(
        self,
        library: NumpyLibrary,
        unit: Array,
        options: AutoGazeTensorVisualizationOptions,
        covered: Array,
        colours: Callable[[], Array],
        mask_pixels: Callable[[], int],
        path: AutoGazeTensorInterframePath,
        merge: Callable[[Array], Array],
    ) -> AutoGazeTensorVisualizationPanels:
        inside = covered[:, :, None]

        def mixed(colour: Array) -> Array:
            tinted = mix_levels(library, unit_levels(library, unit[..., :3]), colour, options.blend_alpha)
            return _with_alpha(library, library.xp.where(inside, tinted, unit[..., :3]), unit)

        def panel() -> Array:
            if options.mask_visualization_mode is _Style.IMAGE_OVERLAY:
                return mixed(colours())
            if options.mask_visualization_mode is _Style.IMAGE_MASK_ONLY:
                return mixed(colours()) * library.float32(inside)
            return _with_alpha(library, colours() / 255.0, unit * 0 + 1.0)

        white = library.float32(library.asarray(np.array(WHITE, np.float32)))
        return self._finish(unit, panel, lambda: mixed(white), mask_pixels, path, merge)

    def _finish(
        self,
        unit: Array,
        panel: Callable[[], Array],
        blend: Callable[[], Array],
        mask_pixels: Callable[[], int],
        path: AutoGazeTensorInterframePath,
        merge: Callable[[Array], Array],
    ) -> AutoGazeTensorVisualizationPanels:
        height, width = (int(size) for size in unit.shape[:2])
        layout = (width, height, str(getattr(unit, "device", "host")), type(unit).__name__)
        updated = mask_pixels
        if self.mode is AutoGazeVisualizationMode.FULL_BLEND:
            output, self._path, keyframe = blend(), None, False
        else:
            keyframe = self._cadence.is_keyframe(layout) or self._previous is None
            self._path = _Path.KEYFRAME if keyframe else path
            if keyframe:
                updated = lambda: width * height  # noqa: E731
            output = unit if keyframe else merge(self._previous)
            self._previous = output
        self._cadence.advance(layout, keyframe)
        return AutoGazeTensorVisualizationPanels(unit, panel, output, mask_pixels, updated)


def _with_alpha(library: NumpyLibrary, rgb: Array, like: Array) -> Array:
    """RGB ``[H, W, 3]`` with the alpha channel of ``like``, on the same device."""
    return library.concat([rgb, like[..., 3:]], axis=2)
