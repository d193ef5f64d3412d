"""What a tensor visualisation gives; everything stays on the device of the frame (spec: visualization §6)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from autogaze_client._arrays import Array, library_of

__all__ = ["AutoGazeTensorVisualization", "AutoGazeTensorVisualizationPanels"]

Count = Callable[[], int]


class _Counts:
    """Counts and ratios of a frame. Where the mask was made on a device, reading one waits for it."""

    def __init__(self, width: int, height: int, mask_pixels: Count, updated_pixels: Count) -> None:
        self.width, self.height = width, height
        self._mask_pixels, self._updated_pixels = mask_pixels, updated_pixels

    @cached_property
    def mask_pixel_count(self) -> int:
        """Pixels that the cells cover, keyframe or not."""
        return self._mask_pixels()

    @cached_property
    def updated_pixel_count(self) -> int:
        """Pixels of the output that were taken from the frame (interframe) or tinted (full blend)."""
        return self._updated_pixels()

    def mask_ratio(self) -> float:
        """Covered pixels / pixels of the frame; 0..1."""
        return self.mask_pixel_count / (self.width * self.height)

    def update_ratio(self) -> float:
        """Updated pixels / pixels of the frame; 0..1."""
        return self.updated_pixel_count / (self.width * self.height)


class AutoGazeTensorVisualizationPanels(_Counts):
    """Input, mask and output of a frame.

    Attributes:
        input: float32 RGBA ``[H, W, 4]`` in 0..1.
        output: likewise.
    """

    def __init__(
        self,
        input_rgba: Array,
        draw_mask: Callable[[], Array],
        output: Array,
        mask_pixels: Count,
        updated_pixels: Count,
    ) -> None:
        super().__init__(int(output.shape[1]), int(output.shape[0]), mask_pixels, updated_pixels)
        self.input = input_rgba
        self.output = output
        self._draw_mask = draw_mask

    @cached_property
    def mask(self) -> Array:
        """The mask panel, float32 RGBA ``[H, W, 4]`` in 0..1, drawn on first use."""
        return self._draw_mask()

    def into_side_by_side(self) -> AutoGazeTensorVisualization:
        """Input | mask | output in one tensor."""
        return AutoGazeTensorVisualization(self)


class AutoGazeTensorVisualization(_Counts):
    """The three panels in one tensor.

    Attributes:
        side_by_side: float32 RGBA ``[H, 3·W, 4]`` in 0..1, input | mask | output.
        output: float32 RGBA ``[H, W, 4]``.
    """

    def __init__(self, panels: AutoGazeTensorVisualizationPanels) -> None:
        super().__init__(panels.width, panels.height, panels._mask_pixels, panels._updated_pixels)
        library = library_of(input=panels.input)
        self.side_by_side = library.concat([panels.input, panels.mask, panels.output], axis=1)
        self.output = panels.output
