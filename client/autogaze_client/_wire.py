"""The ensemble's tensors: from arguments, and to a result. Pure; specified in ``docs/protocol.md``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._device_arrays import DeviceArray
from autogaze_client._errors import AutoGazeError, InferenceError, InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.knobs import (
    check_frames,
    check_gazing_ratio,
    check_max_gaze_tokens,
    check_target_scales,
    check_task_loss_requirement,
    check_top_k,
    check_whole_number,
    is_single_item_list,
)
from autogaze_client.layouts import AutoGazeScaleTokenLayout, layouts_from_grids
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.result import GazeResult, GazeTimings, SourceSize

__all__ = [
    "OUTPUTS",
    "START_OUTPUTS",
    "STREAM_OUTPUTS",
    "GazeOptions",
    "Inputs",
    "Tensors",
    "clip_tensors",
    "decode_frame",
    "decode_result",
    "frame_tensors",
    "video_tensors",
]

Tensors = Mapping[str, NDArray[Any]]
"""Tensors by their name on the wire."""

Inputs = Mapping[str, NDArray[Any] | DeviceArray]
"""Inputs of a request by their name on the wire; ``np.asarray`` brings those of a CUDA device to the host."""

OUTPUTS: Mapping[str, type[np.generic]] = {
    "GAZING_POS": np.int64,
    "IF_PADDED_GAZING": np.bool_,
    "NUM_GAZING_EACH_FRAME": np.int64,
    "CONFIDENCES": np.float32,
    "TASK_LOSS_PREDICTIONS": np.float32,
    "FIXATIONS": np.float32,
    "SOURCE_SIZE": np.int32,
    "SCALE_GRIDS": np.int32,
}
"""The ensemble's outputs."""

STREAM_OUTPUTS = ("GAZING_POS", "IF_PADDED_GAZING", "CONFIDENCES", "TASK_LOSS_PREDICTIONS")
"""What a stream asks for at every frame; the rest follows from it, and each tensor costs the server time."""

START_OUTPUTS = (*STREAM_OUTPUTS, "SCALE_GRIDS")
"""What it asks for at its first frame: the scales stay those of the server's model while the stream lives."""

# gRPC and protobuf stop at 2^31 - 1 bytes a message; the rest of the request fits in the margin.
_MAX_PAYLOAD_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class GazeOptions:
    """The knobs of a request. None = not sent, so the checkpoint's own setting holds.

    A ratio without a requirement turns the task-loss stop off, a requirement without a cap means a cap of N
    tokens, both mean both, neither means the checkpoint's configuration. ``max_gaze_tokens_each_frame`` is a
    cap as the ratio is; of two caps the smaller holds.

    Attributes:
        mode: how a frame becomes the model's input.
        gazing_ratio: share of the N tokens to choose at most, in (0, 1]; one value, or one a frame.
        task_loss_requirement: stop once the predicted reconstruction loss is at or below this; >= 0.
        max_gaze_tokens_each_frame: tokens to choose at most; one value, or one a frame; >= 1.
        target_scales: image sizes in pixels of the scales to adapt to; goes with ``target_patch_size``.
        target_patch_size: patch size in pixels of those scales; goes with ``target_scales``.
        top_k: fixations that the consumer wants at least, >= 1; raises the budget, never truncates.

    Raises:
        InvalidInputError: a value breaks its rule.
    """

    mode: AutoGazeInferenceMode | str = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT
    gazing_ratio: float | Sequence[float] | NDArray[Any] | None = None
    task_loss_requirement: float | None = None
    max_gaze_tokens_each_frame: int | Sequence[int] | NDArray[Any] | None = None
    target_scales: Sequence[int] | None = None
    target_patch_size: int | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", AutoGazeInferenceMode.parse(self.mode))
        self.tensors(None)

    @property
    def inference_mode(self) -> AutoGazeInferenceMode:
        """The parsed mode."""
        return AutoGazeInferenceMode.parse(self.mode)

    def tensors(self, frames: int | None) -> dict[str, NDArray[Any]]:
        """The knobs as input tensors with a leading batch dimension of 1.

        Args:
            frames: frames of the clip, which lists must match; None = only the server knows.

        Raises:
            InvalidInputError: a value breaks its rule, or a list has another length than the clip.
        """
        tensors: dict[str, NDArray[Any]] = {"MODE": np.array([[self.inference_mode.code]], np.int32)}
        if self.gazing_ratio is not None:
            tensors["GAZING_RATIO"] = check_gazing_ratio(self.gazing_ratio, frames)[None]
        if self.task_loss_requirement is not None:
            requirement = check_task_loss_requirement(self.task_loss_requirement)
            tensors["TASK_LOSS_REQUIREMENT"] = np.array([[requirement]], np.float32)
        if self.max_gaze_tokens_each_frame is not None:
            caps = check_max_gaze_tokens(self.max_gaze_tokens_each_frame, frames)
            tensors["MAX_GAZE_TOKENS"] = caps.astype(np.int32)[None]
        if self.top_k is not None:
            tensors["TOP_K"] = np.array([[check_top_k(self.top_k)]], np.int32)
        if (self.target_scales is None) != (self.target_patch_size is None):
            raise InvalidInputError(
                f"target_scales is {self.target_scales!r} and target_patch_size is "
                f"{self.target_patch_size!r}; "
                "they describe one target model: pass both or neither"
            )
        if self.target_scales is not None:
            sizes = check_target_scales(self.target_scales)
            rule = "a whole number of at least 1, in pixels"
            patch = check_whole_number("target_patch_size", self.target_patch_size, rule)
            tensors["TARGET_SCALES"] = np.array([sizes], np.int32)
            tensors["TARGET_PATCH_SIZE"] = np.array([[patch]], np.int32)
        return tensors

    @cached_property
    def frame_knobs(self) -> Tensors:
        """The knobs of a stream's frame: all are always sent, so that streams share batches; it has only one mode.

        Made once and read-only, since a stream sends them with every frame.

        Raises:
            InvalidInputError: as ``tensors`` of one frame.
        """
        unset = {name: np.full((1, 1), value) for name, value in _UNSET.items()}
        knobs = {**unset, **self.tensors(1)}
        del knobs["MODE"]
        for tensor in knobs.values():
            tensor.flags.writeable = False
        return knobs


