"""The load of a soak: clips, streams and bad requests, each caller in a thread, each answer noted."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from autogaze_client import (
    AutoGazeError,
    AutoGazeInferenceMode,
    DeadlineExceededError,
    GazeClient,
    InvalidInputError,
    NotFoundError,
    StreamExpired,
)
from numpy.typing import NDArray

from benchmarks.load_data import sample_clips

KNOBS = {"gazing_ratio": 0.25, "task_loss_requirement": 0.7}
# Seconds between two requests of a caller: the server is busy, not drowned, so that times can be compared.
_PAUSE = {"clip": 0.6, "frame": 0.15, "bad": 0.5}


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        kind: clip, frame, or bad.
        at: seconds, of the monotonic clock, when it came.
        milliseconds: it took.
        expected: whether it is what was asked for: an answer, or for a bad request its own error.
        what: in words, where it is not.
        timed: whether its time counts among the others of its kind.
    """

    kind: str
    at: float
    milliseconds: float
    expected: bool
    what: str = ""
    timed: bool = True


Step = tuple[str, Callable[[], Any], type[AutoGazeError] | None, bool]


class Load:
    """Callers with connections of their own. A context manager; ``run`` may be called several times.

    Args:
        url: of the server's gRPC service.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._clips = sample_clips(4, frames=4, size=(320, 180))
        self._lock = threading.Lock()
        self.answers: list[Answer] = []
        self._clients: list[GazeClient] = []
        self._callers: list[Generator[Step, None, None]] = []
        self._cameras: list[Generator[Step, None, None]] = []

    def __enter__(self) -> Load:
        """Connects."""
        wire, shared, cameras, bad = (
            GazeClient(self._url, shared_memory=memory) for memory in (False, True, None, False)
        )
        self._clients = [wire, shared, cameras, bad]
        self._callers = [
            self._sends_clips(wire),
            self._sends_clips(shared),
            self._sends_nonsense(bad),
        ]
        randoms = [np.random.default_rng(seed) for seed in (1, 2)]
        self._open_cameras = lambda: [self._streams(cameras, random) for random in randoms]
        self._cameras = self._open_cameras()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the streams that are open, and hangs up."""
        for caller in (*self._callers, *self._cameras):
            caller.close()
        for client in self._clients:
            client.close()

    def run(self, seconds: float) -> None:
        """Loads the server for a while."""
        deadline = time.monotonic() + seconds
        callers = (*self._callers, *self._cameras)
        with ThreadPoolExecutor(len(callers)) as pool:
            for future in [pool.submit(self._call, caller, deadline) for caller in callers]:
                future.result()

    def end_streams(self) -> None:
        """Ends the streams that are open; the next run has others. The server forgets those that were left."""
        for camera in self._cameras:
            camera.close()
        self._cameras = self._open_cameras()

    def _call(self, caller: Generator[Step, None, None], deadline: float) -> None:
        for kind, ask, wanted, timed in caller:
            self._ask(kind, ask, wanted, timed)
            if time.monotonic() >= deadline:
                return
            time.sleep(_PAUSE[kind])

    def _ask(
        self, kind: str, ask: Callable[[], Any], wanted: type[AutoGazeError] | None, timed: bool
    ) -> None:
        started = time.monotonic()
        found: Exception | None = None
        try:
            ask()
        except Exception as error:
            found = error
        ended = time.monotonic()
        expected = found is None if wanted is None else isinstance(found, wanted)
        what = (
            "" if expected else f"{kind}: wanted {wanted.__name__ if wanted else 'an answer'}, got {found!r}"
        )
        with self._lock:
            self.answers.append(
                Answer(kind, ended, (ended - started) * 1e3, expected, what, timed and expected)
            )

    def _sends_clips(self, client: GazeClient) -> Generator[Step, None, None]:
        for number in itertools.count():
            clip = self._clips[number % len(self._clips)]
            yield "clip", lambda clip=clip: client.gaze(clip, **KNOBS), None, True

    def _streams(self, client: GazeClient, random: np.random.Generator) -> Generator[Step, None, None]:
        """Cameras of 5 to 24 frames. One in three goes without a word, and its place must come free by itself."""
        frames = np.concatenate(self._clips)
        while True:
            stream = client.stream(**KNOBS)
            length, leaves = int(random.integers(5, 25)), not random.integers(3)
            try:
                for number in range(length):
                    frame = frames[number % len(frames)]
                    yield "frame", lambda stream=stream, frame=frame: stream.push(frame), None, True
                if not leaves:
                    yield "frame", stream.close, None, False
            except GeneratorExit:
                stream.close()
                raise

    def _sends_nonsense(self, client: GazeClient) -> Generator[Step, None, None]:
        """Every kind of error that a client can ask for, in turn."""
        clip = self._clips[0]
        long = np.zeros((65, 8, 8, 3), np.uint8)
        work = np.zeros((64, 64, 64, 3), np.uint8)
        thin = np.zeros((1, 1, 500, 3), np.uint8)
        lost = GazeClient(self._url, model_name="no_such_model")
        self._clients.append(lost)
        tiled = AutoGazeInferenceMode.TILED_FULL_RESOLUTION
        wide = np.zeros((1, 1200, 12000, 3), np.uint8)
        cases: list[tuple[Callable[[], Any], type[AutoGazeError]]] = [
            (lambda: client.gaze(clip, gazing_ratio=[0.5]), InvalidInputError),
            (lambda: client.gaze(long), InvalidInputError),
            (lambda: client.gaze(thin), InvalidInputError),
            (lambda: client.gaze(bytes(range(256)) * 16), InvalidInputError),
            (lambda: client.gaze(wide, mode=tiled), InvalidInputError),
            (lambda: client.gaze(clip, target_scales=[1, 2, 3], target_patch_size=1), InvalidInputError),
            (lambda: lost.gaze(clip), NotFoundError),
            (lambda: client.gaze(work, gazing_ratio=1.0, timeout=0.2), DeadlineExceededError),
            (lambda: self._forgotten(client, clip[0]), StreamExpired),
        ]
        for ask, wanted in itertools.cycle(cases):
            yield "bad", ask, wanted, False

    @staticmethod
    def _forgotten(client: GazeClient, frame: NDArray[np.uint8]) -> None:
        """A frame of a stream that the server does not know."""
        stream = client.stream(**KNOBS)
        stream._conversation.started = True
        stream.push(frame)
