"""The shipped model repository in a real tritonserver, driven by the real client over gRPC."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_client import (
    AsyncGazeClient,
    AutoGazeInferenceMode,
    GazeClient,
    InvalidInputError,
    NotFoundError,
    VideoDecodeError,
)
from goldens import clips
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server

KNOBS = {"gazing_ratio": 0.75, "task_loss_requirement": 0.7}


def clip(frames: int, height: int = 90, width: int = 160, seed: int = 5) -> np.ndarray:
    return clips.synthetic_clip(frames, height, width, seed)


@pytest.fixture
def client(server):
    with GazeClient(server.url) as connected:
        yield connected


@pytest.fixture
def raw(server):
    with triton.InferenceServerClient(server.url) as connected:
        yield connected


def expected(model, frames: np.ndarray, **knobs):
    loaded = model()
    return loaded.generate(loaded.preprocess(frames)[None], **knobs)


@pytest.mark.parametrize(
    "knobs", [KNOBS, {}, {"max_gaze_tokens_each_frame": [3, 20, 1]}, {"task_loss_requirement": 0.9}]
)
def test_the_served_tokens_are_those_of_the_library(knobs, client, model):
    frames = clip(3)
    result = client.gaze(frames, **knobs)
    want = expected(model, frames, **knobs)
    for name in (
        "gazing_pos",
        "if_padded_gazing",
        "num_gazing_each_frame",
        "confidences",
        "task_loss_predictions",
    ):
        np.testing.assert_array_equal(getattr(result.generated, name), getattr(want, name))
    assert result.generated.scale_layouts == want.scale_layouts
    np.testing.assert_array_equal(result.fixations, want.fixations(0))
    assert (result.source_size.frames, result.source_size.height, result.source_size.width) == (3, 90, 160)


def test_a_golden_clip_through_the_server_gives_the_published_tokens(client, golden):
    """224×224 frames need no resize, so the recorded input can be sent as bytes."""
    case = golden("row_a")
    result = client.gaze(clips.synthetic_clip(4, 224, 224, case.settings["clip_seeds"][0]), **KNOBS)
    np.testing.assert_array_equal(result.generated.gazing_pos, case.expected["gazing_pos"])
    np.testing.assert_array_equal(result.generated.if_padded_gazing, case.expected["if_padded_gazing"])


def test_alpha_does_not_change_the_tokens(client):
    frames = clip(2)
    alpha = np.random.default_rng(0).integers(0, 256, (*frames.shape[:3], 1), dtype=np.uint8)
    rgba = client.gaze(np.concatenate([frames, alpha], axis=3), **KNOBS)
    np.testing.assert_array_equal(
        rgba.generated.gazing_pos, client.gaze(frames, **KNOBS).generated.gazing_pos
    )


def test_top_k_raises_the_budget(client):
    assert client.gaze(clip(2), gazing_ratio=0.01).tokens_per_frame.tolist() == [2, 2]
    assert client.gaze(clip(2), gazing_ratio=0.01, top_k=25).tokens_per_frame.tolist() == [25, 25]


async def test_the_async_client_gets_the_same(server, client):
    frames = clip(2)
    async with AsyncGazeClient(server.url) as other:
        result = await other.gaze(frames, **KNOBS)
    np.testing.assert_array_equal(result.fixations, client.gaze(frames, **KNOBS).fixations)


def test_a_video_is_gazed_at_in_windows(client, bunny, model):
    from autogaze_client import VideoReader

    result = client.gaze(bunny, max_frames=20, gazing_ratio=0.05)
    assert result.source_size.frames == 20
    windows = list(VideoReader(bunny, max_frames=20).windows(16))
    first, second = (expected(model, window, gazing_ratio=0.05) for window in windows)
    np.testing.assert_array_equal(
        result.generated.gazing_pos[0],
        np.concatenate([first.gazing_pos[0], second.gazing_pos[0] + 16 * 265]),
    )


def test_an_encoded_video_is_decoded_in_the_server(client, tmp_path):
    from autogaze_client import VideoReader, VideoWriter

    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=25) as writer:
        for frame in clip(5):
            writer.write(frame)
    decoded = np.stack(list(VideoReader(path)))
    result = client.gaze(path.read_bytes(), **KNOBS)
    np.testing.assert_array_equal(
        result.generated.gazing_pos, client.gaze(decoded, **KNOBS).generated.gazing_pos
    )


def test_two_clients_at_once_each_get_their_own(server, model):
    def run(seed: int):
        with GazeClient(server.url) as own:
            return [own.gaze(clip(2, seed=seed), **KNOBS).generated.gazing_pos for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(run, (1, 2)))
    for seed, mine in zip((1, 2), answers, strict=True):
        for positions in mine:
            np.testing.assert_array_equal(positions, expected(model, clip(2, seed=seed), **KNOBS).gazing_pos)


def request_inputs(tensors: dict[str, np.ndarray]) -> list:
    types = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32", "int64": "INT64"}
    inputs = []
    for name, array in tensors.items():
        item = triton.InferInput(name, list(array.shape), types[str(array.dtype)])
        item.set_data_from_numpy(array)
        inputs.append(item)
    return inputs


def send(raw, tensors: dict[str, np.ndarray], model: str = "autogaze"):
    return raw.infer(model, request_inputs(tensors), client_timeout=60)


# What autogaze_ingest fills in for a request without knobs.
UNSET = {
    "MODE": np.zeros((1, 1), np.int32),
    "GAZING_RATIO": np.full((1, 1), np.nan, np.float32),
    "TASK_LOSS_REQUIREMENT": np.full((1, 1), np.nan, np.float32),
    "MAX_GAZE_TOKENS": np.full((1, 1), -1, np.int32),
    "TOP_K": np.full((1, 1), -1, np.int32),
    "TARGET_SCALES": np.full((1, 1), -1, np.int32),
    "TARGET_PATCH_SIZE": np.full((1, 1), -1, np.int32),
}
GOOD = {"FRAMES": clip(2)[None]}

BAD = {
    "two clips in one request": ({"FRAMES": np.zeros((2, 1, 8, 8, 3), np.uint8)}, "batch"),
    "one channel": (
        {"FRAMES": np.zeros((1, 2, 8, 8, 1), np.uint8)},
        r"shape \[2, 8, 8, 1\]; pass \[T, H, W, 3\]",
    ),
    "no time axis": ({"FRAMES": np.zeros((1, 8, 8, 3), np.uint8)}, r"FRAMES"),
    "empty clip": ({"FRAMES": np.zeros((1, 0, 8, 8, 3), np.uint8)}, "must be at least 1"),
    "wrong dtype": ({"FRAMES": np.zeros((1, 2, 8, 8, 3), np.float32)}, "data-type is .FP32.*expects .UINT8"),
    "neither input": ({"MODE": np.zeros((1, 1), np.int32)}, "either FRAMES .* or VIDEO"),
    "both inputs": ({**GOOD, "VIDEO": np.zeros((1, 9), np.uint8)}, "either FRAMES .* or VIDEO"),
    "unknown mode": ({**GOOD, "MODE": np.array([[7]], np.int32)}, "MODE is 7.*0 = resize"),
    "ratio above 1": (
        {**GOOD, "GAZING_RATIO": np.array([[1.5]], np.float32)},
        "gazing_ratio is .*1.5.*at most 1",
    ),
    "ratio list too short": (
        {**GOOD, "GAZING_RATIO": np.full((1, 3), 0.5, np.float32)},
        "3 values for 2 frames",
    ),
    "negative requirement": ({**GOOD, "TASK_LOSS_REQUIREMENT": np.array([[-1]], np.float32)}, "at least 0"),
    "no tokens": ({**GOOD, "MAX_GAZE_TOKENS": np.array([[0]], np.int32)}, "at least 1"),
    "not a video": ({"VIDEO": np.arange(200, dtype=np.uint8)[None]}, "video"),
    "a frame of mostly length": (
        {"FRAMES": np.zeros((1, 1, 1, 9000, 3), np.uint8)},
        "64 times longer than wide",
    ),
    "too many frames": (
        {"FRAMES": np.zeros((1, 257, 1, 1, 3), np.uint8)},
        "257 frames; this server takes 256",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_its_own_error_while_others_succeed(case, raw, client):
    tensors, message = BAD[case]
    with ThreadPoolExecutor(3) as pool:
        good = [pool.submit(client.gaze, clip(2), **KNOBS) for _ in range(2)]
        bad = pool.submit(send, raw, tensors)
        with pytest.raises(InferenceServerException, match=message) as caught:
            bad.result()
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert all(answer.result().tokens_per_frame.sum() > 0 for answer in good)
    assert client.is_ready()


def test_a_bad_request_does_not_fail_its_batch_mates(raw):
    """Straight to autogaze_generate, where one execute call serves good and bad requests together."""
    knobs = UNSET
    # More than there are places, so that what is left waits for one, together.
    kinds = [False, True, False] * 12
    before = raw.get_inference_statistics("autogaze_generate", as_json=True)["model_stats"][0]
    with ThreadPoolExecutor(len(kinds) + 1) as pool:
        first = pool.submit(
            send,
            raw,
            {"FRAMES": clip(12)[None], **knobs, "GAZING_RATIO": np.full((1, 1), 0.75, np.float32)},
            "autogaze_generate",
        )
        requests = [
            pool.submit(
                send,
                raw,
                {
                    "FRAMES": clip(1)[None],
                    **knobs,
                    "GAZING_RATIO": np.full((1, 1), 9 if bad else 0.75, np.float32),
                },
                "autogaze_generate",
            )
            for bad in kinds
        ]
        assert first.result().as_numpy("GAZING_POS").shape == (1, 1, 12 * 198)
        outcomes = [request.exception() for request in requests]
    assert [outcome is not None for outcome in outcomes] == kinds
    assert all("at most 1" in str(outcome) for outcome in outcomes if outcome is not None)
    after = raw.get_inference_statistics("autogaze_generate", as_json=True)["model_stats"][0]
    executions = int(after["execution_count"]) - int(before["execution_count"])
    assert executions <= len(kinds), "no two were batched, so nothing was shown about batch mates"


def test_a_truncated_video_file_is_refused_by_client_and_server(client, bunny, tmp_path):
    broken = tmp_path / "broken.mp4"
    # This file keeps its index in front, so it opens; half of its frames are missing.
    content = bunny.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoDecodeError, match=r"trunc|cut short|ends"):
        client.gaze(broken, gazing_ratio=0.02)
    with pytest.raises(InvalidInputError, match=r"trunc|cut short|ends"):
        client.gaze(broken.read_bytes(), gazing_ratio=0.02)
    assert client.gaze(clip(1), gazing_ratio=0.02).tokens_per_frame.tolist() == [5]


def test_a_model_that_does_not_exist_is_not_found(server):
    with (
        GazeClient(server.url, model_name="autogazer") as other,
        pytest.raises(NotFoundError, match="autogazer"),
    ):
        other.gaze(clip(1))


def test_an_abandoned_request_does_not_hold_the_next(raw, client, server_log):
    """The model notices between frames that its caller has gone, instead of finishing for nobody.

    Sent to autogaze_generate itself: this server's ensembles do not tell their steps of a cancellation.
    """
    inputs = request_inputs(
        {"FRAMES": clip(250, 32, 32)[None], **UNSET, "GAZING_RATIO": np.ones((1, 1), np.float32)}
    )
    with pytest.raises(InferenceServerException) as caught:
        raw.infer("autogaze_generate", inputs, client_timeout=2.0)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    # The next request waits for the frame at hand, not for the other two hundred.
    assert client.gaze(clip(1), gazing_ratio=0.02).tokens_per_frame.tolist() == [5]
    deadline = time.monotonic() + 60  # the log comes through a pipe of its own
    while not any("the caller cancelled the request after" in line for line in server_log):
        assert time.monotonic() < deadline, server_log[-20:]
        time.sleep(0.05)


def test_a_short_clip_is_answered_before_a_longer_one_of_its_batch(server):
    """Both wait behind a first clip, so they share an execution; the longer one is in front."""
    finished = []

    def run(name: str, frames: int):
        with GazeClient(server.url) as own:
            own.gaze(clip(frames), gazing_ratio=0.75)
            finished.append(name)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(run, "first", 4)]
        time.sleep(0.15)
        jobs.append(pool.submit(run, "short", 1))
        time.sleep(0.05)
        jobs.append(pool.submit(run, "long", 16))
        for job in jobs:
            job.result()
    assert finished.index("short") < finished.index("long")


def test_target_scales_are_served(client, model):
    """The processor then resizes to the target's size exactly, aspect ignored (pipeline §2)."""
    frames = clip(2, 200, 300)
    knobs = {"gazing_ratio": 0.05, "target_scales": [56, 112, 196, 392], "target_patch_size": 14}
    result = client.gaze(frames, **knobs)
    loaded = model()
    want = loaded.generate(loaded.preprocess_exact(frames, 392)[None], **knobs)
    np.testing.assert_array_equal(result.generated.gazing_pos, want.gazing_pos)
    np.testing.assert_array_equal(result.generated.if_padded_gazing, want.if_padded_gazing)
    assert [layout.grid for layout in result.generated.scale_layouts] == [4, 8, 14, 28]
    info = result.gazing_info()
    assert sorted(info) == ["gazing_pos", "if_padded_gazing", "num_gazing_each_frame"]
    assert set(result.fixations[:, 6]) <= {4.0, 8.0, 14.0, 28.0}


