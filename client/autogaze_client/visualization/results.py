"""What a visualisation gives: panels, counts and ratios (spec: visualization §0, §5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client.device_mask import AutoGazeMaskPlanStats
from autogaze_client.readout.metrics import rgba_psnr_db
from autogaze_client.visualization.masks import rgba_image

__all__ = [
    "AutoGazeRgbaVisualizationBuffers",
    "AutoGazeVisualization",
    "AutoGazeVisualizationPanels",
    "AutoGazeVisualizationPanelsView",
]

Image = NDArray[np.uint8]


class _Measured:
    """Size, counts and ratios of a picture.

    Attributes:
        width: of a panel, in pixels.
        height: of a panel, in pixels.
        blend_rgba: the output panel, uint8 RGBA ``[H, W, 4]``.
        mask_pixel_count: pixels that the cells cover, keyframe or not.
        updated_pixel_count: pixels of the output that were taken from the frame (interframe) or tinted
            (full blend).
        mask_plan_stats: the cells in numbers.
    """

    def __init__(
        self, blend_rgba: Image, mask_pixels: int, updated_pixels: int, stats: AutoGazeMaskPlanStats
    ) -> None:
        self.height, self.width = blend_rgba.shape[:2]
        self.blend_rgba = blend_rgba
        self.mask_pixel_count = mask_pixels
        self.updated_pixel_count = updated_pixels
        self.mask_plan_stats = stats

    def output_rgba(self) -> Image:
        """The output panel."""
        return self.blend_rgba

    def mask_ratio(self) -> float:
        """Covered pixels / pixels of the frame; 0..1."""
        return self.mask_pixel_count / (self.width * self.height)

    def update_ratio(self) -> float:
        """Updated pixels / pixels of the frame; 0..1."""
        return self.updated_pixel_count / (self.width * self.height)

    def output_psnr_db(self, input_rgba: Any) -> float:
        """PSNR of the output against the input in dB, RGB only; +inf where they are equal.

        Raises:
            InvalidInputError: the input is of another size.
        """
        return rgba_psnr_db(input_rgba, self.blend_rgba)


class AutoGazeVisualizationPanels(_Measured):
    """The mask and output panels of one frame; both are read-only.

    The mask panel is drawn when it is first asked for.
    """

    def __init__(
        self,
        draw_mask: Callable[[], Image],
        blend_rgba: Image,
        mask_pixels: int,
        updated_pixels: int,
        stats: AutoGazeMaskPlanStats,
    ) -> None:
        super().__init__(blend_rgba, mask_pixels, updated_pixels, stats)
        self._draw_mask: Callable[[], Image] | None = draw_mask
        self._mask: Image | None = None

    @property
    def mask_rgba(self) -> Image:
        """The mask panel, uint8 RGBA ``[H, W, 4]``."""
        if self._mask is None:
            assert self._draw_mask is not None
            self._mask = self._draw_mask()
            self._mask.flags.writeable = False
            # What the drawing needed (a copy of the frame) is needed no more.
            self._draw_mask = None
        return self._mask

    def into_side_by_side(self, input_rgba: Any) -> AutoGazeVisualization:
        """Adds the picture input | mask | output.

        Raises:
            InvalidInputError: the input is of another size.
        """
        picture = rgba_image(input_rgba, self.width, self.height, "input_rgba")
        return AutoGazeVisualization(self, _joined(picture, self.mask_rgba, self.blend_rgba))


class AutoGazeVisualization(_Measured):
    """The panels of one frame and the three of them side by side.

    Attributes:
        side_by_side_rgba: input | mask | output, uint8 RGBA ``[H, 3·W, 4]``.
        side_by_side_width: 3·W.
    """

    def __init__(self, panels: AutoGazeVisualizationPanels, side_by_side_rgba: Image) -> None:
        super().__init__(
            panels.blend_rgba, panels.mask_pixel_count, panels.updated_pixel_count, panels.mask_plan_stats
        )
        self.mask_rgba = panels.mask_rgba
        self.side_by_side_rgba = side_by_side_rgba
        self.side_by_side_width = int(side_by_side_rgba.shape[1])


class AutoGazeVisualizationPanelsView(_Measured):
    """Panels that lie in ``AutoGazeRgbaVisualizationBuffers``: the next frame drawn there replaces them."""

    def __init__(
        self,
        mask_rgba: Image,
        blend_rgba: Image,
        mask_pixels: int,
        updated_pixels: int,
        stats: AutoGazeMaskPlanStats,
    ) -> None:
        super().__init__(blend_rgba, mask_pixels, updated_pixels, stats)
        self.mask_rgba = mask_rgba

    def to_owned(self) -> AutoGazeVisualizationPanels:
        """A copy that later frames leave alone."""
        mask, blend = self.mask_rgba.copy(), self.blend_rgba.copy()
        blend.flags.writeable = False
        return AutoGazeVisualizationPanels(
            lambda: mask, blend, self.mask_pixel_count, self.updated_pixel_count, self.mask_plan_stats
        )


class AutoGazeRgbaVisualizationBuffers:
    """Memory for panels, used frame after frame. Views of an outgrown buffer stay as they were."""

    def __init__(self) -> None:
        self._memory = {name: np.empty(0, np.uint8) for name in ("mask", "blend", "side_by_side")}
        self._shapes = dict.fromkeys(self._memory, (0, 0, 4))

    @property
    def mask(self) -> Image:
        """The mask panel drawn last, uint8 RGBA ``[H, W, 4]``; empty before the first."""
        return self._view("mask")

    @property
    def blend(self) -> Image:
        """The output panel drawn last."""
        return self._view("blend")

    @property
    def side_by_side(self) -> Image:
        """Input | mask | output, ``[H, 3·W, 4]``; empty unless drawn."""
        return self._view("side_by_side")

    def clear(self) -> None:
        """Empties the buffers; their memory is kept."""
        self._shapes = dict.fromkeys(self._memory, (0, 0, 4))

    def reserve_exact_panels(self, width: int, height: int) -> None:
        """Provides memory for panels of a size, so that the first frame does not have to."""
        for name in ("mask", "blend"):
            self._reserve(name, width * height * 4)

    def reserve_exact_side_by_side(self, width: int, height: int) -> None:
        """Provides memory for the three panels of a size side by side."""
        self._reserve("side_by_side", 3 * width * height * 4)

    def capacity(self) -> int:
        """Bytes of memory held."""
        return sum(memory.size for memory in self._memory.values())

    def resized(self, name: str, width: int, height: int) -> Image:
        """A buffer at a size, contents undefined."""
        self._reserve(name, width * height * 4)
        self._shapes[name] = (height, width, 4)
        return self._view(name)

    def _reserve(self, name: str, size: int) -> None:
        if self._memory[name].size < size:
            self._memory[name] = np.empty(size, np.uint8)

    def _view(self, name: str) -> Image:
        height, width, channels = self._shapes[name]
        return self._memory[name][: height * width * channels].reshape(height, width, channels)


def _joined(*pictures: Image) -> Image:
    joined = np.concatenate(pictures, axis=1)
    joined.flags.writeable = False
    return joined
