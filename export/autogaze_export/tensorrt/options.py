"""What a build of plans may be told."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autogaze_backend.graphs import Phase
from autogaze_backend.plans import Bucket, GraphVariant
from autogaze_client._errors import InvalidInputError

# What a 64-bit plan with static shapes can index, and far above what a GPU's memory takes.
_LARGEST = 1 << 20


@dataclass(frozen=True)
class PlanOptions:
    """Targets and shapes of a build.

    Attributes:
        compute_capabilities: of the GPUs to build for, such as (8, 9); empty for the GPU that is here.
        batch_buckets: rows a call; a plan of each phase is built for each.
        length_buckets: positions of the cache, of prefill and step. The Quick Start schedule (16 frames, 198 + 15×10
            tokens) needs 3,484, a stream of 16 frames at all ids 7,376.
        frame_buckets: frames a call of the encoder.
        variant: of the graphs; None for what the library's version can parse.
        version_compatible: plans that newer versions run, too; slower.
        hardware_compatible: plans that GPUs of Ampere and newer run; slower.
        strip_weights: plans without weights, which the executor refits from the bundle.
        timing_cache: file of measured kernels; None for one a GPU in the user's cache folder.
        keep_onnx: folder for the graph of each plan that is built, as the builder takes it, weights inside; None
            keeps none. For those who check us with other tools.
        progress: whether to draw a bar.
    """

    compute_capabilities: tuple[tuple[int, int], ...] = ()
    batch_buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    length_buckets: tuple[int, ...] = (4096, 8192)
    frame_buckets: tuple[int, ...] = (1, 16)
    variant: GraphVariant | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False
    timing_cache: Path | None = None
    keep_onnx: Path | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_buckets", "length_buckets", "frame_buckets"):
            values = tuple(getattr(self, name))
            if not values or any(not isinstance(v, int) or not 1 <= v <= _LARGEST for v in values):
                raise InvalidInputError(
                    f"{name} is {list(values)}; pass whole numbers from 1 to {_LARGEST}, at least one"
                )
            object.__setattr__(self, name, tuple(sorted(set(values))))

    def buckets(self, tokens: int) -> tuple[Bucket, ...]:
        """Every plan to build.

        Args:
            tokens: that one prefill writes into the cache.

        Raises:
            InvalidInputError: a cache too short for a single frame.
        """
        short = [length for length in self.length_buckets if length < tokens]
        if short:
            raise InvalidInputError(
                f"length bucket {short[0]} is shorter than one frame's prefill of {tokens} "
                f"tokens; pass at least {tokens}"
            )
        encoder = [Bucket(Phase.ENCODER, b, t) for b in self.batch_buckets for t in self.frame_buckets]
        decoder = [
            Bucket(phase, rows, length)
            for phase in (Phase.PREFILL, Phase.STEP)
            for rows in self.batch_buckets
            for length in self.length_buckets
        ]
        return (*encoder, *decoder)


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """Reads "1,2,4".

    Raises:
        InvalidInputError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidInputError(f"{option} is {text!r}; pass whole numbers, such as 1,2,4,8")
    return tuple(int(part) for part in parts)


def parse_compute_capabilities(text: str) -> tuple[tuple[int, int], ...]:
    """Reads "8.6,8.9,12.0".

    Raises:
        InvalidInputError: anything else.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,2})\.(\d)\s*", part)
        if match is None:
            raise InvalidInputError(f"--sm is {text!r}; pass compute capabilities, such as 8.6,8.9,12.0")
        found.append((int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(found))


def dotted(capabilities: Iterable[tuple[int, int]]) -> str:
    """The text that ``parse_compute_capabilities`` reads."""
    return ",".join(f"{major}.{minor}" for major, minor in capabilities)
