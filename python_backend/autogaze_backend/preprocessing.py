"""From uint8 frames to model input, with the bytes and rules of upstream's processor (pipeline §2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from autogaze_client import knobs
from autogaze_client._errors import CheckpointError, InvalidInputError, MissingExtraError
from numpy.typing import NDArray

from autogaze_backend.resampling import cubic_taps

Frames = NDArray[np.uint8]
Video = NDArray[np.float32]

# Pillow's filter, by the number that preprocessor_config.json holds.
_BILINEAR = 2
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
    """(height, width) with the short side at ``edge``; the long side is truncated, as upstream does.

    Raises:
        InvalidInputError: the frame is so long that its resized form would not be worth its memory.
    """
    short, long = min(height, width), max(height, width)
    if long > _MAX_ASPECT * short:
        raise InvalidInputError(
            f"frames of {width}×{height} are more than {_MAX_ASPECT} times longer than wide; crop or split them"
        )
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
    return resize_exact(frames, shortest_edge_size(frames.shape[1], frames.shape[2], edge))


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
    for index, frame in enumerate(np.ascontiguousarray(frames)):
        if frames.shape[3] == 4:
            # RGBX is Pillow's own layout: no copy is made, and the fourth byte is no alpha to blend with.
            image = Image.frombuffer("RGBX", (frames.shape[2], frames.shape[1]), frame, "raw", "RGBX", 0, 1)
        else:
            image = Image.fromarray(frame)
        out[index] = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))[..., :3]
    return out


def normalise(frames: Frames, config: PreprocessingConfig, out: Video | None = None) -> Video:
    """x/127.5 - 1, then mean and std, in float32.

    Args:
        frames: uint8 ``[T, H, W, 3 or 4]``; alpha is dropped.
        config: mean and std.
        out: where to write, float32 ``[T, 3, H, W]``; None makes an array.

    Returns:
        float32 ``[T, 3, H, W]``.
    """
    if out is None:
        out = np.empty((frames.shape[0], 3, *frames.shape[1:3]), np.float32)
    table = normalisation_table(config)
    # Frame by frame, so that the second channel finds the first one's bytes in the cache. Every byte has a
    # place in the table; "clip" only spares numpy a buffer.
    for frame, target in zip(frames, out, strict=True):
        for channel in range(3):
            np.take(table[channel], frame[..., channel], out=target[channel], mode="clip")
    return out


def normalisation_table(config: PreprocessingConfig) -> NDArray[np.float32]:
    """What each byte becomes, float32 ``[3, 256]``: a table instead of arithmetic on every pixel."""
    mean, std = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
    levels = np.arange(256, dtype=np.float32) * np.float32(1 / 127.5) - np.float32(1)
    table: NDArray[np.float32] = (levels - mean[:, None]) / std[:, None]
    return table


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
        video = cubic_taps(width, side).resize(video, axis=-1)
    if height != side:
        video = cubic_taps(height, side).resize(video, axis=-2)
    return video


def preprocess(frames: Frames, config: PreprocessingConfig, side: int) -> Video:
    """The whole path of the resize mode: uint8 ``[T, H, W, 3 or 4]`` to float32 ``[T, 3, side, side]``."""
    resized = resize_shortest_edge(check_frames(frames), config.shortest_edge)
    return resize_to_input(normalise(resized, config), side)
