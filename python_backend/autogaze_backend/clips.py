"""From clips to tokens, and from tokens to fixations in source coordinates."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from autogaze_client._errors import InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.result import GazeResult, GazeTimings, SourceSize
from numpy.typing import NDArray

from autogaze_backend.adaptation import resolve_target_scales
from autogaze_backend.budgets import Budget
from autogaze_backend.generation import FrameTokens
from autogaze_backend.model import GazeModel
from autogaze_backend.outputs import assemble
from autogaze_backend.preprocessing import Frames, check_frames, resize_to_input
from autogaze_backend.requests import Knobs, Remembered
from autogaze_backend.resident import is_resident
from autogaze_backend.scheduling import Row
from autogaze_backend.spec import ModelSpec
from autogaze_backend.tiling import TileLayout

Array = NDArray[Any]


@dataclass(frozen=True)
class PreparedClip:
    """A checked request; its frames are preprocessed in windows when their turn comes.

    Attributes:
        rows: what the engine runs: one row in the resize mode, one a tile else.
        finish: from the rows' tokens to the output.
        mode: of the request.
        size: frames, height and width of the source.
    """

    rows: tuple[Row, ...]
    finish: Callable[[Sequence[Sequence[FrameTokens]]], AutoGazeGenerateOutput]
    mode: AutoGazeInferenceMode
    size: tuple[int, int, int]


def _any_number(tiles: int) -> None:
    """In process the caller's own memory is the limit."""


@dataclass(frozen=True)
class ClipPlan:
    """What the knobs of a request ask of its clip.

    Attributes:
        budget: of every frame.
        mode: how frames become model input.
        target_scales: of the request.
        target_patch_size: likewise.
    """

    budget: Budget
    mode: AutoGazeInferenceMode
    target_scales: tuple[int, ...] | None
    target_patch_size: int | None


def read_plan(spec: ModelSpec, frames: int, tensors: Mapping[str, Array]) -> ClipPlan:
    """What the knobs among a request's tensors ask of a clip of so many frames.

    Raises:
        InvalidInputError: knobs break a rule.
    """
    knobs = Knobs.from_tensors(tensors)
    return ClipPlan(knobs.budget(spec, frames), knobs.mode, knobs.target_scales, knobs.target_patch_size)


def prepare_clip(
    model: GazeModel,
    tensors: Mapping[str, Array],
    check_tiles: Callable[[int], None] = _any_number,
    read: Callable[[int, Mapping[str, Array]], ClipPlan] | None = None,
) -> PreparedClip:
    """Checks a request of ``autogaze_generate``.

    Args:
        model: runs it.
        tensors: of the request, every knob filled in.
        check_tiles: told the tiles of a frame before any is made; raises where they are too many.
        read: ``read_plan`` of the model, or what remembers it.

    Raises:
        InvalidInputError: frames or knobs break a rule.
    """
    frames = check_frames(tensors["FRAMES"])
    spec, size = model.spec, (frames.shape[0], frames.shape[1], frames.shape[2])
    plan = read(len(frames), tensors) if read else read_plan(spec, len(frames), tensors)
    budget = plan.budget
    if plan.mode.is_tiled:
        return _tiled_clip(model, frames, plan, check_tiles)
    target = resolve_target_scales(spec, plan.target_scales, plan.target_patch_size)
    if target is None:
        row = Row(len(frames), lambda start, stop: model.stream_input(frames[start:stop]), budget)
        return PreparedClip((row,), lambda tokens: assemble(spec, tokens), plan.mode, size)
    check_tiles(target.tiles**2)

    def cut(start: int, stop: int) -> Any:
        if is_resident(model.engine):
            preprocessing = model.engine.preprocessing
            return preprocessing.target_tiles(preprocessing.upload(frames[start:stop]), target)
        return target.cut(model.preprocess_exact(frames[start:stop], target.size)[None])

    tiles = TileWindows(cut)

    def row_of(tile: int) -> Row:
        def window(start: int, stop: int) -> Any:
            made = tiles(start, stop)[tile]
            return made if is_resident(model.engine) else resize_to_input(made, spec.input_size)

        return Row(len(frames), window, budget)

    rows = tuple(row_of(tile) for tile in range(target.tiles**2))
    return PreparedClip(rows, lambda tokens: target.stitch(assemble(spec, tokens)), plan.mode, size)


def _tiled_clip(
    model: GazeModel, frames: Frames, plan: ClipPlan, check_tiles: Callable[[int], None]
) -> PreparedClip:
    if plan.target_scales is not None or plan.target_patch_size is not None:
        raise InvalidInputError(
            f"MODE is {plan.mode.code} ({plan.mode.value}) and TARGET_SCALES is {plan.target_scales}; target scales "
            "cut the frame themselves, so use MODE 0 with them"
        )
    layout = TileLayout(plan.mode, frames.shape[1], frames.shape[2], model.spec.input_size)
    check_tiles(layout.count)
    config = model.bundle.preprocessing

    def cut(start: int, stop: int) -> Any:
        preprocessing = model.engine.preprocessing  # type: ignore[attr-defined]
        return preprocessing.tiles(preprocessing.upload(frames[start:stop]), layout)

    tiles = TileWindows(cut)

    def row_of(tile: int) -> Row:
        def window(start: int, stop: int) -> Any:
            # On a device the frames are copied there once for all tiles; a host makes one tile at a time.
            if is_resident(model.engine):
                return tiles(start, stop)[tile]
            return layout.tile(frames[start:stop], tile, config)

        return Row(len(frames), window, plan.budget)

    rows = tuple(row_of(tile) for tile in range(layout.count))
    size = (frames.shape[0], frames.shape[1], frames.shape[2])
    return PreparedClip(rows, lambda tokens: assemble(model.spec, tokens), plan.mode, size)