@pytest.mark.parametrize(
    "mode", [AutoGazeInferenceMode.TILED_RESIZE_TO_GRID, AutoGazeInferenceMode.TILED_FULL_RESOLUTION]
)
def test_tiled_modes_are_served(mode, client, model):
    frames = clip(2, 300, 460)
    knobs = {"gazing_ratio": 0.1, "task_loss_requirement": 0.7}
    result = client.gaze(frames, mode=mode, **knobs)
    want = model().gaze(frames, mode=mode, **knobs)
    np.testing.assert_array_equal(result.generated.gazing_pos, want.generated.gazing_pos)
    np.testing.assert_array_equal(result.fixations, want.fixations)
    assert len(result.generated.gazing_pos) == 6
    assert len(result.trace) == 2
    with pytest.raises(InvalidInputError, match="tile"):
        result.gazing_info()


def test_a_short_clip_overtakes_a_long_one_that_is_running(client, model):
    """No request waits for the end of a longer one: rows join between two calls of the engine."""
    answered = []

    def ask(name: str, frames: int):
        result = client.gaze(clip(frames), **KNOBS)
        answered.append(name)
        return result

    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(ask, "long", 48)
        time.sleep(0.2)  # so that the long one is there first; the order of the answers does not depend on it
        short = pool.submit(ask, "short", 1)
        short_result, long_result = short.result(120), long.result(120)
    assert answered == ["short", "long"]
    for frames, result in ((1, short_result), (48, long_result)):
        want = expected(model, clip(frames), **KNOBS)
        np.testing.assert_array_equal(result.generated.gazing_pos, want.gazing_pos)


