"""Measures a running server from here: requests a second and their times, for several numbers of clients at once."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._client import GazeClient
from autogaze_client._errors import AutoGazeError, InvalidInputError
from autogaze_client.result import GazeResult

__all__ = ["BenchRow", "measure", "moving_picture"]

Ask = Callable[[], GazeResult]


@dataclass(frozen=True)
class BenchRow:
    """What one number of clients got.

    Attributes:
        clients: that asked at once, each as soon as it had its answer.
        requests: answered in the time.
        errors: requests that failed.
        requests_per_s: answered a second.
        frames_per_s: frames in them a second.
        p50_ms: median time of a request.
        p90_ms: nine of ten took at most this.
        p99_ms: 99 of 100 took at most this.
        tokens_per_frame: chosen, mean.
        server_ms: mean time in the ensemble or the stream model, by the server's own count; None where it has none.
    """

    clients: int
    requests: int
    errors: int
    requests_per_s: float
    frames_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    tokens_per_frame: float
    server_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: the field names."""
        return asdict(self)


def moving_picture(frames: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A textured picture that pans, uint8 ``[T, H, W, 3]``; the same for the same seed.

    Raises:
        InvalidInputError: a size below 1.
    """
    if min(frames, height, width) < 1:
        raise InvalidInputError(
            f"a clip of {frames} frames of {width}x{height} has no pixels; use 1 and more"
        )
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 16) + 1, -(-width // 16) + 1 + frames, 3), np.uint8)
    picture = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height]
    return np.stack([picture[:, 4 * index : 4 * index + width] for index in range(frames)])


def measure(client: GazeClient, asks: list[Ask], seconds: float, *, model: str, warm_up: int = 1) -> BenchRow:
    """Lets clients ask for a while, each as soon as it has its answer.

    Args:
        client: for the server's counters.
        asks: one a client: sends its next request.
        seconds: how long; requests under way then are still counted.
        model: whose counters are read.
        warm_up: requests of each client before.

    Raises:
        InvalidInputError: no clients, or no time.
        AutoGazeError: nothing but failures: the first of them.
    """
    if not asks or seconds <= 0:
        raise InvalidInputError(
            f"{len(asks)} clients for {seconds:g} s measure nothing; use at least 1 and a time"
        )
    for ask in asks:
        for _ in range(warm_up):
            ask()
    times: list[float] = []
    frames: list[int] = []
    tokens: list[int] = []
    failures: list[AutoGazeError] = []
    lock = threading.Lock()
    before = client.statistics()
    started = time.perf_counter()

    def run(ask: Ask) -> None:
        while True:  # at least once, however late this thread starts
            asked = time.perf_counter()
            try:
                result = ask()
            except AutoGazeError as error:
                with lock:
                    failures.append(error)
            else:
                with lock:
                    times.append((time.perf_counter() - asked) * 1e3)
                    frames.append(result.source_size.frames)
                    tokens.append(int(result.tokens_per_frame.sum()))
            if time.perf_counter() - started >= seconds:
                return

    threads = [threading.Thread(target=run, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    if not times:
        raise failures[0]
    return BenchRow(
        clients=len(asks),
        requests=len(times),
        errors=len(failures),
        requests_per_s=len(times) / elapsed,
        frames_per_s=sum(frames) / elapsed,
        p50_ms=statistics.median(times),
        p90_ms=float(np.percentile(times, 90)),
        p99_ms=float(np.percentile(times, 99)),
        tokens_per_frame=sum(tokens) / sum(frames),
        server_ms=client.statistics().since(before).request_ms().get(model),
    )
