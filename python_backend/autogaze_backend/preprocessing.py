"""From uint8 frames to model input, with the bytes and rules of upstream's processor (pipeline §2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from autogaze_client import knobs
from autogaze_client._errors import CheckpointError, InvalidInputError, MissingExtraError
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Video = NDArray[np.float32]

# Pillow's filter, by the number that preprocessor_config.json holds.
_BILINEAR = 2
# The cubic convolution coefficient of torch's bicubic interpolation.
_CUBIC = -0.75
# A frame keeps its aspect when its short side is resized; beyond this the long side is mostly memory.
_MAX_ASPECT = 64


@dataclass(frozen=True)
class PreprocessingConfig:
    """The processor's settings; the defaults are the released ones, not upstream's class defaults.

    Attributes:
        shortest_edge: the processor shrinks or grows a frame until its short side has this many pixels.
        image_mean: a channel's mean, applied to values in [-1, 1].
        image_std: a channel's standard deviation, likewise.
    """

    shortest_edge: int = 224
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_mean", tuple(self.image_mean))
        object.__setattr__(self, "image_std", tuple(self.image_std))
        if not isinstance(self.shortest_edge, int) or self.shortest_edge < 1:
            raise CheckpointError(
                f"shortest_edge is {self.shortest_edge!r}; it must be an integer of at least 1"
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise CheckpointError(
                f"image_mean {self.image_mean} and image_std {self.image_std} must be three numbers each, std above 0"
            )

    @classmethod
    def from_processor(cls, config: Mapping[str, Any] | None) -> PreprocessingConfig:
        """Reads ``preprocessor_config.json``; None gives the released settings.

        Raises:
            CheckpointError: the file asks for a step that this package does not do.
        """
        if config is None:
            return cls()
        supported: dict[str, tuple[Any, ...]] = {
            "do_resize": (True,),
            "resample": (_BILINEAR,),
            "do_center_crop": (False,),
            "do_rescale": (True,),
            "offset": (True,),
            "do_normalize": (True,),
        }
        for key, values in supported.items():
            if key in config and config[key] not in values:
                raise CheckpointError(
                    f"preprocessor_config.json: {key} is {config[key]!r}; only {values[0]!r} is supported"
                )
        factor = config.get("rescale_factor", 1 / 127.5)
        if not isinstance(factor, int | float) or abs(factor * 127.5 - 1) > 1e-6:
            raise CheckpointError(
                f"preprocessor_config.json: rescale_factor is {factor!r}; only 1/127.5 is supported"
            )
        size = config.get("size", {"shortest_edge": cls.shortest_edge})
        if not isinstance(size, Mapping) or set(size) != {"shortest_edge"}:
            raise CheckpointError(
                f"preprocessor_config.json: size is {size!r}; only {{'shortest_edge': n}} is supported"
            )
        return cls(
            shortest_edge=size["shortest_edge"],
            image_mean=config.get("image_mean", cls.image_mean),
            image_std=config.get("image_std", cls.image_std),
        )


def check_frames(frames: NDArray[Any]) -> Frames:
    """Checks a clip's layout.

    Args:
        frames: uint8 ``[T, H, W, 3]`` RGB or ``[T, H, W, 4]`` RGBA.

    Raises:
        InvalidInputError: another type, rank, channel count, or an empty axis.
    """
    return knobs.check_frames(frames)


def shortest_edge_size(height: int, width: int, edge: int) -> tuple[int, int]:
    """(height, width) with the short side at ``edge``; the long side is truncated, as upstream does."""
    short, long = min(height, width), max(height, width)
    scaled = int(edge * long / short)
    return (edge, scaled) if height <= width else (scaled, edge)


def resize_shortest_edge(frames: Frames, edge: int) -> Frames:
    """Pillow's antialiased bilinear resize of each frame; alpha is dropped, not blended.

    Args:
        frames: uint8 ``[T, H, W, 3 or 4]``.
        edge: pixels of the short side afterwards.

    Returns:
        uint8 ``[T, h, w, 3]``, byte for byte what Pillow gives; unchanged where the size already fits.

    Raises:
        InvalidInputError: the frame is so long that its resized form would not be worth its memory.
    """
    height, width = frames.shape[1:3]
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise InvalidInputError(
            f"frames of {width}×{height} are more than {_MAX_ASPECT} times longer than wide; crop or split them"
        )
    return resize_exact(frames, shortest_edge_size(height, width, edge))


def resize_exact(frames: Frames, size: tuple[int, int]) -> Frames:
    """Pillow's antialiased bilinear resize to (height, width), aspect ignored; alpha is dropped.

    Args:
        frames: uint8 ``[T, H, W, 3 or 4]``.
        size: height and width afterwards.

    Returns:
        uint8 ``[T, *size, 3]``; unchanged where the size already fits.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    if size == frames.shape[1:3]:
        return np.ascontiguousarray(frames[..., :3])
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError.for_extra("resizing frames", "server", error) from error
    out = np.empty((len(frames), *size, 3), np.uint8)
    for index, frame in enumerate(frames):
        image = Image.fromarray(np.ascontiguousarray(frame[..., :3]))
        out[index] = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return out


def normalise(frames: Frames, config: PreprocessingConfig) -> Video:
    """uint8 ``[T, H, W, 3]`` to float32 ``[T, 3, H, W]``: x/127.5 - 1, then mean and std, in float32."""
    mean, std = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
    # A byte has 256 values: one table a channel instead of arithmetic on every pixel.
    levels = np.arange(256, dtype=np.float32) * np.float32(1 / 127.5) - np.float32(1)
    out = np.empty((frames.shape[0], 3, *frames.shape[1:3]), np.float32)
    for channel in range(3):
        np.take((levels - mean[channel]) / std[channel], frames[..., channel], out=out[:, channel])
    return out


def resize_to_input(video: Video, side: int) -> Video:
    """Upstream's square resize on normalised floats: bicubic, half-pixel centres, no antialias.

    Args:
        video: float32 ``[..., H, W]``.
        side: side of the model input.

    Returns:
        float32 ``[..., side, side]``; the input itself where it has that size.
    """
    height, width = video.shape[-2:]
    if width != side:
        video = video @ _cubic_matrix(width, side).T
    if height != side:
        video = _cubic_matrix(height, side) @ video
    return video


def preprocess(frames: Frames, config: PreprocessingConfig, side: int) -> Video:
    """The whole path of the resize mode: uint8 ``[T, H, W, 3 or 4]`` to float32 ``[T, 3, side, side]``."""
    resized = resize_shortest_edge(check_frames(frames), config.shortest_edge)
    return resize_to_input(normalise(resized, config), side)


@lru_cache(maxsize=8)
def _cubic_matrix(size: int, side: int) -> NDArray[np.float32]:
    """Weights ``[side, size]`` of a bicubic resize along one axis; edges repeat. An equal size is the identity."""
    # torch takes the scale in float32 and fuses the multiply and the subtraction into one rounding.
    scale = np.float64(np.float32(size) / np.float32(side))
    centre = ((np.arange(side) + 0.5) * scale - 0.5).astype(np.float32)
    base = np.floor(centre)
    offsets = np.arange(-1, 3)[:, None]
    distance = np.abs((centre - base).astype(np.float64) - offsets)
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    matrix = np.zeros((side, size))
    source = np.clip(base.astype(np.int64) + offsets, 0, size - 1)
    np.add.at(matrix, (np.arange(side)[None].repeat(4, axis=0), source), np.where(distance <= 1, near, far))
    return matrix.astype(np.float32)
