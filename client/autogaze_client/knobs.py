"""The rules of a request's frames and knobs, in one place for the client, the in-process model and the server."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from autogaze_client._errors import InvalidInputError

__all__ = [
    "check_frames",
    "check_gazing_ratio",
    "check_max_gaze_tokens",
    "check_target_scales",
    "check_task_loss_requirement",
    "check_top_k",
    "check_whole_number",
    "is_single_item_list",
]

_RATIO = "above 0 and at most 1 (1 takes every token): one number, or one for each frame"
_TOKENS = "whole numbers of at least 1, below 2^31: one, or one for each frame"
_REQUIREMENT = (
    "a number, finite and at least 0 (a reconstruction loss: 0.7 is usual; a smaller one keeps more tokens)"
)


class _Frames(Protocol):
    """What is looked at of a clip: an array's type and shape."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...


_Clip = TypeVar("_Clip", bound=_Frames)


def check_frames(frames: _Clip) -> _Clip:
    """Checks a clip's layout and returns it.

    Args:
        frames: uint8 ``[T, H, W, 3]`` RGB or ``[T, H, W, 4]`` RGBA; an array of numpy's or one with its attributes.

    Raises:
        InvalidInputError: another type, rank, channel count, or an empty axis.
    """
    if frames.dtype != np.uint8:
        raise InvalidInputError(
            f"frames are {frames.dtype}; pass uint8 values from 0 to 255 "
            "(of floats in 0..1: (frames * 255).round().astype(np.uint8))"
        )
    shape = list(frames.shape)
    if frames.ndim != 4 or frames.shape[3] not in (3, 4):
        hint = "; add a time axis: frames[None]" if frames.ndim == 3 and frames.shape[2] in (3, 4) else ""
        raise InvalidInputError(
            f"frames have shape {shape}; pass [T, H, W, 3] (RGB) or [T, H, W, 4] (RGBA){hint}"
        )
    if 0 in frames.shape:
        raise InvalidInputError(f"frames have shape {shape}; frames, height and width must be at least 1")
    return frames


def check_gazing_ratio(value: object, frames: int | None) -> NDArray[np.float32]:
    """Checks shares of a frame's tokens, in float32, as they travel and count.

    Args:
        value: a number, a list of one for each frame, or a flat array; an array of one is one number, as on
            the wire, where a list of one is for a clip of one frame.
        frames: frames of the clip; None = not known here.

    Returns:
        float32 ``[1]`` or ``[frames]``, in (0, 1].

    Raises:
        InvalidInputError: a value outside its range or of another type, or a list of another length.
    """
    ratios = []
    for name, item in _items("gazing_ratio", value, frames):
        ratio = _float32(name, item, _RATIO)
        if not 0 < ratio <= 1:
            raise _broken(name, item, _RATIO)
        ratios.append(ratio)
    return np.array(ratios, np.float32)


def check_max_gaze_tokens(value: object, frames: int | None) -> NDArray[np.int64]:
    """Checks caps of a frame's tokens.

    Args:
        value: a whole number, a list of one for each frame, or a flat array; see ``check_gazing_ratio``.
        frames: frames of the clip; None = not known here.

    Returns:
        int64 ``[1]`` or ``[frames]``, at least 1 and below 2^31.

    Raises:
        InvalidInputError: a value outside its range or of another type, or a list of another length.
    """
    items = _items("max_gaze_tokens_each_frame", value, frames)
    return np.array([check_whole_number(name, item, _TOKENS) for name, item in items], np.int64)


def check_target_scales(value: object) -> list[int]:
    """Checks the image sizes of a target encoder's scales: a list or flat array of whole numbers.

    Raises:
        InvalidInputError: it is empty, no list, or holds another thing.
    """
    items = list(value) if _is_list(value) or _is_flat(value) else []  # type: ignore[call-overload]
    if not items:
        raise InvalidInputError(
            f"target_scales is {value!r}; it must be a list of image sizes in pixels, as in [56, 112, 196, 392]"
        )
    rule = "whole numbers of at least 1, in pixels"
    return [check_whole_number(f"target_scales[{index}]", item, rule) for index, item in enumerate(items)]


def check_task_loss_requirement(value: object) -> float:
    """Checks the predicted loss at which a frame stops: one number, finite in float32 and at least 0.

    Raises:
        InvalidInputError: it is not.
    """
    value = _unwrapped(value)
    requirement = _float32("task_loss_requirement", value, _REQUIREMENT)
    if not (np.isfinite(requirement) and requirement >= 0):
        raise _broken("task_loss_requirement", value, _REQUIREMENT)
    return float(value)  # type: ignore[arg-type]  # _float32 saw that it is a number


def check_top_k(value: object) -> int:
    """Checks the fewest fixations that a consumer wants: a whole number of at least 1.

    Raises:
        InvalidInputError: it is not.
    """
    return check_whole_number(
        "top_k", value, "a whole number of at least 1, below 2^31, or None for no minimum"
    )


def check_whole_number(name: str, value: object, rule: str) -> int:
    """Checks for an integer of at least 1 that fits int32.

    Args:
        name: of the knob, for the message.
        value: what was given.
        rule: what it must be, for the message.

    Raises:
        InvalidInputError: it is not.
    """
    value = _unwrapped(value)
    if not isinstance(value, Integral) or isinstance(value, bool | np.bool_) or not 1 <= int(value) < 2**31:
        raise _broken(name, value, rule)
    return int(value)


def is_single_item_list(value: object) -> bool:
    """Whether ``value`` is a list of one, which the wire could not tell from one value for every frame."""
    return _is_list(value) and len(value) == 1  # type: ignore[arg-type]  # a list has a length


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _is_flat(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1


def _items(name: str, value: object, frames: int | None) -> list[tuple[str, object]]:
    """Each value with the name to call it by; as many as the clip has frames, or one for all of them."""
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            of = "" if frames is None else f" for {frames} frames"
            raise InvalidInputError(
                f"{name} has shape {list(value.shape)} ({value.size} values{of}); pass one value, or a flat list "
                "of one for each frame"
            )
        items: list[object] = list(value.reshape(-1))
        if len(items) == 1:
            return [(name, items[0])]
    elif _is_list(value):
        items = list(value)  # type: ignore[call-overload]  # _is_list saw that it is a sequence
    else:
        return [(name, value)]
    if not items:
        raise InvalidInputError(f"{name} is an empty list; pass one value, or one for each frame")
    if frames is not None and len(items) != frames:
        raise InvalidInputError(
            f"{name} has {len(items)} values for {frames} frames; pass one value, or one for each frame "
            "(of a video in windows: for each frame of every window)"
        )
    return [(f"{name}[{index}]", item) for index, item in enumerate(items)]


def _float32(name: str, value: object, rule: str) -> np.float32:
    # A bool is a Real, but nobody means it as a share or a loss.
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise _broken(name, value, rule)
    try:
        with np.errstate(over="ignore"):
            return np.float32(float(value))
    except OverflowError as error:
        raise _broken(name, value, rule) from error


def _unwrapped(value: object) -> object:
    """A 0-d array's only value."""
    return value.reshape(-1)[0] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _broken(name: str, value: object, rule: str) -> InvalidInputError:
    shown = value.item() if isinstance(value, np.generic) else value
    return InvalidInputError(f"{name} is {shown!r}; it must be {rule}")
