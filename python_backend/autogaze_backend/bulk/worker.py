"""The actor: one model, which gazes at the videos that Ray Data hands it and writes their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autogaze_client._errors import AutoGazeError, CheckpointError, InvalidInputError
from autogaze_client.result import GazeResult
from numpy.typing import NDArray

from autogaze_backend.bulk.decoding import DecodedWindow, DecodePlan, TaskWindows
from autogaze_backend.bulk.gazing import WindowGazer
from autogaze_backend.bulk.inputs import VideoFile
from autogaze_backend.bulk.job import BulkJob
from autogaze_backend.bulk.output import OutputFolder, ResultWriter
from autogaze_backend.bulk.report import Outcome, Status
from autogaze_backend.bulk.settings import RunIdentity
from autogaze_backend.bulk.table import window_table
from autogaze_backend.bundle import Bundle
from autogaze_backend.model import GazeModel
from autogaze_backend.streaming import GazeStream

Batch = Mapping[str, NDArray[Any]]


class Windows(Protocol):
    """The windows of a video, as ``TaskWindows`` gives them."""

    def __next__(self) -> DecodedWindow:
        """The next window."""

    def close(self) -> None:
        """Ends the reading."""


@dataclass
class _Running:
    """A video in hand."""

    video: VideoFile
    windows: Windows
    writer: ResultWriter
    stream: GazeStream | None
    resources: ExitStack
    frames: int = 0
    tokens: int = 0
    size: tuple[int, int] = (0, 0)
    fps: tuple[int, int] = (0, 1)


class GazeWorker:
    """Gazes at videos, ``videos_at_once`` at a time; what Ray Data's actor pool calls.

    Args:
        job: of the run.
        root: the folder that videos are named below.
        identity: of the run; this machine's bundle and output folder must agree with it.
        threads: CPU threads of the model.
        tally: the actor that counts frames; None = nobody does.

    Raises:
        CheckpointError: this machine's bundle is another one.
        InvalidInputError: this machine does not see the output folder.
    """

    def __init__(
        self, job: BulkJob, root: Path, identity: RunIdentity, threads: int, tally: Any = None
    ) -> None:
        self._job, self._root, self._identity = job, root, identity
        self._tally = tally
        self._folder = OutputFolder(job.out)
        self._folder.check(identity)
        bundle = Bundle.load(job.bundle)
        if RunIdentity.of(job.settings, bundle).to_dict() != identity.to_dict():
            raise CheckpointError(
                f"{job.bundle} is another bundle on this machine than where the run was started; give every machine "
                "the same one under the same path"
            )
        self._model = GazeModel.load(bundle, device=job.device, threads=threads)
        self._gazer = WindowGazer(self._model, job.settings)

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Gazes at the videos of a batch.

        Args:
            batch: columns ``video``, ``size`` and ``mtime_ns``.

        Returns:
            Columns as ``Outcome.to_row``, a row a video, in order: Ray may run a batch again after a crash, and
            what it knows already must stay as it was.
        """
        videos = [
            VideoFile(str(name), int(size), int(mtime))
            for name, size, mtime in zip(batch["video"], batch["size"], batch["mtime_ns"], strict=True)
        ]
        rows = [outcome.to_row() for outcome in self.gaze(videos)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def gaze(self, videos: Sequence[VideoFile]) -> list[Outcome]:
        """Gazes at videos; every one has an outcome, whatever happens to the others."""
        outcomes: dict[VideoFile, Outcome] = {}
        fresh: list[VideoFile] = []
        suspects: list[tuple[int, VideoFile]] = []
        for video in videos:
            before = self._before(video)
            if before is not None:
                outcomes[video] = before
            elif attempts := self._folder.attempts(video.name):
                suspects.append((attempts, video))
            else:
                fresh.append(video)
        at_once = self._job.videos_at_once
        groups = [fresh[i : i + at_once] for i in range(0, len(fresh), at_once)]
        # One of these may have killed the process: each runs alone, the least suspect first.
        groups += [[video] for _, video in sorted(suspects)]
        for group in groups:
            outcomes |= self._gaze_together(group)
        return [outcomes[video] for video in videos]

    def _before(self, video: VideoFile) -> Outcome | None:
        """The outcome of a video that need not, or must not, be tried again."""
        facts = self._folder.finished(video, self._identity)
        if facts is not None:
            return Outcome(video, Status.DONE, "", facts["video"]["frames"], facts["video"]["tokens"])
        attempts = self._folder.attempts(video.name)
        if attempts >= self._job.attempts:
            return self._ended(video, Status.FAILED, f"the process that gazed at it died {attempts} times")
        return None

    def _gaze_together(self, videos: Sequence[VideoFile]) -> dict[VideoFile, Outcome]:
        outcomes: dict[VideoFile, Outcome] = {}
        with ExitStack() as stack:
            active: list[_Running] = []
            for video in videos:
                try:
                    active.append(self._open(video, stack))
                except Exception as error:
                    outcomes[video] = self._error(video, error)
            while active:
                turn: list[tuple[_Running, DecodedWindow]] = []
                for running in active:
                    try:
                        turn.append((running, next(running.windows)))
                    except StopIteration:
                        outcomes[running.video] = self._finish(running)
                    except Exception as error:
                        outcomes[running.video] = self._error(running.video, error)
                if turn:
                    results = self._gazer.gaze([(running.stream, window.frames) for running, window in turn])
                    for (running, window), result in zip(turn, results, strict=True):
                        try:
                            self._take(running, window, result)
                        except Exception as error:
                            outcomes[running.video] = self._error(running.video, error)
                for running in active:
                    if running.video in outcomes:
                        running.resources.close()
                active = [running for running in active if running.video not in outcomes]
        return outcomes

    def _open(self, video: VideoFile, stack: ExitStack) -> _Running:
        settings, job = self._job.settings, self._job
        resources = stack.enter_context(ExitStack())
        writer = resources.enter_context(ResultWriter(self._folder, video))
        stream = self._gazer.open_stream()
        if stream is not None:
            resources.enter_context(stream)
        plan = DecodePlan(
            self._root / video.name,
            settings.window_frames,
            settings.start_frame,
            settings.max_frames,
            settings.frame_stride,
            job.max_pixels,
            job.max_window_bytes,
        )
        windows = TaskWindows(plan, attempts=job.attempts, timeout=job.decode_timeout)
        resources.enter_context(closing(windows))
        return _Running(video, windows, writer, stream, resources)

    def _take(self, running: _Running, window: DecodedWindow, result: GazeResult | Exception) -> None:
        """Writes a window's rows."""
        if isinstance(result, Exception):
            raise result
        settings = self._job.settings
        table = window_table(
            result,
            window.timestamps,
            video=running.video.name,
            input_size=self._model.spec.input_size,
            first_frame=settings.start_frame + running.frames * settings.frame_stride,
            frame_stride=settings.frame_stride,
        )
        running.writer.write(table)
        running.frames += result.source_size.frames
        running.tokens += int(result.tokens_per_frame.sum())
        if self._tally is not None:
            self._tally.add.remote(result.source_size.frames)
        running.size = (result.source_size.height, result.source_size.width)
        running.fps = window.fps

    def _finish(self, running: _Running) -> Outcome:
        facts = {
            "frames": running.frames,
            "tokens": running.tokens,
            "height": running.size[0],
            "width": running.size[1],
            "fps": list(running.fps),
        }
        try:
            running.writer.finish(self._identity, facts)
        except Exception as error:
            return self._error(running.video, error)
        return Outcome(running.video, Status.DONE, "", running.frames, running.tokens)

    def _error(self, video: VideoFile, error: Exception) -> Outcome:
        if isinstance(error, InvalidInputError):
            return self._ended(video, Status.UNREADABLE, str(error))
        text = str(error) if isinstance(error, AutoGazeError) else repr(error)
        return self._ended(video, Status.FAILED, text)

    def _ended(self, video: VideoFile, status: Status, message: str) -> Outcome:
        # What lies under its name is of another file or run.
        self._folder.remove(video.name)
        return Outcome(video, status, message)