def clip_tensors(
    frames: NDArray[np.uint8] | DeviceArray, options: GazeOptions
) -> dict[str, NDArray[Any] | DeviceArray]:
    """Inputs of a request for decoded frames.

    Args:
        frames: uint8 ``[T, H, W, 3 or 4]``, RGB or RGBA, on the host or on a CUDA device.
        options: the knobs.

    Raises:
        InvalidInputError: the frames are of another type or shape, or too large for one request.
    """
    _check_clip(frames)
    return {"FRAMES": _with_batch(frames), **options.tensors(frames.shape[0])}


def _check_clip(frames: NDArray[np.uint8] | DeviceArray) -> None:
    check_frames(frames)
    _check_payload(frames.nbytes, f"{frames.shape[0]} frames", "send fewer frames a request")


def _with_batch(values: NDArray[np.uint8] | DeviceArray) -> NDArray[np.uint8] | DeviceArray:
    if isinstance(values, DeviceArray):
        return values.reshape(1, *values.shape)
    batch: NDArray[np.uint8] = np.ascontiguousarray(values)[None]
    return batch


_UNSET: Mapping[str, Any] = {
    "GAZING_RATIO": np.float32(math.nan),
    "TASK_LOSS_REQUIREMENT": np.float32(math.nan),
    "MAX_GAZE_TOKENS": np.int32(-1),
    "TOP_K": np.int32(-1),
}


def frame_tensors(
    frame: NDArray[np.uint8] | DeviceArray, options: GazeOptions, *, empty: bool = False
) -> dict[str, NDArray[Any] | DeviceArray]:
    """Inputs of a request of ``autogaze_stream``.

    Args:
        frame: uint8 ``[H, W, 3 or 4]``, on the host or on a CUDA device.
        options: the knobs.
        empty: allows a frame of no pixels, which only ends a stream.

    Raises:
        InvalidInputError: the frame is of another type or shape.
    """
    if frame.ndim != 3 and not empty:
        raise InvalidInputError(
            f"the frame has shape {list(frame.shape)}; it must be [H, W, 3] (RGB) or [H, W, 4] (RGBA)"
        )
    if not empty:
        _check_clip(frame.reshape(1, *frame.shape))
    return {"FRAME": _with_batch(frame), **options.frame_knobs}


def video_tensors(video: bytes, options: GazeOptions) -> dict[str, NDArray[Any]]:
    """Inputs of a request for an encoded video file, which the server decodes.

    Raises:
        InvalidInputError: it is empty, or too large for one request, or a knob is a list of one: on the wire
            that is one value for every frame, and nobody here knows how many the video has.
    """
    if not video:
        raise InvalidInputError("the encoded video has 0 bytes; pass the content of a video file")
    _check_payload(len(video), "the encoded video", "pass its path, so that it is sent in windows")
    for name in ("gazing_ratio", "max_gaze_tokens_each_frame"):
        value = getattr(options, name)
        if is_single_item_list(value):
            raise InvalidInputError(
                f"{name} is {value!r}, but how many frames the encoded video has is not known before the server "
                f"decodes it; pass {value[0]!r} for every frame"
            )
    return {"VIDEO": np.frombuffer(video, np.uint8)[None], **options.tensors(None)}


