"""Fixations as pixel masks (spec: readout §5), on the host or on the device of the arrays given."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autogaze_client._arrays import Array, NumpyLibrary, is_device_array, library_of
from autogaze_client._errors import InvalidInputError
from autogaze_client.fixations import FrameFixationTrace
from autogaze_client.geometry import fixation_pixel_rects
from autogaze_client.readout import _cells, _checks
from autogaze_client.readout.grids import Points

__all__ = ["apply_image_mask", "fixation_image_mask_tensor", "frame_fixation_masks_tensor"]


def fixation_image_mask_tensor(
    batch: int, height: int, width: int, points: Points, *, like: Array | None = None
) -> Array:
    """The union of cells as a mask: 1 on every pixel that a cell of confidence above 0 touches, else 0.

    Cells of a grid cover exact integer pixels (the reference's single precision makes some a pixel wider).

    Args:
        batch: how often the mask is repeated.
        height: of the mask, in pixels.
        width: of the mask, in pixels.
        points: ``FixationPoint`` objects, a ``FixationSet``, or an array ``[n, 6]`` (x, y, width, height,
            confidence, grid) or ``[n, 7]``. A torch or CuPy array is painted on its device, with no
            synchronisation; its values are not checked.
        like: a torch or CuPy array whose library and device the mask takes; None = those of ``points``.

    Returns:
        float32 ``[batch, 1, height, width]``.

    Raises:
        InvalidInputError: ``batch`` or a side is below 1, an array of another shape, or a NaN.

    Example:
        >>> cell = FixationPoint.with_grid_extent(0.25, 0.25, 0.5, 0.5, 1.0, 2)
        >>> fixation_image_mask_tensor(1, 2, 2, [cell])[0, 0].tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    for name, size in (("batch", batch), ("height", height), ("width", width)):
        _checks.count(name, size, 1)
    if not is_device_array(points):
        library = library_of(like=like)
        rects = _host_rects(points, height, width)
        if library.on_host:
            painted = _paint_on_host(rects, height, width)[None, None]
            return painted if batch == 1 else np.repeat(painted, batch, axis=0)
        rects = library.asarray(rects)
        active = library.int64(rects[:, 0] < rects[:, 1])
    else:
        library = library_of(points=points) if like is None else library_of(points=points, like=like)
        if points.ndim != 2 or points.shape[1] not in (6, 7):
            raise InvalidInputError(
                f"points have shape {list(points.shape)}; they must be [n, 7], or [n, 6] without the frame"
            )
        rects = fixation_pixel_rects(points, width=width, height=height)
        active = library.int64(points[:, -2] > 0)
    mask = _paint_on_device(library, rects, active, height, width)
    return library.repeat(mask[None, None], (batch, 1, 1, 1))


def frame_fixation_masks_tensor(
    traces: Sequence[FrameFixationTrace], frame: int, height: int, width: int, *, like: Array | None = None
) -> Array:
    """One mask a clip, of the same frame of each; zeros for a clip that has ended before it.

    Args:
        traces: the clips.
        frame: the frame, counted from 0.
        height: of the masks, in pixels.
        width: of the masks, in pixels.
        like: a torch or CuPy array whose library and device the masks take; None = numpy.

    Returns:
        float32 ``[clips, 1, height, width]``.

    Raises:
        InvalidInputError: no clips, a side below 1, or a NaN.
    """
    if not traces:
        raise InvalidInputError("there are no traces to make masks of; pass at least one")
    _checks.count("frame", frame)
    sets = [trace.frames[frame] if frame < len(trace) else () for trace in traces]
    masks = [fixation_image_mask_tensor(1, height, width, points, like=like) for points in sets]
    return library_of(mask=masks[0]).concat(masks, axis=0)


def apply_image_mask(image: Array, mask: Array, fill: float = 0.0) -> Array:
    """``image · mask + fill · (1 − mask)``; where the mask is 0, exactly ``fill``, even over NaN.

    Args:
        image: ``[B, C, H, W]``; integers become float32.
        mask: ``[1 or B, any channels, h, w]``: channels are averaged, another size is resized to the nearest,
            values are clamped to 0..1. Of image's library and device.
        fill: the value of what is masked out.

    Returns:
        ``[B, C, H, W]``, of image's library and device.

    Raises:
        InvalidInputError: a shape that does not fit, a fill that is not finite, or (numpy only) a NaN in the
            mask.
    """
    if not math.isfinite(fill):
        raise InvalidInputError(f"fill is {fill}; it must be finite")
    library, image, mask = prepare_mask(image, mask)
    return library.fill_where(mask == 0, image, 0.0) * mask + fill * (1 - mask)


def prepare_mask(image: Array, mask: Array) -> tuple[NumpyLibrary, Array, Array]:
    """The image as floating ``[B, C, H, W]``, and the mask as ``[B, 1, H, W]`` in 0..1 of the same type.

    Raises:
        InvalidInputError: a shape that does not fit, or (numpy only) a NaN in the mask.
    """
    library = library_of(image=image, mask=mask)
    image, mask = (library.floating(library.asarray(array)) for array in (image, mask))
    if image.ndim != 4 or 0 in image.shape:
        raise InvalidInputError(f"image has shape {list(image.shape)}; it must be [B, C, H, W], none 0")
    mask = unit_mask(library, mask, image.shape[0])
    mask = nearest(library, mask, image.shape[2], image.shape[3])
    return library, image, library.cast_like(mask, image)


def nearest(library: NumpyLibrary, mask: Array, height: int, width: int) -> Array:
    """``[B, 1, h, w]`` resized to the nearest: pixel i comes from ``floor(i · old / new)``."""
    rows, columns = mask.shape[2:]
    if rows != height:
        mask = mask[:, :, library.arange(height) * rows // height]
    if columns != width:
        mask = mask[:, :, :, library.arange(width) * columns // width]
    return mask


def unit_mask(library: NumpyLibrary, mask: Array, batch: int | None = None) -> Array:
    """A mask as ``[B, 1, h, w]``: channels averaged, repeated to ``batch``, clamped to 0..1.

    Raises:
        InvalidInputError: a shape that does not fit, or (numpy only) a NaN.
    """
    if mask.ndim != 4 or 0 in mask.shape:
        raise InvalidInputError(f"mask has shape {list(mask.shape)}; it must be [B, C, H, W], none 0")
    if batch is not None and mask.shape[0] not in (1, batch):
        raise InvalidInputError(f"mask has a batch of {mask.shape[0]}; it must be 1 or the image's {batch}")
    if library.on_host and np.isnan(mask).any():
        raise InvalidInputError("mask holds a NaN; its values must be numbers, which are clamped to 0..1")
    if mask.shape[1] > 1:
        mask = mask.mean(1)[:, None]
    if batch is not None and mask.shape[0] != batch:
        mask = library.repeat(mask, (batch, 1, 1, 1))
    return library.clip(mask, 0, 1)


def _host_rects(points: Points, height: int, width: int) -> Array:
    rows = _cells.point_rows(points)
    if np.isnan(rows[:, 4]).any():
        first = int(np.argmax(np.isnan(rows[:, 4])))
        raise InvalidInputError(f"confidence of fixation {first} is NaN; it must be a number")
    return fixation_pixel_rects(rows[rows[:, 4] > 0], width=width, height=height)


def _paint_on_host(rects: Array, height: int, width: int) -> Array:
    """Paints on the grid of distinct edges, which is far coarser than pixels, and repeats its cells."""
    columns, x = np.unique(np.concatenate([rects[:, :2].ravel(), [0, width]]), return_inverse=True)
    rows, y = np.unique(np.concatenate([rects[:, 2:].ravel(), [0, height]]), return_inverse=True)
    library, active = library_of(rects=rects), np.ones(len(rects), np.int64)
    if 4 * len(rows) * len(columns) > height * width:
        return _paint_on_device(library, rects, active, height, width)
    compact = np.concatenate([x[:-2].reshape(-1, 2), y[:-2].reshape(-1, 2)], axis=1)
    mask = _paint_on_device(library, compact, active, len(rows) - 1, len(columns) - 1)
    return np.repeat(np.repeat(mask, np.diff(columns), axis=1), np.diff(rows), axis=0)


def _paint_on_device(library: NumpyLibrary, rects: Array, active: Array, height: int, width: int) -> Array:
    """Adds +1 and −1 at the corners of rectangles, so that running sums count the cells over each pixel."""
    x0, x1, y0, y1 = rects[:, 0], rects[:, 1], rects[:, 2], rects[:, 3]
    stride = width + 1
    corners = library.concat([y0 * stride + x0, y1 * stride + x1, y0 * stride + x1, y1 * stride + x0], axis=0)
    signs = library.concat([active, active, -active, -active], axis=0)
    counts = library.zeros_int32((height + 1) * stride)
    library.add_at(counts, corners, signs)
    counts = library.cumsum_int32(counts.reshape(height + 1, stride), axis=0)
    counts = library.cumsum_int32(counts, axis=1)[:height, :width]
    return library.float32(counts > 0)