class TileWindows:
    """Remembers the last window, which every tile of a clip asks for in turn."""

    def __init__(self, cut: Callable[[int, int], Any]) -> None:
        self._cut = cut
        self._range: tuple[int, int] | None = None
        self._tiles: Any = None

    def __call__(self, start: int, stop: int) -> Any:
        """The tiles of a range of frames, float32 ``[tiles, t, 3, h, w]``, on the device that made them."""
        if self._tiles is None or self._range != (start, stop):
            self._range, self._tiles = (start, stop), self._cut(start, stop)
        return self._tiles


CLIP_OUTPUTS = (
    "GAZING_POS",
    "IF_PADDED_GAZING",
    "NUM_GAZING_EACH_FRAME",
    "CONFIDENCES",
    "TASK_LOSS_PREDICTIONS",
    "SCALE_GRIDS",
    "FIXATIONS",
    "SOURCE_SIZE",
)
"""What ``autogaze_generate`` can answer."""


def finished_clip(
    model: GazeModel,
    clip: PreparedClip,
    tokens: Sequence[Sequence[FrameTokens]],
    wanted: Container[str] = CLIP_OUTPUTS,
) -> dict[str, Array] | Exception:
    """A clip's output tensors; what goes wrong in making them is this clip's error alone.

    ``FIXATIONS`` is float32 ``[n, 7]``: frame, centre x, centre y, width, height (fractions of the source frame),
    confidence, cells per side of the token's scale. In generation order; in tiled modes by frame, then by confidence.
    Padding is left out.

    Args:
        model: that ran it.
        clip: what was run.
        tokens: of its rows.
        wanted: outputs that the caller asks for, of ``CLIP_OUTPUTS``.
    """
    try:
        generated = clip.finish(tokens)
        tensors = token_tensors(generated)
        if "FIXATIONS" in wanted:
            _, height, width = clip.size
            tensors["FIXATIONS"] = locate(generated, clip.mode, height, width, model.spec.input_size)
        tensors["SOURCE_SIZE"] = np.array(clip.size, np.int32)
        return {name: array for name, array in tensors.items() if name in wanted}
    except Exception as error:
        return error


def token_tensors(generated: AutoGazeGenerateOutput) -> dict[str, Array]:
    """The output tensors that hold the tokens."""
    return {
        "GAZING_POS": generated.gazing_pos,
        "IF_PADDED_GAZING": generated.if_padded_gazing,
        "NUM_GAZING_EACH_FRAME": generated.num_gazing_each_frame,
        "CONFIDENCES": generated.confidences,
        "TASK_LOSS_PREDICTIONS": generated.task_loss_predictions,
        "SCALE_GRIDS": np.array([layout.grid for layout in generated.scale_layouts], np.int32),
    }


def locate(
    generated: AutoGazeGenerateOutput, mode: AutoGazeInferenceMode, height: int, width: int, input_size: int
) -> NDArray[np.float32]:
    """The chosen cells of a clip in source coordinates, float32 ``[n, 7]``; see ``finished_clip``."""
    if mode.is_tiled:
        return TileLayout(mode, height, width, input_size).fixations(generated)
    return generated.fixations(0)


def gaze(model: GazeModel, frames: Frames, knobs: Knobs) -> GazeResult:
    """What the ensemble does to one clip, in this process.

    Args:
        model: runs it.
        frames: uint8 ``[T, H, W, 3 or 4]``.
        knobs: the request's.

    Raises:
        InvalidInputError: frames or knobs break a rule.
    """
    (answer,) = gaze_clips(model, [frames], knobs)
    if isinstance(answer, Exception):
        raise answer
    return answer


def gaze_clips(model: GazeModel, clips: Sequence[Frames], knobs: Knobs) -> list[GazeResult | Exception]:
    """What the ensemble does to some clips whose rows share the engine's batches.

    Args:
        model: runs them.
        clips: uint8 ``[T, H, W, 3 or 4]`` each; sizes and lengths may differ.
        knobs: of every one.

    Returns:
        Each clip's result, or the error that it alone gets.
    """
    started = time.perf_counter()
    try:
        said = knobs.to_tensors()
    except Exception as error:
        return [error] * len(clips)
    # Once for each length of clip.
    read = Remembered(partial(read_plan, model.spec))
    prepared: dict[int, PreparedClip] = {}
    answers: dict[int, GazeResult | Exception] = {}
    for index, frames in enumerate(clips):
        try:
            prepared[index] = prepare_clip(model, {"FRAMES": frames, **said}, read=read)
        except Exception as error:
            answers[index] = error
    owners = [(index, row) for index, clip in prepared.items() for row in range(len(clip.rows))]
    tokens: dict[int, dict[int, Sequence[FrameTokens]]] = {index: {} for index in prepared}
    for position, result in model.generate_rows([prepared[index].rows[row] for index, row in owners]):
        index, row = owners[position]
        if isinstance(result, Exception):
            answers[index] = result
            continue
        tokens[index][row] = result
        if len(tokens[index]) == len(prepared[index].rows):
            size = SourceSize(*clips[index].shape[:3])
            timings = GazeTimings(request_ms=(time.perf_counter() - started) * 1e3)
            try:
                generated = prepared[index].finish(
                    [tokens[index].pop(i) for i in range(len(prepared[index].rows))]
                )
                cells = locate(generated, knobs.mode, size.height, size.width, model.spec.input_size)
                answers[index] = GazeResult(generated, cells, knobs.mode, size, timings)
            except Exception as error:
                answers[index] = error
    return [answers[index] for index in range(len(clips))]
