"""What a video file declares about its length, which tells whether it was cut short."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["DeclaredEnd", "declared_frames"]

# Those whose duration is stored rather than found by looking at the file's end.
_DECLARING_DURATION = ("flv", "matroska,webm")
_CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


def declared_frames(stream: VideoStream) -> int | None:
    """How many frames the file says it has."""
    if stream.frames:
        return int(stream.frames)
    # Matroska has no field for it; its usual muxer leaves a tag.
    for name, value in stream.metadata.items():
        if name.upper().startswith("NUMBER_OF_FRAMES") and value.isdigit():
            return int(value)
    return None


class DeclaredEnd:
    """When a file says that it ends, and whether its packets get there.

    Attributes:
        seconds: the declared end, on the clock of the packets' timestamps.
        streams: those of which one must reach it.
        reached: the latest end of a packet seen.
    """

    def __init__(self, seconds: Fraction, streams: Sequence[Any], frame: Fraction) -> None:
        self.seconds = seconds
        self.streams = streams
        self.reached = Fraction(0)
        self._frame = frame
        self._slack = frame * 3 / 2

    @classmethod
    def of(cls, container: InputContainer, stream: VideoStream, fps: Fraction) -> DeclaredEnd | None:
        """The end of the video where the file declares it, else of all streams; None where it does not."""
        if container.format.name not in _DECLARING_DURATION or not container.duration:
            return None
        seconds = Fraction(container.duration, 1_000_000)
        streams: Sequence[Any] = [other for other in container.streams if other.type in ("video", "audio")]
        own = _tagged_duration(stream)
        # A tag that was copied from a longer file is no promise of this one.
        if own is not None and own <= seconds:
            seconds, streams = own, [stream]
        # Some muxers count from the first timestamp, others from 0; a duration shorter than the start tells.
        start = Fraction(container.start_time or 0, 1_000_000)
        return cls(seconds if seconds > start else start + seconds, streams, 1 / fps)

    def see(self, packet: Any) -> None:
        """Notes when a packet ends."""
        if packet.pts is None:
            return
        base = Fraction(packet.time_base.numerator, packet.time_base.denominator)
        length = packet.duration * base if packet.duration else self._frame
        if packet.stream.type == "audio":
            # Encoders count the padding of the last packet, which is not always played.
            self._slack = max(self._slack, length * 3 / 2)
        self.reached = max(self.reached, packet.pts * base + length)

    @property
    def is_missed(self) -> bool:
        """Whether more than rounding and a frame's unknown length are missing."""
        return self.reached + self._slack < self.seconds


def _tagged_duration(stream: VideoStream) -> Fraction | None:
    """Matroska's duration of a stream in seconds, a tag such as ``00:00:02.400000000``."""
    for name, value in stream.metadata.items():
        if name.upper().partition("-")[0] == "DURATION" and (match := _CLOCK.fullmatch(value)):
            return int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3])
    return None