def _check_payload(size: int, what: str, remedy: str) -> None:
    if size > _MAX_PAYLOAD_BYTES:
        raise InvalidInputError(
            f"{what} have {size} bytes; a gRPC request holds at most {_MAX_PAYLOAD_BYTES}: {remedy}"
        )


def decode_result(outputs: Tensors, mode: AutoGazeInferenceMode, timings: GazeTimings) -> GazeResult:
    """The result of a response.

    Args:
        outputs: every tensor of ``OUTPUTS``, with its leading batch dimension of 1.
        mode: of the request.
        timings: of the request.

    Raises:
        InferenceError: a tensor is missing, or the tensors contradict each other: the server is of another
            version, or broken.
    """
    clip = _unbatched(outputs, OUTPUTS)
    if clip["SOURCE_SIZE"].shape != (3,):
        raise InferenceError(f"SOURCE_SIZE has {clip['SOURCE_SIZE'].size} values; it must be T, H, W")
    frames, height, width = (int(value) for value in clip["SOURCE_SIZE"])
    try:
        return GazeResult(
            generated=AutoGazeGenerateOutput(
                gazing_pos=clip["GAZING_POS"],
                if_padded_gazing=clip["IF_PADDED_GAZING"],
                num_gazing_each_frame=clip["NUM_GAZING_EACH_FRAME"],
                confidences=clip["CONFIDENCES"],
                task_loss_predictions=clip["TASK_LOSS_PREDICTIONS"],
                scale_layouts=layouts_from_grids(clip["SCALE_GRIDS"].tolist()),
            ),
            fixations=clip["FIXATIONS"],
            mode=mode,
            source_size=SourceSize(frames, height, width),
            timings=timings,
        )
    except AutoGazeError as error:
        raise InferenceError(f"the response contradicts itself: {error}") from error


def decode_frame(
    outputs: Tensors,
    size: tuple[int, int],
    layouts: tuple[AutoGazeScaleTokenLayout, ...] | None,
    timings: GazeTimings,
) -> GazeResult:
    """The result of a frame of a stream.

    Args:
        outputs: every tensor of ``STREAM_OUTPUTS``, or of ``START_OUTPUTS``, with its leading batch dimension of 1.
        size: height and width of the frame that was sent.
        layouts: the stream's; None at its first frame.
        timings: of the request.

    Raises:
        InferenceError: as ``decode_result``.
    """
    frame = _unbatched(outputs, STREAM_OUTPUTS if layouts is not None else START_OUTPUTS)
    if layouts is None:
        layouts = layouts_from_grids(frame["SCALE_GRIDS"].tolist())
    if not layouts:
        raise InferenceError(
            "the response contradicts itself: SCALE_GRIDS names no scale, but a frame was sent"
        )
    positions = frame["GAZING_POS"]
    if not len(positions):
        raise InferenceError("the response contradicts itself: GAZING_POS has no row, but a frame was sent")
    try:
        generated = AutoGazeGenerateOutput(
            gazing_pos=positions,
            if_padded_gazing=frame["IF_PADDED_GAZING"],
            num_gazing_each_frame=np.array([positions.shape[-1]]),
            confidences=frame["CONFIDENCES"],
            task_loss_predictions=frame["TASK_LOSS_PREDICTIONS"],
            scale_layouts=layouts,
        )
    except AutoGazeError as error:
        raise InferenceError(f"the response contradicts itself: {error}") from error
    return GazeResult._of_one_row(
        generated, AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT, SourceSize(1, *size), timings
    )


def _unbatched(outputs: Tensors, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        dtype, tensor = OUTPUTS[name], outputs.get(name)
        if tensor is None:
            raise InferenceError(
                f"the response lacks {name}; the server's model repository is of another version "
                "than this client"
            )
        if tensor.ndim < 2 or tensor.shape[0] != 1 or tensor.dtype != dtype:
            raise InferenceError(
                f"{name} came as {tensor.dtype} {list(tensor.shape)}; it must be {np.dtype(dtype)} "
                "with a leading batch dimension of 1: the server is of another version than this client"
            )
        found[name] = tensor[0]
    return found
