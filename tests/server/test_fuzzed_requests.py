"""Accidents of all kinds sent to a real server: each is served or refused, and the server stays ready.

The same mutations at twenty thousand inputs, below the server: tests/backend/test_fuzz.py.
"""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from autogaze_client import GazeClient, InvalidInputError
from backend.test_fuzz import KNOBS, mutated, random_knob, seed_videos
from goldens import clips
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

pytestmark = pytest.mark.server

VIDEOS, REQUESTS = 240, 160
CLIP = clips.synthetic_clip(1, 24, 32, 1)
# What the server may answer with: the caller's fault, never its own.
REFUSED = "StatusCode.INVALID_ARGUMENT"


@pytest.fixture(autouse=True)
def the_server_stays_ready(server):
    yield
    with GazeClient(server.url) as client:
        assert client.is_ready()
        assert client.gaze(CLIP, gazing_ratio=0.02).tokens_per_frame.tolist() == [5]


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_videos(server, seed):
    rng, seeds = random.Random(seed), seed_videos()
    videos = [mutated(rng.choice(seeds), seeds, rng) for _ in range(VIDEOS // 2)]

    def send(content: bytes) -> str:
        try:
            client.gaze(content, max_gaze_tokens_each_frame=1, timeout=120)
        except InvalidInputError:
            return "refused"
        return "served"

    with GazeClient(server.url) as client, ThreadPoolExecutor(4) as pool:
        found = Counter(pool.map(send, [video for video in videos if video]))
    assert min(found["served"], found["refused"]) > VIDEOS // 20, found


@pytest.mark.parametrize("seed", [1, 2])
def test_random_knobs_and_shapes(server, seed):
    """Raw tensors, past every check of the client: wrong types, shapes, ranges and counts of frames."""
    rng = random.Random(seed)
    served, refusals = 0, []
    with InferenceServerClient(server.url) as raw:
        for index in range(REQUESTS // 2):
            tensors = {name: random_knob(name, rng)[None] for name in KNOBS if rng.random() < 0.25}
            frames = CLIP if rng.random() < 0.7 else np.zeros(rng.choices([0, 1, 3, 24], k=4), np.uint8)
            tensors["FRAMES"] = frames[None]
            tensors.setdefault("MAX_GAZE_TOKENS", np.ones((1, 1), np.int32))
            inputs = []
            for name, array in tensors.items():
                inputs.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
                inputs[-1].set_data_from_numpy(np.ascontiguousarray(array))
            try:
                raw.infer("autogaze", inputs, client_timeout=120)
                served += 1
            except InferenceServerException as error:
                refusals.append((error.status(), str(error.message()), index))
    assert [refusal for refusal in refusals if refusal[0] != REFUSED] == []
    assert min(served, len(refusals)) > REQUESTS // 20
