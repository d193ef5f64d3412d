"""Input node, engine, output node: the composable pipeline (seed: tensor pipeline; spec: pipeline §6)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from autogaze_client._errors import InvalidInputError
from autogaze_client.generated import AutoGazeGenerateOutput
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.nodes.clips import AutoGazeClip, AutoGazeRgbaClip, AutoGazeTensorClip
from autogaze_client.nodes.engines import patch_diff_result
from autogaze_client.nodes.packets import AutoGazePipelinePacket
from autogaze_client.nodes.pipeline import AutoGazePipeline, points_of
from autogaze_client.nodes.realtime import DEFAULT_REALTIME_TOP_K
from autogaze_client.readout import _checks
from autogaze_client.readout.patch_diff import AutoGazeSparseMaskSource
from autogaze_client.result import GazeResult

__all__ = [
    "AutoGazeInputNode",
    "AutoGazeOutputNode",
    "AutoGazeTensorPipeline",
    "AutoGazeTensorPipelineConfig",
    "FnOutputNode",
    "RgbaClipInput",
    "TensorClipInput",
    "VecOutputNode",
]

_Clip = TypeVar("_Clip", AutoGazeRgbaClip, AutoGazeTensorClip)
_Input = TypeVar("_Input", bound="_ClipQueue")  # type: ignore[type-arg]
_RESIZE = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT


class AutoGazeInputNode(Protocol):
    """Gives clips one by one."""

    def next_clip(self) -> AutoGazeClip | None:
        """The next clip; None when there is none."""


class AutoGazeOutputNode(Protocol):
    """Takes packets: to memory, a renderer, a disk, a codec."""

    def write(self, packet: AutoGazePipelinePacket) -> None:
        """Takes one; an error it raises ends the run."""


class _ClipQueue(Generic[_Clip]):
    """Clips, first in, first out."""

    def __init__(self) -> None:
        self._clips: deque[_Clip] = deque()

    def push_clip(self, clip: _Clip) -> None:
        """Appends a clip."""
        self._clips.append(clip)

    def with_clip(self: _Input, clip: _Clip) -> _Input:
        """Appends a clip and gives the node, to chain calls."""
        self.push_clip(clip)
        return self

    def next_clip(self) -> _Clip | None:
        """Takes the oldest clip; None when there is none."""
        return self._clips.popleft() if self._clips else None

    def __len__(self) -> int:
        return len(self._clips)


class TensorClipInput(_ClipQueue[AutoGazeTensorClip]):
    """Normalised tensors ``[B, T, 3, H, W]``, first in, first out."""


class RgbaClipInput(_ClipQueue[AutoGazeRgbaClip]):
    """RGBA clips, first in, first out."""


class VecOutputNode:
    """Collects packets."""

    def __init__(self) -> None:
        self._packets: list[AutoGazePipelinePacket] = []

    @property
    def packets(self) -> tuple[AutoGazePipelinePacket, ...]:
        """Those written so far."""
        return tuple(self._packets)

    def write(self, packet: AutoGazePipelinePacket) -> None:
        """Keeps a packet."""
        self._packets.append(packet)

    def into_packets(self) -> list[AutoGazePipelinePacket]:
        """Hands the packets over; none are left."""
        taken, self._packets = self._packets, []
        return taken


class FnOutputNode:
    """Calls a function with each packet; what it raises ends the run."""

    def __init__(self, function: Callable[[AutoGazePipelinePacket], None]) -> None:
        self._function = function

    def write(self, packet: AutoGazePipelinePacket) -> None:
        """Calls the function."""
        self._function(packet)


@dataclass(frozen=True, slots=True)
class AutoGazeTensorPipelineConfig:
    """What to make of each clip. With no ``emit`` flag the model does not run.

    Attributes:
        mask_source: the model, or differences between frames.
        mode: how frames become the model's input.
        top_k: fixations wanted at least.
        emit_traces: whether packets hold traces.
        emit_generated: whether they hold tokens (the model in the resize mode only).
        emit_readout_points: whether they hold points.
    """

    mask_source: AutoGazeSparseMaskSource = field(default_factory=AutoGazeSparseMaskSource)
    mode: AutoGazeInferenceMode = _RESIZE
    top_k: int = DEFAULT_REALTIME_TOP_K
    emit_traces: bool = False
    emit_generated: bool = False
    emit_readout_points: bool = False

    def with_mask_source(self, source: AutoGazeSparseMaskSource) -> AutoGazeTensorPipelineConfig:
        """A copy with another mask source."""
        return replace(self, mask_source=source)

    def with_mode(self, mode: AutoGazeInferenceMode | str) -> AutoGazeTensorPipelineConfig:
        """A copy with another mode."""
        return replace(self, mode=AutoGazeInferenceMode.parse(mode))

    def with_top_k(self, top_k: int) -> AutoGazeTensorPipelineConfig:
        """A copy with another number of fixations."""
        return replace(self, top_k=top_k)

    def with_emit_traces(self, emit: bool) -> AutoGazeTensorPipelineConfig:
        """A copy that emits traces, or not."""
        return replace(self, emit_traces=emit)

    def with_emit_generated(self, emit: bool) -> AutoGazeTensorPipelineConfig:
        """A copy that emits tokens, or not."""
        return replace(self, emit_generated=emit)

    def with_emit_readout_points(self, emit: bool) -> AutoGazeTensorPipelineConfig:
        """A copy that emits points, or not."""
        return replace(self, emit_readout_points=emit)

    @property
    def needs_gaze(self) -> bool:
        """Whether anything is asked for that takes work."""
        return self.emit_traces or self.emit_generated or self.emit_readout_points

    def check(self) -> None:
        """Refuses what cannot be made.

        Raises:
            InvalidInputError: tokens of tiles or of frame differences, or a top_k below 1.
        """
        _checks.count("top_k", self.top_k, 1)
        if self.emit_generated and (self.mode.is_tiled or self.mask_source.is_patch_diff()):
            what = "patch-diff" if self.mask_source.is_patch_diff() else f"mode {self.mode.value}"
            raise InvalidInputError(
                f"emit_generated with {what}: only the model in mode 'resize' has ids of whole frames; "
                "use emit_traces or emit_readout_points"
            )


class AutoGazeTensorPipeline:
    """Takes clips from an input node, gazes at them, and writes packets to an output node.

    Args:
        pipeline: the engine with its settings.
        input_node: gives clips.
        output_node: takes packets.
        config: what to make of them.

    Example:
        >>> source = RgbaClipInput().with_clip(AutoGazeRgbaClip(np.zeros((2, 28, 28, 4), np.uint8)))
        >>> graph = AutoGazeTensorPipeline(AutoGazePipeline(PatchDiffEngine()), source, VecOutputNode())
        >>> graph = graph.with_config(AutoGazeTensorPipelineConfig().with_emit_traces(True))
        >>> graph.run_next(), graph.run_next(), len(graph.output_node.packets)
        (True, False, 1)
    """

    def __init__(
        self,
        pipeline: AutoGazePipeline,
        input_node: AutoGazeInputNode,
        output_node: AutoGazeOutputNode,
        config: AutoGazeTensorPipelineConfig | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.input_node = input_node
        self.output_node = output_node
        self.config = config or AutoGazeTensorPipelineConfig()

    def with_config(self, config: AutoGazeTensorPipelineConfig) -> AutoGazeTensorPipeline:
        """The same nodes with another config."""
        return AutoGazeTensorPipeline(self.pipeline, self.input_node, self.output_node, config)

    def run_next(self) -> bool:
        """Runs the next clip and writes its packet; False when there is none.

        Raises:
            InvalidInputError: the config asks for what cannot be made; the clip then stays in its queue.
            AutoGazeError: the engine failed.
        """
        self.config.check()
        clip = self.input_node.next_clip()
        if clip is None:
            return False
        self.output_node.write(self._packet(clip))
        return True

    async def run_next_async(self) -> bool:
        """``run_next``, with the engine in a thread, so that an event loop does not wait."""
        self.config.check()
        clip = self.input_node.next_clip()
        if clip is None:
            return False
        self.output_node.write(await asyncio.to_thread(self._packet, clip))
        return True

    def _packet(self, clip: AutoGazeClip) -> AutoGazePipelinePacket:
        config = self.config
        if not config.needs_gaze:
            return AutoGazePipelinePacket(clip, config.mode, config.top_k)
        results = self._results(clip)
        traces = None
        if config.emit_traces or config.emit_readout_points:
            traces = tuple(result.trace for result in results)
        return AutoGazePipelinePacket(
            clip,
            config.mode,
            config.top_k,
            traces=traces if config.emit_traces else None,
            generated=join_rows([result.generated for result in results]) if config.emit_generated else None,
            readout_points=points_of(traces or ()) if config.emit_readout_points else None,
            scale_layouts=results[0].generated.scale_layouts,
        )

    def _results(self, clip: AutoGazeClip) -> Sequence[GazeResult]:
        config = self.config.mask_source.config
        if config is None:
            return self.pipeline.gaze_clip(clip, self.config.mode, self.config.top_k)
        video = clip.tensor()
        return [patch_diff_result(video[row : row + 1], config) for row in range(clip.batch)]


def join_rows(parts: Iterable[AutoGazeGenerateOutput]) -> AutoGazeGenerateOutput:
    """Outputs of one row each as one output; rows share the slots of the longest in each frame, the rest padded."""
    outputs = list(parts)
    if len(outputs) == 1:
        return outputs[0]
    counts = np.stack([output.num_gazing_each_frame for output in outputs])
    slots = counts.max(axis=0)
    starts = np.cumsum(slots) - slots
    n = outputs[0].num_vision_tokens_each_frame
    shape = (len(outputs), int(slots.sum()))
    frame_of_slot = np.repeat(np.arange(len(slots)), slots)
    positions = np.broadcast_to(n * (frame_of_slot + 1), shape).copy()
    padded = np.ones(shape, np.bool_)
    confidences = np.zeros(shape, np.float32)
    losses = np.full(shape, np.nan, np.float32)
    for row, output in enumerate(outputs):
        own = output.num_gazing_each_frame
        place = starts[output.frame_of_slot] + np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
        positions[row, place] = output.gazing_pos[0]
        padded[row, place] = output.if_padded_gazing[0]
        confidences[row, place] = output.confidences[0]
        losses[row, place] = output.task_loss_predictions[0]
    return AutoGazeGenerateOutput(positions, padded, slots, confidences, losses, outputs[0].scale_layouts)
