"""Copies of frames that threads share out."""

from __future__ import annotations

import numpy as np
import pytest
from autogaze_backend.torch_engine import host_copies


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
@pytest.mark.parametrize(
    ("clips", "shape"),
    [
        (1, (1, 8, 8, 3)),
        (1, (5, 600, 800, 3)),
        (40, (1, 224, 224, 3)),
        (7, (3, 512, 512, 4)),
        (1, (2, 2048, 2048, 3)),
    ],
    ids=["small", "one clip", "frames of streams", "clips", "large frames"],
)
def test_every_byte_arrives_whoever_copies_it(monkeypatch, cores, clips, shape):
    monkeypatch.setattr(host_copies.os, "sched_getaffinity", lambda _: set(range(cores)))
    random = np.random.default_rng(1)
    sources = [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(clips)]
    # What a caller hands over may be read only, or no contiguous array.
    sources[-1].flags.writeable = False
    sources[0] = np.asfortranarray(sources[0])
    target = np.zeros((clips * shape[0], *shape[1:]), np.uint8)
    host_copies.copy_clips(sources, target)
    np.testing.assert_array_equal(target, np.concatenate(sources))
    assert target.any()


def test_what_goes_wrong_in_a_thread_is_told(monkeypatch):
    monkeypatch.setattr(host_copies.os, "sched_getaffinity", lambda _: set(range(4)))
    clips = [np.zeros((1, 1024, 1024, 3), np.uint8) for _ in range(4)]
    clips[3] = np.zeros((1, 1000, 1024, 3), np.uint8)
    with pytest.raises(ValueError, match="broadcast"):
        host_copies.copy_clips(clips, np.zeros((4, 1024, 1024, 3), np.uint8))
