"""The blocking client."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from autogaze_client._config import Timeouts, TLSConfig, check_headers, check_seconds, check_url
from autogaze_client._errors import AutoGazeError, ServerUnavailableError
from autogaze_client._grpc_messages import ServerAddress
from autogaze_client._grpc_transport import GrpcTransport
from autogaze_client._progress import progress_bar
from autogaze_client._requests import (
    STREAM_MODEL,
    GazeSource,
    Request,
    VideoSource,
    check_not_of_a_path,
    finish,
    in_context,
    single_request,
    streamed_frame,
    video_source,
)
from autogaze_client._stream import StreamSession
from autogaze_client._transport import CallOptions, Transport, check_request_id, check_version
from autogaze_client._wire import OUTPUTS, GazeOptions
from autogaze_client.modes import AutoGazeInferenceMode
from autogaze_client.result import GazeResult
from autogaze_client.statistics import ServerStatistics
from autogaze_client.video import VideoReader

__all__ = ["GazeClient"]

_POLL_SECONDS = 0.2


class GazeClient:
    """Gazes at clips through a Triton server; a context manager. Safe to share between threads.

    Args:
        url: ``host:port`` of the server's gRPC endpoint.
        model_name: the ensemble.
        timeouts: deadlines.
        tls: certificates; None = a plain connection.
        headers: sent with every call, for authentication for instance.
        shared_memory: whether frames go through system shared memory instead of the wire; None = where the
            server is on this machine. Where the server cannot share it, the wire is used, and the reason is
            logged at debug level.
        version: which of the server's checkpoints to ask, where it has several (``autogaze repository``): clips
            go to the ensemble ``<model_name>_v<version>``, streams to that version of the stream model; None =
            the server's current one.
        transport: replaces the gRPC connection; ``url``, ``tls``, ``headers`` and ``shared_memory`` are then
            unused.

    Raises:
        InvalidInputError: ``url`` is not host:port, or a header is not text.

    Example:
        >>> with GazeClient("localhost:8001") as client:  # doctest: +SKIP
        ...     result = client.gaze("clip.mp4", gazing_ratio=0.25)
        ...     print(result.gaze_ratio, result.trace.frames[0].top_point())
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        model_name: str = "autogaze",
        timeouts: Timeouts | None = None,
        tls: TLSConfig | None = None,
        headers: Mapping[str, str] | None = None,
        shared_memory: bool | None = None,
        version: int | None = None,
        transport: Transport | None = None,
    ) -> None:
        address = ServerAddress(check_url(url), tls, check_headers(headers), shared_memory)
        self.url = url
        check_version(version)
        self.model_name = model_name if version is None else f"{model_name}_v{version}"
        self.version = version
        self.timeouts = timeouts or Timeouts()
        self._transport = transport or GrpcTransport(address)

    def gaze(
        self,
        frames: GazeSource,
        *,
        mode: AutoGazeInferenceMode | str = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT,
        gazing_ratio: float | Sequence[float] | NDArray[Any] | None = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: int | Sequence[int] | NDArray[Any] | None = None,
        target_scales: Sequence[int] | None = None,
        target_patch_size: int | None = None,
        top_k: int | None = None,
        window_frames: int | None = None,
        start_frame: int = 0,
        max_frames: int | None = None,
        frame_stride: int = 1,
        as_stream: bool = False,
        in_flight: int | None = None,
        progress: bool = False,
        timeout: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
    ) -> GazeResult:
        """Chooses the patches that matter in a clip or video.

        An array is one clip. A path is read here and sent as windows of ``window_frames`` frames, each an
        independent clip, or with ``as_stream`` frame by frame through one stream of the server, which
        remembers the frames before; the results are joined in order. Bytes are an encoded video, sent whole
        and decoded by the server.

        A ratio without a requirement turns the task-loss stop off; a requirement without a cap means a cap
        of N tokens; both mean both; neither means the checkpoint's configuration. The ratio and
        ``max_gaze_tokens_each_frame`` are both caps: the smaller holds.

        Args:
            frames: uint8 ``[T, H, W, 3 or 4]``, a path, or the bytes of an encoded video.
            mode: how a frame becomes the model's square input.
            gazing_ratio: share of a frame's tokens to choose at most, in (0, 1]; one value or one a frame.
            task_loss_requirement: stop a frame once its predicted reconstruction loss is at or below this.
            max_gaze_tokens_each_frame: tokens to choose at most, >= 1; one value or one a frame.
            target_scales: image sizes in pixels of the scales to adapt to; with ``target_patch_size``.
            target_patch_size: patch size in pixels of those scales.
            top_k: fixations wanted at least, >= 1.
            window_frames: of a path: frames a request; None = 16. Lists of one value a frame are for each window.
            start_frame: of a path: frames to skip first.
            max_frames: of a path: frames to send at most.
            frame_stride: of a path: send every n-th frame.
            as_stream: of a path: one stream instead of independent windows; in the resize mode only, and with
                one value for all frames. Windows are then only how results come.
            in_flight: of a path: windows that are with the server at a time, which it can batch; None = 4.
            progress: of a path: draw a progress bar, where rich is installed.
            timeout: seconds a request may take; None = ``timeouts.request``.
            priority: 1, 2 or 3: clips of a lower number leave the server's queue first; None = 2. A stream's
                frames have none.
            request_id: what the server's log and traces call the request; of a path, window n is
                ``<request_id>-<n>``, from 0.

        Raises:
            InvalidInputError: an argument breaks its rule, or is of a path where none was given (before
                anything is sent), or the server says so.
            VideoDecodeError: the video is missing, damaged, truncated, or no video.
            ServerUnavailableError: no server answers, or it sheds load.
            DeadlineExceededError: a request took longer than its timeout.
            NotFoundError: the server has no such model.
            InferenceError: the server failed.
        """
        options = GazeOptions(
            mode,
            gazing_ratio,
            task_loss_requirement,
            max_gaze_tokens_each_frame,
            target_scales,
            target_patch_size,
            top_k,
        )
        check_seconds("timeout", timeout)
        call = CallOptions(check_request_id(request_id), priority)
        if isinstance(frames, str | Path):
            video = video_source(
                frames,
                options,
                window_frames=window_frames,
                start_frame=start_frame,
                max_frames=max_frames,
                frame_stride=frame_stride,
                as_stream=as_stream,
                in_flight=in_flight,
                priority=priority,
            )
            return GazeResult.concatenate(
                list(self._results(video, video.open(), options, progress, timeout, call))
            )
        check_not_of_a_path(
            window_frames, start_frame, max_frames, frame_stride, as_stream, in_flight, progress
        )
        return self._send(single_request(frames, options), options, timeout, call)

    def iter_gaze(
        self,
        path: str | Path,
        *,
        mode: AutoGazeInferenceMode | str = AutoGazeInferenceMode.RESIZE_TO_MODEL_INPUT,
        gazing_ratio: float | Sequence[float] | NDArray[Any] | None = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: int | Sequence[int] | NDArray[Any] | None = None,
        target_scales: Sequence[int] | None = None,
        target_patch_size: int | None = None,
        top_k: int | None = None,
        window_frames: int | None = None,
        start_frame: int = 0,
        max_frames: int | None = None,
        frame_stride: int = 1,
        as_stream: bool = False,
        in_flight: int | None = None,
        progress: bool = False,
        timeout: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
    ) -> Iterator[GazeResult]:
        """Yields one result a window of a video, in order, as they finish; memory stays bounded.

        Takes and raises what ``gaze`` does. ``in_flight`` windows are with the server while the next is read.
        Frames count from 0 in every result. Where the video proves truncated, the windows before come first.
        """
        options = GazeOptions(
            mode,
            gazing_ratio,
            task_loss_requirement,
            max_gaze_tokens_each_frame,
            target_scales,
            target_patch_size,
            top_k,
        )
        check_seconds("timeout", timeout)
        call = CallOptions(check_request_id(request_id), priority)
        video = video_source(
            path,
            options,
            window_frames=window_frames,
            start_frame=start_frame,
            max_frames=max_frames,
            frame_stride=frame_stride,
            as_stream=as_stream,
            in_flight=in_flight,
            priority=priority,
        )
        return self._results(video, video.open(), options, progress, timeout, call)

    def stream(
        self,
        *,
        gazing_ratio: float | None = None,
        task_loss_requirement: float | None = None,
        max_gaze_tokens_each_frame: int | None = None,
        top_k: int | None = None,
        restart: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
        model_name: str = STREAM_MODEL,
    ) -> StreamSession:
        """Opens a stream, a context manager: ``with client.stream() as stream`` and one push a frame.

        The server keeps the last frames (16 by default) of each stream, and forgets a stream that is idle
        too long or, when all places are taken, the one used longest ago.

        Args:
            gazing_ratio: as ``gaze``, for every frame.
            task_loss_requirement: likewise.
            max_gaze_tokens_each_frame: likewise.
            top_k: likewise.
            restart: start a forgotten stream anew instead of raising ``StreamExpired``.
            timeout: seconds a frame may take; None = ``timeouts.request``.
            request_id: what the server's log and traces call the frames: ``<request_id>-<n>``, n from 0.
            model_name: the server's stream model.

        Raises:
            InvalidInputError: an argument breaks its rule.
        """
        options = GazeOptions(
            gazing_ratio=gazing_ratio,
            task_loss_requirement=task_loss_requirement,
            max_gaze_tokens_each_frame=max_gaze_tokens_each_frame,
            top_k=top_k,
        )
        check_seconds("timeout", timeout)
        seconds = self.timeouts.request if timeout is None else timeout
        call = CallOptions(check_request_id(request_id), version=self.version)
        return StreamSession(
            self._transport, model_name, options, restart=restart, timeout=seconds, call=call
        )

    def is_ready(self) -> bool:
        """Whether the server answers and the model is loaded; False where nothing listens.

        Raises:
            AutoGazeError: the server answers with an error, a refused certificate or token for instance.
        """
        return self._transport.is_model_ready(self.model_name, self.timeouts.control)

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Returns once the model is loaded.

        Raises:
            ServerUnavailableError: it is not after ``timeout`` seconds.
        """
        check_seconds("timeout", timeout)
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if time.monotonic() + _POLL_SECONDS > deadline:
                raise ServerUnavailableError(
                    f"{self.url}: model {self.model_name!r} was not ready after {timeout:g} s; "
                    "check the url, "
                    "the server's log, and that the model's name is right (autogaze serve starts a server)"
                )
            time.sleep(_POLL_SECONDS)

    def statistics(self) -> ServerStatistics:
        """The server's counters for each of its models; ``later.since(earlier)`` gives the time a stage took.

        Raises:
            AutoGazeError: the server cannot tell.
        """
        return ServerStatistics(self._transport.statistics(self.timeouts.control))

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def __enter__(self) -> GazeClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(
        self, request: Request, options: GazeOptions, timeout: float | None, call: CallOptions
    ) -> GazeResult:
        started = time.perf_counter()
        seconds = self.timeouts.request if timeout is None else timeout
        try:
            outputs = self._transport.infer(self.model_name, request.inputs, OUTPUTS, seconds, call)
            return finish(outputs, request, options, (time.perf_counter() - started) * 1e3)
        except AutoGazeError as error:
            raise in_context(error, request) from error

    def _results(
        self,
        video: VideoSource,
        reader: VideoReader,
        options: GazeOptions,
        progress: bool,
        timeout: float | None,
        call: CallOptions,
    ) -> Iterator[GazeResult]:
        if not video.as_stream:
            return self._windows(video, reader, options, progress, timeout, call)
        seconds = self.timeouts.request if timeout is None else timeout
        streamed = replace(call, version=self.version)
        session = StreamSession(
            self._transport, STREAM_MODEL, options, restart=False, timeout=seconds, call=streamed
        )
        return self._streamed(video, reader, session, progress)

    def _streamed(
        self, video: VideoSource, reader: VideoReader, session: StreamSession, progress: bool
    ) -> Iterator[GazeResult]:
        parts: list[GazeResult] = []
        with progress_bar(progress, video.path.name, reader.frame_count) as advance, session:
            for request, frame in video.frames(reader):
                try:
                    result = session.push(frame)
                except AutoGazeError as error:
                    raise in_context(error, request) from error
                parts.append(streamed_frame(result, request))
                advance(1)
                if len(parts) == video.window_frames:
                    yield GazeResult.concatenate(parts)
                    parts = []
        if parts:
            yield GazeResult.concatenate(parts)

    def _windows(
        self,
        video: VideoSource,
        reader: VideoReader,
        options: GazeOptions,
        progress: bool,
        timeout: float | None,
        call: CallOptions,
    ) -> Iterator[GazeResult]:
        requests = video.requests(reader, options)
        windows = count()
        pending: deque[Future[GazeResult]] = deque()
        failure: AutoGazeError | None = None
        pool = ThreadPoolExecutor(video.in_flight, thread_name_prefix="autogaze")
        try:
            with progress_bar(progress, video.path.name, reader.frame_count) as advance:
                while True:
                    try:
                        request = next(requests, None)
                    except AutoGazeError as error:
                        failure = error
                        break
                    if request is None:
                        break
                    if len(pending) == video.in_flight:
                        result = pending.popleft().result()
                        advance(result.source_size.frames)
                        yield result
                    pending.append(
                        pool.submit(self._send, request, options, timeout, call.part(next(windows)))
                    )
                while pending:
                    result = pending.popleft().result()
                    advance(result.source_size.frames)
                    yield result
            if failure is not None:
                raise failure
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
