"""Whatever arrives is served or refused: twenty thousand mutated videos and random tensors.

The only errors allowed are ``InvalidInputError`` and its children, which Triton answers with
INVALID_ARGUMENT. Videos are decoded in a process of their own, where a crash or a hang of the decoders shows.
"""

from __future__ import annotations

import faulthandler
import random
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend.clips import prepare_clip
from autogaze_backend.ingest import ingest
from autogaze_backend.limits import IngestLimits
from autogaze_backend.requests import Knobs
from autogaze_client import InvalidInputError
from video_helpers import tagged_video

VIDEOS = 8_000
TENSORS = 12_000
# A video takes milliseconds; a hang takes for ever, and this is neither.
_SECONDS_A_VIDEO = 60.0
LIMITS = IngestLimits(max_frames=32, max_pixels=256 * 256, max_clip_bytes=4 * 1024**2, max_seconds=60)


def seed_videos() -> list[bytes]:
    """One small file a container and codec."""
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    kinds = [
        {"container": "mp4", "rotation": 90, "pixel_aspect": Fraction(4, 3)},
        {"container": "matroska", "times": [0, 10, 90, 100]},
        {"container": "webm", "codec": "libvpx"},
        {"container": "webm", "codec": "libvpx-vp9"},
        {"container": "mov", "codec": "mjpeg", "pix_fmt": "yuvj420p"},
        {"container": "avi", "codec": "mpeg4"},
        {"container": "mpegts"},
        {"container": "mpeg", "codec": "mpeg1video"},
        {"container": "flv"},
    ]
    return [tagged_video(**{"picture": picture, "frames": 4, "pix_fmt": "yuv420p", **kind}) for kind in kinds]


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The file after a few of the accidents that befall files, and of what an attacker tries."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        # Headers decide most, so half of the accidents happen in the first or last kilobyte.
        place = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:
            place = min(rng.randrange(1024), len(data)) if rng.random() < 0.7 else max(len(data) - 1024, 0)
        length = rng.choice([1, 2, 4, 8, 64, 512])
        kind = rng.randrange(8)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + length] = rng.randbytes(len(data[place : place + length]))
        elif kind == 2:
            number = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 16384])
            data[place : place + 4] = number.to_bytes(4, rng.choice(["big", "little"]))
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            data[place:place] = rng.randbytes(length)
        elif kind == 6 and rng.random() < 0.3:
            del data[place:]
        elif kind == 7:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[place : place + length] = other[start : start + length]
    return bytes(data)


def decode_mutants(seed: int, count: int) -> None:
    """Runs in a process of its own; prints what came of it, or fails with the input that did it."""
    rng = random.Random(seed)
    seeds = seed_videos()
    for content in seeds:
        ingest({"VIDEO": np.frombuffer(content, np.uint8)}, LIMITS)
    found: Counter[str] = Counter()
    slowest = 0.0
    for index in range(count):
        content = mutated(rng.choice(seeds), seeds, rng)
        # Ends the process with a traceback, even inside the decoder.
        faulthandler.dump_traceback_later(_SECONDS_A_VIDEO, exit=True)
        started = time.monotonic()
        try:
            clip = ingest({"VIDEO": np.frombuffer(content, np.uint8)}, LIMITS)["DECODED"]
            assert clip.dtype == np.uint8
            assert clip.nbytes <= LIMITS.max_clip_bytes
            found["served"] += 1
        except InvalidInputError:
            found["refused"] += 1
        except Exception as error:
            Path(f"mutant_{seed}_{index}").write_bytes(content)
            raise RuntimeError(f"mutant {index} of seed {seed}") from error
        slowest = max(slowest, time.monotonic() - started)
    faulthandler.cancel_dump_traceback_later()
    print(f"{found['served']} {found['refused']} {slowest:.3f}")  # noqa: T201  the parent reads it


