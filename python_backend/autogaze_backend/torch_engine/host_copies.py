"""Copies of frames into pinned memory by a few threads: one core copies far slower than the device takes it up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Threads that copy, the caller's included. On 16 cores one thread copied 6.6 GB/s, two 14.6, four 18.8; several
# instances may copy at once.
_THREADS = 4

# A thread's share is no smaller, so that the copy is longer than it takes to ask for it.
_SHARE = 2 << 20


def copy_clips(clips: Sequence[NDArray[np.uint8]], target: NDArray[np.uint8]) -> None:
    """Copies clips one after another.

    Args:
        clips: uint8 ``[T, H, W, C]`` each, contiguous or not.
        target: uint8 ``[sum of T, H, W, C]``; nobody writes to it any more when this returns or raises.

    Raises:
        ValueError: a clip's frames have another shape than the target's.
    """
    shares = min(_THREADS, len(os.sched_getaffinity(0)), target.nbytes // _SHARE)
    if shares < 2:
        _copy(_pieces(clips, target))
        return
    pieces = list(_pieces(clips, target))
    cut = [len(pieces) * share // shares for share in range(shares + 1)]
    others = [_pool().submit(_copy, pieces[start:end]) for start, end in pairwise(cut[1:])]
    try:
        _copy(pieces[: cut[1]])
    finally:
        # Whatever happens, nobody writes to the target any more.
        wait(others)
    for other in others:
        other.result()


def _pieces(
    clips: Sequence[NDArray[np.uint8]], target: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Where from and where to, in pieces of a share or a frame at most."""
    start = 0
    for clip in clips:
        step = max(1, _SHARE // max(1, clip[0].nbytes))
        for first in range(0, len(clip), step):
            frames = clip[first : first + step]
            yield frames, target[start + first : start + first + len(frames)]
        start += len(clip)


def _copy(pieces: Any) -> None:
    for source, target in pieces:
        np.copyto(target, source)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS - 1, thread_name_prefix="autogaze-copy")
