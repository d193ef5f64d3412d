"""A clip request as it travels: the wire's tensors, checked and given meaning (docs/protocol.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from autogaze_client._errors import InvalidInputError
from autogaze_client.knobs import check_top_k
from autogaze_client.modes import AutoGazeInferenceMode
from numpy.typing import NDArray

from autogaze_backend.budgets import Budget, resolve_budget
from autogaze_backend.spec import ModelSpec

Array = NDArray[Any]

UNSET = -1

_FLOATS = ("GAZING_RATIO", "TASK_LOSS_REQUIREMENT")

_PIXELS = frozenset({"FRAME", "FRAMES", "VIDEO"})

# Different knobs that are remembered, and the bytes of them up to which they are.
_REMEMBERED, _MOST_BYTES = 1024, 4096

Meaning = TypeVar("Meaning")


@dataclass(frozen=True)
class Knobs:
    """The optional inputs of a request; None where the caller left one out.

    Attributes:
        mode: how frames become model input.
        gazing_ratio: float32, one or one a frame.
        task_loss_requirement: the stop.
        max_gaze_tokens: int64, one or one a frame.
        top_k: the fewest tokens that a frame's budget allows.
        target_scales: sizes of a downstream encoder's scales, ascending.
        target_patch_size: its patch.
    """

    mode: AutoGazeInferenceMode = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT
    gazing_ratio: NDArray[np.float32] | None = None
    task_loss_requirement: float | None = None
    max_gaze_tokens: NDArray[np.int64] | None = None
    top_k: int | None = None
    target_scales: tuple[int, ...] | None = None
    target_patch_size: int | None = None

    def budget(self, spec: ModelSpec, frames: int) -> Budget:
        """The limits that they ask for a clip of so many frames.

        Raises:
            InvalidInputError: a knob breaks a rule of ``resolve_budget``.
        """
        budget = resolve_budget(
            spec,
            frames,
            gazing_ratio=self.gazing_ratio,
            task_loss_requirement=self.task_loss_requirement,
            max_gaze_tokens_each_frame=self.max_gaze_tokens,
        )
        if self.top_k is None:
            return budget
        return budget.at_least(min(self.top_k, spec.tokens_per_frame))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> Knobs:
        """Reads the knobs; a tensor that is absent, empty, all NaN or all −1 is unset.

        Raises:
            InvalidInputError: another type than the wire's, an unknown mode, or more values than a scalar knob takes.
        """
        mode = _scalar(tensors, "MODE")
        requirement = _scalar(tensors, "TASK_LOSS_REQUIREMENT")
        scales = _values(tensors, "TARGET_SCALES")
        tokens = _values(tensors, "MAX_GAZE_TOKENS")
        top_k = _scalar(tensors, "TOP_K")
        patch = _scalar(tensors, "TARGET_PATCH_SIZE")
        return cls(
            mode=cls.mode if mode is None else AutoGazeInferenceMode.from_code(int(mode)),
            gazing_ratio=_values(tensors, "GAZING_RATIO"),
            task_loss_requirement=None if requirement is None else float(requirement),
            max_gaze_tokens=None if tokens is None else tokens.astype(np.int64),
            top_k=None if top_k is None else check_top_k(int(top_k)),
            target_scales=None if scales is None else tuple(int(scale) for scale in scales),
            target_patch_size=None if patch is None else int(patch),
        )

    def to_tensors(self) -> dict[str, Array]:
        """Every knob as a tensor, unset ones filled in: the batcher groups only requests of equal sets."""

        def floats(values: object) -> Array:
            return np.atleast_1d(np.asarray(math.nan if values is None else values, np.float32))

        def integers(values: object) -> Array:
            return np.atleast_1d(np.asarray(UNSET if values is None else values, np.int32))

        return {
            "MODE": integers(self.mode.code),
            "GAZING_RATIO": floats(self.gazing_ratio),
            "TASK_LOSS_REQUIREMENT": floats(self.task_loss_requirement),
            "MAX_GAZE_TOKENS": integers(self.max_gaze_tokens),
            "TOP_K": integers(self.top_k),
            "TARGET_SCALES": integers(self.target_scales),
            "TARGET_PATCH_SIZE": integers(self.target_patch_size),
        }


def _values(tensors: Mapping[str, Array], name: str) -> Array | None:
    """The tensor's values, or None where it is unset."""
    values = tensors.get(name)
    if values is None or values.size == 0:
        return None
    dtype = np.float32 if name in _FLOATS else np.int32
    if values.dtype != dtype:
        raise InvalidInputError(f"{name} is {values.dtype}; it must be {np.dtype(dtype)}")
    values = values.reshape(-1)
    unset = np.isnan(values) if values.dtype.kind == "f" else values == UNSET
    return None if unset.all() else values


def _scalar(tensors: Mapping[str, Array], name: str) -> float | None:
    values = _values(tensors, name)
    if values is None:
        return None
    if values.size != 1:
        raise InvalidInputError(f"{name} has {values.size} values; it takes one")
    return float(values[0])


class Remembered(Generic[Meaning]):
    """What knobs mean, worked out once for equal ones: callers mostly send the same again. For several threads.

    Args:
        read: from the frames of a clip and the tensors of its request to their meaning, which must hold no view of a
            tensor: its memory is the request's. What it raises is not remembered.
    """

    def __init__(self, read: Callable[[int, Mapping[str, Array]], Meaning]) -> None:
        self._read = read
        self._known: dict[tuple[Any, ...], Meaning] = {}

    def __len__(self) -> int:
        """Different knobs that are remembered."""
        return len(self._known)

    def __call__(self, frames: int, tensors: Mapping[str, Array]) -> Meaning:
        """The meaning of a request's knobs."""
        knobs = [(name, array) for name, array in tensors.items() if name not in _PIXELS]
        if sum([array.nbytes for _, array in knobs]) > _MOST_BYTES:
            return self._read(frames, tensors)
        key = (frames, *[(name, array.dtype.str, array.tobytes()) for name, array in knobs])
        known = self._known.get(key)
        if known is None:
            known = self._read(frames, tensors)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return known
