"""Pictures of a gaze: the chosen cells over the frame, coloured by scale (palette: visualization spec §4).

Drawing is numpy; only the legend's text needs Pillow (extra ``viz``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError, MissingExtraError
from autogaze_client.fixations import FixationSet
from autogaze_client.geometry import fixation_pixel_rects

__all__ = ["contact_sheet", "legend_strip", "resize_image", "scale_color", "scale_mask_image", "side_by_side"]

Image = NDArray[np.uint8]

# Largest grid of a colour, and the colour.
_PALETTE = ((2, (255, 180, 0)), (4, (60, 220, 120)), (7, (0, 185, 255)))
_FINEST = (230, 110, 255)
_NAMED_GRIDS = np.array([2, 4, 7, 14])
_BACKGROUND = 18


def scale_color(grid: int) -> tuple[int, int, int]:
    """The RGB colour of a scale by its cells per side: orange, green, blue, then violet for 8 and more."""
    return next((color for largest, color in _PALETTE if grid <= largest), _FINEST)


def scale_mask_image(
    frame: Image,
    fixations: FixationSet,
    *,
    alpha: float = 0.28,
    dim: float = 0.3,
    line_width: int | None = None,
) -> Image:
    """The frame with chosen cells in the colour of their scale, outlined, and the rest dim and grey.

    Coarse cells are painted first, so fine ones stay visible on top. Points of confidence 0 are padding.

    Args:
        frame: uint8 ``[H, W, 3]`` RGB.
        fixations: cells in coordinates of the frame.
        alpha: share of the scale's colour inside a cell, 0..1.
        dim: brightness of what was not chosen, 0..1.
        line_width: of the outlines in pixels; None = 1 for every 480 rows, at least 1.

    Returns:
        uint8 ``[H, W, 3]``; ``frame`` is left as it is.

    Raises:
        InvalidInputError: the frame is of another type or shape, or ``alpha`` or ``dim`` is outside 0..1.
    """
    _check_image("frame", frame)
    for name, share in (("alpha", alpha), ("dim", dim)):
        if not 0 <= share <= 1:
            raise InvalidInputError(f"{name} is {share}; it must be in 0..1")
    height, width = frame.shape[:2]
    line = max(1, round(height / 480)) if line_width is None else line_width
    source = frame.astype(np.float32)
    grey = source @ np.array([0.299, 0.587, 0.114], np.float32)
    image = _to_bytes((0.6 * grey[..., None] + 0.4 * source) * dim)
    cells = fixations.to_array()
    cells = cells[cells[:, 4] > 0]
    grids = _visible_grids(cells)
    rects = fixation_pixel_rects(cells, width=width, height=height)
    for color in dict.fromkeys(scale_color(int(grid)) for grid in np.unique(grids)):
        mine = rects[[scale_color(int(grid)) == color for grid in grids]]
        tinted = _to_bytes(source * (1 - alpha) + np.array(color, np.float32) * alpha)
        for x0, x1, y0, y1 in mine:
            image[y0:y1, x0:x1] = tinted[y0:y1, x0:x1]
        for x0, x1, y0, y1 in mine:
            _outline(image[y0:y1, x0:x1], color, line)
    return image


def side_by_side(left: Image, right: Image, *, gap: int = 0) -> Image:
    """Two pictures of one height next to each other, uint8 ``[H, W1 + gap + W2, 3]``.

    Raises:
        InvalidInputError: no pictures, or different heights.
    """
    _check_image("left", left)
    _check_image("right", right)
    if left.shape[0] != right.shape[0]:
        raise InvalidInputError(
            f"the pictures are {left.shape[0]} and {right.shape[0]} rows high; resize one"
        )
    space = np.full((left.shape[0], gap, 3), _BACKGROUND, np.uint8)
    return np.concatenate([left, space, right], axis=1)


def contact_sheet(images: Sequence[Image], columns: int, *, gap: int = 4) -> Image:
    """Pictures of one size in rows of ``columns``, with a dark gap between and around them.

    Raises:
        InvalidInputError: no pictures, pictures of different sizes, or fewer than 1 column.
    """
    if not images:
        raise InvalidInputError("there are no images for the contact sheet; pass at least one")
    if columns < 1:
        raise InvalidInputError(f"columns is {columns}; it must be at least 1")
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), _BACKGROUND, np.uint8)
    for index, image in enumerate(images):
        _check_image(f"image {index}", image)
        if image.shape != images[0].shape:
            raise InvalidInputError(
                f"image {index} is {image.shape[1]}x{image.shape[0]}, the first {width}x{height}; resize them"
            )
        row, column = divmod(index, columns)
        y, x = gap + row * (height + gap), gap + column * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet


def legend_strip(width: int, labels: Sequence[tuple[int, str]], *, height: int = 28) -> Image:
    """A strip that names the scales: a swatch and a text for each ``(grid, text)``.

    Args:
        width: of the strip in pixels.
        labels: cells per side of a scale, which give the colour, and what to write.
        height: of the strip in pixels.

    Returns:
        uint8 ``[height, width, 3]``; what does not fit is cut off on the right.

    Raises:
        MissingExtraError: Pillow is not installed.
        InvalidInputError: the strip has no pixels.
    """
    if width < 1 or height < 1:
        raise InvalidInputError(f"the strip is {width}x{height} pixels; both sides must be at least 1")
    try:
        from PIL import Image as PillowImage
        from PIL import ImageDraw, ImageFont
    except ImportError as error:
        raise MissingExtraError.for_extra("the legend", "viz", error) from error
    strip = PillowImage.new("RGB", (width, height), (_BACKGROUND,) * 3)
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(max(height * 0.5, 8))
    swatch, x = round(height * 0.5), height * 0.4
    top = (height - swatch) / 2
    for grid, text in labels:
        draw.rectangle((x, top, x + swatch - 1, top + swatch - 1), fill=scale_color(grid))
        x += swatch + height * 0.25
        draw.text((x, height / 2), text, fill=(235, 235, 235), font=font, anchor="lm")
        x += draw.textlength(text, font=font) + height * 0.7
    return np.asarray(strip)


def resize_image(image: Image, width: int) -> Image:
    """The picture at another width, aspect kept (Lanczos).

    Raises:
        MissingExtraError: Pillow is not installed.
        InvalidInputError: ``width`` is below 1.
    """
    _check_image("image", image)
    if width < 1:
        raise InvalidInputError(f"width is {width}; it must be at least 1")
    try:
        from PIL import Image as PillowImage
    except ImportError as error:
        raise MissingExtraError.for_extra("resizing a picture", "viz", error) from error
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(PillowImage.fromarray(image).resize((width, height), PillowImage.Resampling.LANCZOS))


def _visible_grids(cells: NDArray[np.float32]) -> NDArray[np.int64]:
    """The grid that gives each cell its colour: its own, or the published one nearest to its extent."""
    extents = cells[:, 2:4].max(axis=1, initial=1e-6)
    nearest = np.abs(_NAMED_GRIDS - 1.0 / extents[:, None]).argmin(axis=1)
    return np.where(cells[:, 5] > 0, cells[:, 5].astype(np.int64), _NAMED_GRIDS[nearest])


def _outline(cell: Image, color: tuple[int, int, int], line: int) -> None:
    cell[:line] = cell[-line:] = color
    cell[:, :line] = cell[:, -line:] = color


def _to_bytes(image: NDArray[np.float32]) -> Image:
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _check_image(name: str, image: Image) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidInputError(f"{name} is {image.dtype} {list(image.shape)}; it must be uint8 [H, W, 3]")
