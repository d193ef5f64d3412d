"""Streams over the wire: one frame a request, in order, on one correlation id."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from autogaze_client._device_arrays import DeviceArray, as_frames
from autogaze_client._errors import AutoGazeError, InvalidInputError, StreamExpired
from autogaze_client._requests import DeviceFrames
from autogaze_client._transport import AsyncTransport, CallOptions, SequenceStep, Transport
from autogaze_client._wire import (
    START_OUTPUTS,
    STREAM_OUTPUTS,
    GazeOptions,
    Inputs,
    Tensors,
    decode_frame,
    frame_tensors,
)
from autogaze_client.layouts import AutoGazeScaleTokenLayout
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.result import GazeResult, GazeTimings

__all__ = ["AsyncStreamSession", "StreamSession"]

_MODE = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT


class _Conversation:
    """What both sessions share: which request comes next, and what an answer means."""

    def __init__(self, options: GazeOptions, restart: bool, call: CallOptions) -> None:
        if options.inference_mode is not _MODE or options.target_scales is not None:
            raise InvalidInputError(
                "a stream runs in the resize mode without target scales; gaze at clips for others"
            )
        self.options = options
        self.restart = restart
        self.restarts = 0
        # Triton keeps 0 for "no sequence"; random ids keep clients that know nothing of each other apart.
        self.id = secrets.randbelow(2**63 - 1) + 1
        self._first = replace(call, sequence=SequenceStep(self.id, start=True))
        self._next = replace(call, sequence=SequenceStep(self.id))
        self._last = replace(call, sequence=SequenceStep(self.id, end=True))
        self.started = False
        self.closed = False
        self._frames = 0
        self._layouts: tuple[AutoGazeScaleTokenLayout, ...] | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        return STREAM_OUTPUTS if self.started and self._layouts else START_OUTPUTS

    def request(
        self, frame: object, ratio: float | None, requirement: float | None, tokens: int | None
    ) -> tuple[Inputs, CallOptions]:
        if self.closed:
            raise InvalidInputError("the stream is closed; open a new one with client.stream()")
        options = self.options
        if ratio is not None or requirement is not None or tokens is not None:
            options = replace(
                options,
                gazing_ratio=ratio,
                task_loss_requirement=requirement,
                max_gaze_tokens_each_frame=tokens,
            )
        tensors = frame_tensors(_frame(frame), options)
        call = (self._next if self.started else self._first).part(self._frames)
        self._frames += 1
        return tensors, call

    def restarted(self, call: CallOptions, error: StreamExpired) -> CallOptions:
        """The same request as the first of a new stream; raises where the caller did not ask for that."""
        self.started, self._layouts = False, None
        if not self.restart:
            raise error
        self.restarts += 1
        return replace(call, sequence=self._first.sequence)

    def finish(self, inputs: Inputs, outputs: Tensors, started: float) -> GazeResult:
        self.started = True
        _, height, width, _ = inputs["FRAME"].shape
        timings = GazeTimings(request_ms=(time.perf_counter() - started) * 1e3)
        result = decode_frame(outputs, (height, width), self._layouts, timings)
        self._layouts = result.generated.scale_layouts
        return result

    def farewell(self) -> tuple[Inputs, CallOptions] | None:
        """The request that ends the stream: no frame, only the flag; None where nothing was started."""
        started, self.closed = self.started and not self.closed, True
        if not started:
            return None
        empty = frame_tensors(np.zeros((0, 0, 3), np.uint8), self.options, empty=True)
        return empty, self._last.part("end")


def _frame(frame: object) -> NDArray[np.uint8] | DeviceArray:
    array = as_frames(frame)
    if array is None:
        raise InvalidInputError(
            f"the frame is a {type(frame).__name__}; pass uint8 [H, W, 3 or 4] as a numpy, torch or CuPy array"
        )
    return array


class StreamSession:
    """A stream on the server; from ``GazeClient.stream``. Frames go in order, one at a time.

    Example:
        >>> with client.stream(task_loss_requirement=0.7) as stream:  # doctest: +SKIP
        ...     for frame in camera:  # uint8 [H, W, 3 or 4]
        ...         result = stream.push(frame)
    """

    def __init__(
        self,
        transport: Transport,
        model: str,
        options: GazeOptions,
        *,
        restart: bool,
        timeout: float | None,
        call: CallOptions | None = None,
    ) -> None:
        self._transport, self._model, self._timeout = transport, model, timeout
        self._conversation = _Conversation(options, restart, call or CallOptions())

    @property
    def id(self) -> int:
        """The correlation id, the same for the session's life."""
        return self._conversation.id

    @property
    def restarts(self) -> int:
        """How often the stream was started anew because the server had forgotten it."""
        return self._conversation.restarts

    def push(
        self,
        frame: NDArray[np.uint8] | DeviceFrames,
        *,
        gazing_ratio: float | None = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: int | None = None,
    ) -> GazeResult:
        """Chooses the tokens of the next frame.

        Args:
            frame: uint8 ``[H, W, 3 or 4]`` of numpy, torch or CuPy; the size may change from frame to frame.
            gazing_ratio: for this frame; any of the three replaces all three of the session's.
            task_loss_requirement: likewise.
            max_gaze_tokens_each_frame: likewise.

        Raises:
            StreamExpired: the server forgot the stream and ``restart`` is off. The next push starts anew.
            AutoGazeError: as ``GazeClient.gaze``.
        """
        talk = self._conversation
        started = time.perf_counter()
        inputs, call = talk.request(frame, gazing_ratio, task_loss_requirement, max_gaze_tokens_each_frame)
        try:
            outputs = self._transport.infer(self._model, inputs, talk.outputs, self._timeout, call)
        except StreamExpired as error:
            call = talk.restarted(call, error)
            outputs = self._transport.infer(self._model, inputs, talk.outputs, self._timeout, call)
        return talk.finish(inputs, outputs, started)

    def close(self) -> None:
        """Frees the stream's place on the server. A server that is gone, or has forgotten it, is no error."""
        last = self._conversation.farewell()
        if last is None:
            return
        try:
            self._transport.infer(self._model, last[0], STREAM_OUTPUTS, self._timeout, last[1])
        except AutoGazeError:
            return  # the server frees the place by itself when its time is up

    def __enter__(self) -> StreamSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStreamSession:
    """The asyncio twin of ``StreamSession``; from ``AsyncGazeClient.stream``."""

    def __init__(
        self,
        transport: AsyncTransport,
        model: str,
        options: GazeOptions,
        *,
        restart: bool,
        timeout: float | None,
        call: CallOptions | None = None,
    ) -> None:
        self._transport, self._model, self._timeout = transport, model, timeout
        self._conversation = _Conversation(options, restart, call or CallOptions())

    @property
    def id(self) -> int:
        """The correlation id, the same for the session's life."""
        return self._conversation.id

    @property
    def restarts(self) -> int:
        """How often the stream was started anew because the server had forgotten it."""
        return self._conversation.restarts

    async def push(
        self,
        frame: NDArray[np.uint8] | DeviceFrames,
        *,
        gazing_ratio: float | None = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: int | None = None,
    ) -> GazeResult:
        """Chooses the tokens of the next frame; see ``StreamSession.push``."""
        talk = self._conversation
        started = time.perf_counter()
        inputs, call = talk.request(frame, gazing_ratio, task_loss_requirement, max_gaze_tokens_each_frame)
        try:
            outputs = await self._transport.infer(self._model, inputs, talk.outputs, self._timeout, call)
        except StreamExpired as error:
            call = talk.restarted(call, error)
            outputs = await self._transport.infer(self._model, inputs, talk.outputs, self._timeout, call)
        return talk.finish(inputs, outputs, started)

    async def close(self) -> None:
        """Frees the stream's place on the server; see ``StreamSession.close``."""
        last = self._conversation.farewell()
        if last is None:
            return
        try:
            await self._transport.infer(self._model, last[0], STREAM_OUTPUTS, self._timeout, last[1])
        except AutoGazeError:
            return

    async def __aenter__(self) -> AsyncStreamSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