def test_mutated_videos_are_served_or_refused(tmp_path):
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = (
        f"import sys; sys.path[:0] = {paths}; import test_fuzz; "
        f"test_fuzz.decode_mutants(int(sys.argv[1]), {VIDEOS // 2})"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(seed)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    total = 0
    for run in runs:
        output, errors = run.communicate(timeout=550)
        assert run.returncode == 0, errors[-4000:]
        served, refused, slowest = output.split()
        # A fuzzer that everything or nothing gets through tests nothing.
        assert int(served) > VIDEOS // 40
        assert int(refused) > VIDEOS // 40
        assert float(slowest) < _SECONDS_A_VIDEO
        total += int(served) + int(refused)
    assert total == VIDEOS


KNOBS = (
    "MODE",
    "GAZING_RATIO",
    "TASK_LOSS_REQUIREMENT",
    "MAX_GAZE_TOKENS",
    "TOP_K",
    "TARGET_SCALES",
    "TARGET_PATCH_SIZE",
)
FLOATS = [0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-45, 1e38, np.nan, np.inf, -np.inf, 0.25]
INTEGERS = [-(2**31), -2, -1, 0, 1, 2, 3, 14, 16, 32, 56, 112, 224, 265, 2**31 - 1]
DTYPES = [np.int32, np.float32, np.int64, np.float64, np.uint8, np.bool_, np.int8, np.float16, np.uint64]


def random_shape(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.choice([0, 1, 1, 2, 3, 4, 5]) for _ in range(rng.randrange(6)))


def random_knob(name: str, rng: random.Random) -> np.ndarray:
    """Mostly of the knob's own type and of one dimension, as Triton lets through; else anything."""
    shape = (rng.choice([0, 1, 1, 1, 2, 3, 4]),) if rng.random() < 0.7 else random_shape(rng)
    own = np.float32 if name in ("GAZING_RATIO", "TASK_LOSS_REQUIREMENT") else np.int32
    dtype = own if rng.random() < 0.8 else rng.choice(DTYPES)
    values = FLOATS if np.dtype(dtype).kind == "f" else INTEGERS
    flat = [rng.choice(values) for _ in range(int(np.prod(shape)))]
    with np.errstate(all="ignore"):
        return np.array(flat, np.float64).reshape(shape).astype(dtype)


def random_frames(rng: random.Random) -> np.ndarray:
    kind = rng.random()
    if kind < 0.6:
        shape = (rng.choice([1, 2, 3, 4]), rng.randrange(1, 40), rng.randrange(1, 40), rng.choice([3, 4]))
        return np.full(shape, rng.randrange(256), np.uint8)
    if kind < 0.8:
        return np.zeros(random_shape(rng), np.uint8)
    if kind < 0.9:  # Huge, without the memory.
        shape = (rng.choice([1, 300]), rng.choice([1, 100_000]), rng.choice([1, 100_000]), 3)
        return np.broadcast_to(np.uint8(0), shape)
    return np.zeros(random_shape(rng), rng.choice(DTYPES))


def random_request(rng: random.Random) -> dict[str, np.ndarray]:
    tensors = {name: random_knob(name, rng) for name in KNOBS if rng.random() < 0.3}
    if rng.random() < 0.95:
        tensors["FRAMES"] = random_frames(rng)
    if rng.random() < 0.05:
        tensors["VIDEO"] = np.zeros(random_shape(rng), rng.choice([np.uint8, np.float32]))
    return tensors


def outcome(call, *arguments):
    """What the call gives, or None where it refuses; anything else is raised."""
    try:
        return call(*arguments)
    except InvalidInputError:
        return None


@pytest.mark.parametrize("seed", range(4))
def test_random_tensors_are_served_or_refused(model, seed):
    rng = random.Random(seed)
    loaded = model()
    served = prepared = 0
    for index in range(TENSORS // 4):
        tensors = random_request(rng)
        what = {name: (array.dtype.name, array.shape, array.flat[:4]) for name, array in tensors.items()}
        try:
            outcome(Knobs.from_tensors, tensors)
            frames = tensors.get("FRAMES")
            if "VIDEO" in tensors:
                decoded = outcome(ingest, tensors, LIMITS)
                if decoded is None:
                    continue
                frames = decoded["DECODED"]
            if frames is None:
                continue
            served += 1
            # What was served may still be refused for a knob.
            prepared += outcome(prepare_clip, loaded, {**tensors, "FRAMES": frames}) is not None
        except Exception as error:
            raise AssertionError(f"request {index} of seed {seed}: {what}") from error
    assert served > TENSORS // 40
    assert prepared > TENSORS // 400
