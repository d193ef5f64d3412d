"""One page's gaze: its stream on the server, and its last frame for patch differences."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autogaze_client._async_client import AsyncGazeClient
from autogaze_client._errors import DeadlineExceededError, ServerUnavailableError
from autogaze_client._stream import AsyncStreamSession
from autogaze_client.nodes.engines import PatchDiffEngine
from autogaze_client.readout.patch_diff import AutoGazePatchDiffConfig
from autogaze_client.result import GazeResult
from autogaze_client.viewer.messages import FrameRequest

__all__ = ["LOST", "ViewerSession"]

LOST = (ServerUnavailableError, DeadlineExceededError)
"""Errors that mean that the server is away."""

_TIMEOUT_SECONDS = 20.0
# Differences of neighbouring frames are small: the slider's default of 0.45 becomes 0.15.
_THRESHOLD_OF_REQUIREMENT = 1 / 3


class ViewerSession:
    """Gazes at the frames of one page, one at a time.

    Args:
        connect: makes a client of the server.
    """

    def __init__(self, connect: Callable[[], AsyncGazeClient]) -> None:
        self._connect = connect
        self._client: AsyncGazeClient | None = None
        self._stream: AsyncStreamSession | None = None
        self._previous: NDArray[np.uint8] | None = None

    async def gaze(self, request: FrameRequest) -> GazeResult:
        """The gaze on a frame.

        Raises:
            AutoGazeError: the server failed; after one of ``LOST`` the next frame connects anew.
        """
        if request.restart:
            await self._end_stream()
            self._previous = None
        previous, self._previous = self._previous, request.frame
        if request.patch_diff:
            frames = [request.frame]
            if previous is not None and previous.shape == request.frame.shape:
                frames.insert(0, previous)
            engine = PatchDiffEngine(
                AutoGazePatchDiffConfig(threshold=request.requirement * _THRESHOLD_OF_REQUIREMENT)
            )
            return await asyncio.to_thread(engine.gaze, np.stack(frames))
        try:
            if request.mode.is_tiled:
                return await self._connected().gaze(
                    request.frame[None],
                    mode=request.mode,
                    task_loss_requirement=request.requirement,
                    timeout=_TIMEOUT_SECONDS,
                )
            return await self._streaming().push(request.frame, task_loss_requirement=request.requirement)
        except LOST:
            # A channel waits longer and longer before it tries again; a new one tries at once.
            await self._disconnect()
            raise

    async def close(self) -> None:
        """Ends the stream and the connection."""
        await self._end_stream()
        await self._disconnect()

    def _connected(self) -> AsyncGazeClient:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _streaming(self) -> AsyncStreamSession:
        if self._stream is None:
            self._stream = self._connected().stream(restart=True, timeout=_TIMEOUT_SECONDS)
        return self._stream

    async def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _disconnect(self) -> None:
        self._stream = None
        client, self._client = self._client, None
        if client is not None:
            await client.close()