def test_a_damaged_bundle_stops_the_server_with_the_reason(bundle, tmp_path):
    import shutil

    from autogaze_backend.serving import (
        ServerStartError,
        TritonServer,
        TritonServerConfig,
        model_repository_path,
    )

    broken = shutil.copytree(bundle(), tmp_path / "bundle")
    (broken / "weights.safetensors").write_bytes(b"nonsense")
    config = TritonServerConfig(
        model_repository_path(), 0, 0, 0, environment={"AUTOGAZE_BUNDLE": str(broken)}
    )
    with (
        TritonServer(config, on_log=lambda line: None) as other,
        pytest.raises(ServerStartError, match="SHA-256"),
    ):
        other.wait_until_ready(timeout=60)


def test_a_checkpoint_with_a_missing_tensor_never_becomes_a_bundle(seeded_checkpoint, tmp_path, client):
    """The command names the tensor, and a server beside it goes on serving."""
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(seeded_checkpoint(), tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    del tensors["gazing_model.vision_model.norm.bias"]
    save_file(tensors, folder / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "autogaze_client._cli", "build", str(folder), str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "lacks 1 of 49 tensors: gazing_model.vision_model.norm.bias" in done.stderr
    assert "Traceback" not in done.stderr
    assert client.gaze(clip(1), gazing_ratio=0.02).tokens_per_frame.tolist() == [5]


def test_the_raw_example_of_the_protocol_page_runs(server):
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example],
        env={**os.environ, "AUTOGAZE_URL": server.url},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "frame 3: 26 of 265 tokens" in done.stdout


def test_the_documented_wire_is_the_servers(raw):
    """Names, types and shapes of the ensemble, as the server itself reports them."""
    metadata = raw.get_model_metadata("autogaze")
    inputs = {item.name: item.datatype for item in metadata.inputs}
    outputs = {item.name: item.datatype for item in metadata.outputs}
    assert inputs == {
        "FRAMES": "UINT8",
        "VIDEO": "UINT8",
        "MODE": "INT32",
        "GAZING_RATIO": "FP32",
        "TASK_LOSS_REQUIREMENT": "FP32",
        "MAX_GAZE_TOKENS": "INT32",
        "TOP_K": "INT32",
        "TARGET_SCALES": "INT32",
        "TARGET_PATCH_SIZE": "INT32",
    }
    assert outputs == {
        "GAZING_POS": "INT64",
        "IF_PADDED_GAZING": "BOOL",
        "NUM_GAZING_EACH_FRAME": "INT64",
        "CONFIDENCES": "FP32",
        "TASK_LOSS_PREDICTIONS": "FP32",
        "SCALE_GRIDS": "INT32",
        "FIXATIONS": "FP32",
        "SOURCE_SIZE": "INT32",
    }


def test_the_bundle_in_a_version_folder_wins(bundle, tmp_path):
    """Two checkpoints side by side: each version of autogaze_generate may carry its own."""
    import shutil

    from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path

    repository = shutil.copytree(model_repository_path(), tmp_path / "repository")
    shutil.copytree(bundle("single"), repository / "autogaze_generate" / "1" / "bundle")
    config = TritonServerConfig(repository, 0, 0, 0, environment={"AUTOGAZE_BUNDLE": str(bundle("release"))})
    with TritonServer(config, on_log=lambda line: None) as other:
        other.wait_until_ready(timeout=60)
        with GazeClient(other.url) as connected:
            result = connected.gaze(clip(1), gazing_ratio=0.1)
    assert [layout.grid for layout in result.generated.scale_layouts] == [14]
