"""Every limit of a served model: one place for its name, default, meaning, and where its value comes from.

A limit ``max_frames`` is the parameter ``max_frames`` of a model's config.pbtxt; the environment variable
``AUTOGAZE_MAX_FRAMES`` of the server overrides it, for every model that has it. docs/operations.md has the table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from autogaze_client._errors import InvalidInputError

T = TypeVar("T")

# Limits that may be 0: what they say is then off.
_MAY_BE_ZERO = frozenset({"protect_seconds"})


def variable(limit: str) -> str:
    """The environment variable of a limit."""
    return f"AUTOGAZE_{limit.upper()}"


def read_limits(kind: type[T], parameters: Mapping[str, str]) -> T:
    """Fills a dataclass of numbers: the environment's ``AUTOGAZE_<FIELD>``, else the parameter, else the default.

    Raises:
        InvalidInputError: a limit is no number above 0, or no whole one where it must be.
    """
    values: dict[str, float] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        text = os.environ.get(variable(field.name), parameters.get(field.name))
        if text is None:
            continue
        whole, zero = field.type in ("int", int), field.name in _MAY_BE_ZERO
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = -1
        if not (0 < value < float("inf") or (zero and value == 0)):
            rule = (
                "an integer of at least 1"
                if whole
                else "a number of at least 0"
                if zero
                else "a number above 0"
            )
            raise InvalidInputError(
                f"limit {field.name} is {text!r}; it must be {rule}; set {variable(field.name)} or the parameter "
                f"{field.name} of config.pbtxt"
            )
        values[field.name] = value
    return kind(**values)


@dataclass(frozen=True)
class IngestLimits:
    """How large a clip may be; checked before anything is decoded or copied.

    Attributes:
        max_frames: frames of a clip.
        max_pixels: pixels of a frame.
        max_clip_bytes: bytes of all frames of a clip, decoded.
        max_video_bytes: bytes of an encoded video.
        max_seconds: duration of an encoded video, as it declares and as its timestamps say.
    """

    max_frames: int = 256
    max_pixels: int = 8192 * 8192
    max_clip_bytes: int = 2 * 1024**3
    max_video_bytes: int = 512 * 1024**2
    max_seconds: float = 600.0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> IngestLimits:
        """Reads the limits that config.pbtxt and the environment set; others keep their defaults.

        Raises:
            InvalidInputError: a limit is no integer of at least 1, or ``max_seconds`` no number above 0.
        """
        return read_limits(cls, parameters)

    def check(self, frames: int, height: int, width: int) -> None:
        """Raises InvalidInputError where a clip of this size breaks a limit."""
        if frames > self.max_frames:
            raise InvalidInputError(
                f"the clip has {frames} frames; this server takes {self.max_frames} {_named('max_frames')}; "
                "send the video in windows"
            )
        if height * width > self.max_pixels:
            raise InvalidInputError(
                f"frames of {width}×{height} have {height * width} pixels; this server takes "
                f"{self.max_pixels} {_named('max_pixels')}; send smaller frames"
            )
        if frames * height * width * 3 > self.max_clip_bytes:
            raise InvalidInputError(
                f"{frames} frames of {width}×{height} are {frames * height * width * 3} bytes; this server takes "
                f"{self.max_clip_bytes} {_named('max_clip_bytes')}; send the video in windows"
            )

    def check_video_bytes(self, size: int) -> None:
        """Raises InvalidInputError where an encoded video of this many bytes breaks the limit."""
        if size > self.max_video_bytes:
            raise InvalidInputError(
                f"the video has {size} bytes; this server takes {self.max_video_bytes} {_named('max_video_bytes')}; "
                "send it in parts, or encode it smaller"
            )

    def check_seconds(self, seconds: float) -> None:
        """Raises InvalidInputError where a video of this duration breaks the limit."""
        if seconds > self.max_seconds:
            raise InvalidInputError(
                f"the video lasts {seconds:.2f} s; this server takes {self.max_seconds:g} s {_named('max_seconds')}; "
                "send it in parts"
            )


@dataclass(frozen=True)
class ClipLimits:
    """How many clips run at once, how large their work may be, and how long they may take.

    Attributes:
        max_active_clips: clips that run at once. Others wait, at most one batch of the model here, the rest in
            Triton's queue under its rules.
        max_tiles: tiles that a frame is cut into, in the tiled modes and under target scales.
        max_wait_seconds: how long a clip that has left Triton's queue waits for its turn.
        max_run_seconds: how long a clip may take from then on; a caller's own timeout may be shorter.
    """

    max_active_clips: int = 16
    max_tiles: int = 256
    max_wait_seconds: float = 60.0
    max_run_seconds: float = 600.0

    def check_tiles(self, tiles: int) -> None:
        """Raises InvalidInputError where a frame of this many tiles breaks the limit."""
        if tiles > self.max_tiles:
            raise InvalidInputError(
                f"a frame is cut into {tiles} tiles; this server takes {self.max_tiles} {_named('max_tiles')}; send "
                "smaller frames or smaller target scales, or use mode 0 (resize)"
            )


@dataclass(frozen=True)
class StreamLimits:
    """Limits of a stream pool.

    Attributes:
        max_streams: streams held at a time; another one takes the place of the least recently used.
        ttl_seconds: a stream that is idle this long is freed. Must be shorter than Triton's own
            max_sequence_idle_microseconds, which tells the backend nothing.
        protect_seconds: a stream used this recently keeps its place: a new one is refused (UNAVAILABLE) rather
            than given it. 0 protects none.
        horizon: frames that each stream's cache keeps.
    """

    max_streams: int = 64
    ttl_seconds: float = 60.0
    protect_seconds: float = 0.0
    horizon: int = 16

    def check_sequences(self, candidates: int, idle_seconds: float) -> None:
        """Refuses limits that Triton's sequence batcher would undo.

        Args:
            candidates: ``max_candidate_sequences`` of config.pbtxt; a stream beyond them waits without an answer.
            idle_seconds: its ``max_sequence_idle_microseconds``; then Triton forgets a stream and tells nobody.

        Raises:
            InvalidInputError: there are more streams than candidates, or they live longer than Triton's.
        """
        if self.max_streams > candidates:
            raise InvalidInputError(
                f"max_streams is {self.max_streams}, but config.pbtxt lets {candidates} sequences in "
                "(max_candidate_sequences), and more would wait without an answer; raise that, or lower "
                "AUTOGAZE_MAX_STREAMS"
            )
        if self.ttl_seconds >= idle_seconds:
            raise InvalidInputError(
                f"ttl_seconds is {self.ttl_seconds:g}, but Triton forgets a stream after {idle_seconds:g} s "
                "(max_sequence_idle_microseconds of config.pbtxt) and tells nobody; raise that, or lower "
                "AUTOGAZE_TTL_SECONDS"
            )

    def __post_init__(self) -> None:
        if self.max_streams < 1 or not self.ttl_seconds > 0 or self.horizon < 1:
            raise InvalidInputError(
                f"max_streams is {self.max_streams}, ttl_seconds {self.ttl_seconds} and horizon {self.horizon}; "
                "all must be above 0"
            )
        if not 0 <= self.protect_seconds <= self.ttl_seconds:
            raise InvalidInputError(
                f"protect_seconds is {self.protect_seconds} and ttl_seconds {self.ttl_seconds}; a stream cannot be "
                "protected for longer than it lives: pass 0 to ttl_seconds"
            )


def _named(limit: str) -> str:
    """The limit's name for the caller, and its variable for the operator."""
    return f"({limit}; its operator may set {variable(limit)})"
