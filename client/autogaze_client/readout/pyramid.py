"""Masked images as weighted tokens of an image pyramid (spec: readout §5), on the device of the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autogaze_client._arrays import Array, NumpyLibrary, library_of
from autogaze_client._errors import InvalidInputError
from autogaze_client.geometry import cell_spans
from autogaze_client.readout import _checks
from autogaze_client.readout.pixel_masks import nearest, prepare_mask, unit_mask

__all__ = [
    "ImagePyramidLevel",
    "ImagePyramidMask",
    "ImagePyramidMaskOptions",
    "ImagePyramidTokens",
    "SparseImagePyramidTokens",
    "image_pyramid_masks",
    "sparsify_image_pyramid_tokens",
    "tokenize_masked_image_pyramid",
]


@dataclass(frozen=True, slots=True)
class ImagePyramidLevel:
    """One level of a pyramid: ``height`` x ``width`` tokens over the whole image.

    Raises:
        InvalidInputError: a side is below 1 (the reference takes 0 as 1).
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        _checks.count("level height", self.height, 1)
        _checks.count("level width", self.width, 1)

    @property
    def token_count(self) -> int:
        """Tokens of the level."""
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class ImagePyramidMaskOptions:
    """Which tokens of a level are active.

    Attributes:
        threshold: a token is active where the share of its area under the mask is strictly above this.

    Raises:
        InvalidInputError: the threshold is NaN.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        _checks.number("threshold", self.threshold)

    def with_threshold(self, threshold: float) -> ImagePyramidMaskOptions:
        """A copy with another threshold."""
        return replace(self, threshold=threshold)


@dataclass(frozen=True, eq=False)
class ImagePyramidMask:
    """A mask on one level.

    Attributes:
        level: the level.
        density: ``[B, 1, h, w]``, the share of each token's area under the mask, 0..1.
        active: ``[B, 1, h, w]``, 1 where the density is above the threshold, else 0.
    """

    level: ImagePyramidLevel
    density: Array
    active: Array


@dataclass(frozen=True, eq=False)
class ImagePyramidTokens:
    """Weighted tokens of all levels, row-major within a level, levels in the order given.

    Attributes:
        tokens: ``[B, N, C]``, the mean of the token's whole image cell, times its weight.
        weights: ``[B, N, 1]``, the density of active tokens, 0 for the others.
        levels: the levels.
        level_token_ranges: (first, end) of each level's tokens, half-open.
    """

    tokens: Array
    weights: Array
    levels: tuple[ImagePyramidLevel, ...]
    level_token_ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class SparseImagePyramidTokens:
    """The heaviest tokens of each batch row, heaviest first.

    Attributes:
        tokens: ``[B, k, C]``.
        weights: ``[B, k, 1]``.
        indices: int64 ``[B, k]``, their places among all N.
    """

    tokens: Array
    weights: Array
    indices: Array


def image_pyramid_masks(
    mask: Array,
    image_height: int,
    image_width: int,
    levels: Sequence[ImagePyramidLevel],
    options: ImagePyramidMaskOptions | None = None,
) -> list[ImagePyramidMask]:
    """A mask's density on every level.

    Args:
        mask: ``[B, any channels, h, w]``, prepared as in ``apply_image_mask``.
        image_height: of the image that the levels divide, in pixels; the mask is resized to it.
        image_width: likewise.
        levels: the levels; none give an empty list.
        options: the threshold.

    Raises:
        InvalidInputError: a size or the batch is 0, or (numpy only) a NaN in the mask.
    """
    _checks.count("image_height", image_height, 1)
    _checks.count("image_width", image_width, 1)
    library = library_of(mask=mask)
    mask = unit_mask(library, library.floating(library.asarray(mask)))
    mask = nearest(library, mask, image_height, image_width)
    return [_level_mask(library, mask, level, options) for level in levels]


def tokenize_masked_image_pyramid(
    image: Array,
    mask: Array,
    levels: Sequence[ImagePyramidLevel],
    options: ImagePyramidMaskOptions | None = None,
) -> ImagePyramidTokens:
    """Averages the image over the cells of every level and weighs each average by the mask's density there.

    A token of weight 0 is 0 even where the image holds NaN or infinity. torch and CuPy arrays stay on their
    device, with no synchronisation.

    Args:
        image: ``[B, C, H, W]``; integers become float32.
        mask: ``[1 or B, any channels, h, w]``, prepared as in ``apply_image_mask``.
        levels: tokens of each level. A level may be finer than the image.
        options: the threshold.

    Raises:
        InvalidInputError: no levels, a shape that does not fit, or (numpy only) a NaN in the mask.

    Example:
        >>> image, mask = np.array([[[[1.0, 2], [3, 4]]]]), np.array([[[[1.0, 0], [0, 0]]]])
        >>> levels = [ImagePyramidLevel(1, 1), ImagePyramidLevel(2, 2)]
        >>> tokenize_masked_image_pyramid(image, mask, levels).tokens.ravel().tolist()
        [0.625, 1.0, 0.0, 0.0, 0.0]
    """
    if not levels:
        raise InvalidInputError("there are no pyramid levels; pass at least one")
    library, image, mask = prepare_mask(image, mask)
    batch, channels = image.shape[:2]
    tokens, weights, ranges, start = [], [], [], 0
    for level in levels:
        shown = _level_mask(library, mask, level, options)
        weight = shown.density * shown.active
        cells = library.fill_where(weight == 0, pool(library, image, level), 0.0) * weight
        tokens.append(cells.reshape(batch, channels, -1).swapaxes(1, 2))
        weights.append(weight.reshape(batch, -1, 1))
        ranges.append((start, start + level.token_count))
        start += level.token_count
    return ImagePyramidTokens(
        tokens=library.concat(tokens, axis=1),
        weights=library.concat(weights, axis=1),
        levels=tuple(levels),
        level_token_ranges=tuple(ranges),
    )


def sparsify_image_pyramid_tokens(tokens: ImagePyramidTokens, max_tokens: int) -> SparseImagePyramidTokens:
    """The ``max_tokens`` heaviest tokens of each batch row; of equal ones the lowest index first.

    Where fewer tokens have a weight, ones of weight 0 follow. torch and CuPy arrays stay on their device, with
    no synchronisation.

    Args:
        tokens: of ``tokenize_masked_image_pyramid``.
        max_tokens: k; more than there are gives all, and 0 none (1 in the reference).

    Raises:
        InvalidInputError: there are no tokens or channels, or ``max_tokens`` is negative.
    """
    _checks.count("max_tokens", max_tokens)
    if tokens.tokens.ndim != 3 or 0 in tokens.tokens.shape:
        raise InvalidInputError(
            f"tokens have shape {list(tokens.tokens.shape)}; it must be [B, N, C], none 0"
        )
    library = library_of(tokens=tokens.tokens, weights=tokens.weights)
    indices = library.largest_first(tokens.weights[:, :, 0])[:, :max_tokens]
    picked = indices[:, :, None]
    return SparseImagePyramidTokens(
        tokens=library.take_along(tokens.tokens, picked, axis=1),
        weights=library.take_along(tokens.weights, picked, axis=1),
        indices=indices,
    )


def _level_mask(
    library: NumpyLibrary, mask: Array, level: ImagePyramidLevel, options: ImagePyramidMaskOptions | None
) -> ImagePyramidMask:
    density = library.clip(pool(library, mask, level), 0, 1)
    threshold = ImagePyramidMaskOptions().threshold if options is None else options.threshold
    return ImagePyramidMask(level, density, library.cast_like(density > threshold, density))


def pool(library: NumpyLibrary, image: Array, level: ImagePyramidLevel) -> Array:
    """The mean of each cell: bin i of n over m pixels is ``floor(i·m/n) … ceil((i+1)·m/n)``."""
    columns = _pool_last(library, image, level.width)
    return _pool_last(library, columns.swapaxes(2, 3), level.height).swapaxes(2, 3)


def _pool_last(library: NumpyLibrary, image: Array, bins: int) -> Array:
    size = image.shape[3]
    if size % bins == 0:
        return image.reshape(*image.shape[:3], bins, size // bins).mean(4)
    start, end = cell_spans(library.arange(bins), bins, size)
    longest = -(-size // bins) + 1
    offset = library.arange(longest)[None]
    inside = start[:, None] + offset < end[:, None]
    pixels = image[:, :, :, library.clip(start[:, None] + offset, 0, size - 1)]
    total = library.fill_where(~inside, pixels, 0.0).sum(4)
    return total / library.cast_like(end - start, image)
