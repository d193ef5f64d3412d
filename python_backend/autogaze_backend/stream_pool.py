"""The places that streams take on a server: a fixed number, each freed when its stream is idle too long."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from autogaze_client._errors import ServerUnavailableError, StreamExpired

from autogaze_backend.limits import StreamLimits
from autogaze_backend.streaming import GazeStream

StreamId = int | str


@dataclass
class _Place:
    stream: GazeStream
    last_used: float


class StreamPool:
    """Streams by correlation id. Thread-safe; a stream that is in use is never freed by ``purge``."""

    def __init__(
        self,
        open_stream: Callable[[], GazeStream],
        limits: StreamLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.evicted = 0
        self.expired = 0
        self._open_stream, self._clock = open_stream, clock
        # In order of use, the least recent first.
        self._places: OrderedDict[StreamId, _Place] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Streams held."""
        return len(self._places)

    def start(self, stream_id: StreamId) -> GazeStream:
        """Opens a stream; one of the same id starts anew, and a full pool gives up its least recently used.

        Raises:
            ServerUnavailableError: the pool is full of streams that are protected.
        """
        with self._lock:
            self.purge()
            self.end(stream_id)
            while len(self._places) >= self.limits.max_streams:
                self._refuse_if_all_are_in_use()
                _, place = self._places.popitem(last=False)
                place.stream.close()
                self.evicted += 1
            self._places[stream_id] = _Place(self._open_stream(), self._clock())
            return self._places[stream_id].stream

    def use(self, stream_id: StreamId) -> GazeStream:
        """The stream of an id, now the most recently used.

        Raises:
            StreamExpired: it was idle too long, was evicted, or never started.
        """
        with self._lock:
            self.purge()
            place = self._places.get(stream_id)
            if place is None:
                limits = self.limits
                raise StreamExpired(
                    f"stream {stream_id} has expired: it was idle for more than {limits.ttl_seconds:g} s, or one of "
                    f"{limits.max_streams} places was needed for another stream; send the next frame with the START "
                    "flag"
                )
            place.last_used = self._clock()
            self._places.move_to_end(stream_id)
            return place.stream

    def end(self, stream_id: StreamId) -> None:
        """Frees a stream's place; an unknown id is no error, since its place is free already."""
        with self._lock:
            place = self._places.pop(stream_id, None)
            if place is not None:
                place.stream.close()

    def _refuse_if_all_are_in_use(self) -> None:
        limits, oldest = self.limits, next(iter(self._places.values()))
        if limits.protect_seconds and self._clock() - oldest.last_used < limits.protect_seconds:
            raise ServerUnavailableError(
                f"all {limits.max_streams} streams of this server were used within {limits.protect_seconds:g} s, so "
                "none gives way; open the stream later or on another server (its operator may set "
                "AUTOGAZE_MAX_STREAMS and AUTOGAZE_PROTECT_SECONDS)"
            )

    def purge(self) -> None:
        """Frees the streams that were idle too long."""
        with self._lock:
            deadline = self._clock() - self.limits.ttl_seconds
            while self._places:
                stream_id, place = next(iter(self._places.items()))
                if place.last_used >= deadline:
                    return
                self.end(stream_id)
                self.expired += 1
