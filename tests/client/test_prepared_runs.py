"""Prepare and execute, the teacher, and counts of slots (spec: pipeline §6)."""

from __future__ import annotations

import autogaze_client as ag
import numpy as np
import pytest
from autogaze_client import (
    AutoGazeInferenceMode,
    AutoGazePipeline,
    AutoGazeReadoutStats,
    AutoGazeRgbaClip,
    AutoGazeRgbaClipShape,
    GazeClient,
    InvalidInputError,
    PatchDiffEngine,
    prepare_rgba_clip_for_trace,
    readout_prepared_run,
    readout_prepared_run_async,
    trace_prepared_run,
    trace_prepared_run_async,
)
from client_helpers import FakeServer, decode, generated_for, response_for

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 12, 20, 4), np.uint8)
GRID = AutoGazeInferenceMode.TILED_RESIZE_TO_GRID


@pytest.fixture
def pipeline(client) -> AutoGazePipeline:
    return AutoGazePipeline(client, concurrent=True, task_loss_requirement=0.5)


@pytest.mark.parametrize(
    ("streaming", "frames", "index"), [(False, FRAMES, 2), (True, FRAMES[-1:], 0)], ids=["clip", "stream"]
)
def test_a_run_holds_what_the_model_sees(streaming, frames, index):
    run = prepare_rgba_clip_for_trace(FRAMES.tobytes(), AutoGazeRgbaClipShape(3, 12, 20), GRID, streaming)
    np.testing.assert_array_equal(run.video.frames, frames)
    assert (run.mode, run.frame_index, run.model_frames) == (GRID, index, len(frames))


def test_a_run_is_refused_where_the_bytes_do_not_fit():
    with pytest.raises(InvalidInputError, match="need 2880 bytes"):
        prepare_rgba_clip_for_trace(FRAMES.tobytes()[:-1], AutoGazeRgbaClipShape(3, 12, 20))


def test_runs_give_traces_and_points(pipeline, server):
    run = prepare_rgba_clip_for_trace(AutoGazeRgbaClip(FRAMES))
    trace = trace_prepared_run(pipeline, run, 5)
    assert trace == pipeline.gaze(FRAMES, top_k=5).trace
    assert int(server.requests[0]["TOP_K"][0, 0]) == 5
    readout = readout_prepared_run(pipeline, run)
    assert [[len(frame) for frame in clip] for clip in readout.points] == [[2, 2, 2]]
    assert (readout.frame_index, readout.model_frames) == (2, 3)
    # Two tokens and one padded slot in the last frame.
    assert readout.stats == AutoGazeReadoutStats(generated=3, active=2, padded=1)


async def test_the_async_twins_give_the_same(pipeline):
    run = prepare_rgba_clip_for_trace(FRAMES)
    assert await trace_prepared_run_async(pipeline, run) == trace_prepared_run(pipeline, run)
    assert await readout_prepared_run_async(pipeline, run) == readout_prepared_run(pipeline, run)


def test_tiles_count_points(pipeline, server):
    tiles = generated_for(1, rows=2)
    server.infer = lambda *_: response_for(tiles, 12, 20)
    readout = readout_prepared_run(pipeline, prepare_rgba_clip_for_trace(FRAMES[:1], mode=GRID))
    assert readout.stats == AutoGazeReadoutStats(generated=2, active=2, padded=0)


def test_a_streamed_run_continues_its_stream():
    requests = []

    def infer(model, inputs, outputs, timeout, call):
        requests.append((model, call.sequence, inputs["FRAME"].shape))
        return response_for(generated_for(1, seed=len(requests)), 12, 20)

    server = FakeServer()
    server.infer = infer
    pipeline = AutoGazePipeline(PatchDiffEngine())
    with GazeClient(transport=server).stream() as stream:
        runs = [prepare_rgba_clip_for_trace(FRAMES[: n + 1], mode=GRID, streaming=True) for n in range(3)]
        found = [trace_prepared_run(pipeline, run, stream=stream) for run in runs]
    assert [(model, sequence.start, shape) for model, sequence, shape in requests[:3]] == [
        ("autogaze_stream", index == 0, (1, 12, 20, 4)) for index in range(3)
    ]
    assert [trace.frames[0] for trace in found] == [
        generated_for(1, seed=seed).traces()[0].frames[0] for seed in (1, 2, 3)
    ]


def test_a_stream_takes_one_frame(pipeline):
    with pytest.raises(InvalidInputError, match="streaming=True"):
        trace_prepared_run(pipeline, prepare_rgba_clip_for_trace(FRAMES), stream=object())


def test_slots_of_a_frame_that_is_not_there():
    generated = decode([0, 265, 3, 265 + 7], [False, True, False, False], [3, 1])
    assert AutoGazeReadoutStats.from_generated(generated, 0) == AutoGazeReadoutStats(3, 2, 1)
    assert AutoGazeReadoutStats.from_generated(generated, 2) == AutoGazeReadoutStats(0, 0, 0)
    points = ((generated.traces(k=5)[0].frames[1].points,),)
    assert AutoGazeReadoutStats.from_points(points, 0) == AutoGazeReadoutStats(1, 1, 0), "padding is no point"
    assert AutoGazeReadoutStats.from_points(points, 1) == AutoGazeReadoutStats(0, 0, 0)


def test_the_pipeline_is_a_teacher(pipeline, server):
    video = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    teacher: ag.AutoGazeTeacher = pipeline
    traced = teacher.trace_clip(video.reshape(-1).tolist(), 2, 3, 8, 8, 4)
    assert int(server.requests[0]["MAX_GAZE_TOKENS"][0, 0]) == 10, (
        "a whole group, whatever the pipeline's cap"
    )
    teacher.trace_clip(video, 2, 3, 8, 8, 25)
    assert int(server.requests[1]["MAX_GAZE_TOKENS"][0, 0]) == 25
    with_mode = pipeline.trace_clip_from_frames_with_mode(video, 2, 3, 8, 8, GRID, 4)
    assert "MAX_GAZE_TOKENS" not in server.requests[2]
    assert int(server.requests[2]["MODE"][0, 0]) == GRID.code
    np.testing.assert_array_equal(server.requests[0]["FRAMES"], server.requests[2]["FRAMES"])
    assert traced == with_mode
    with pytest.raises(
        InvalidInputError, match=r"383 values; a clip of T, C, H, W = \[2, 3, 8, 8\] needs 384"
    ):
        teacher.trace_clip(video.reshape(-1)[1:], 2, 3, 8, 8, 4)


@pytest.mark.parametrize(
    ("mode", "height", "width", "expected"),
    [("resize", 1080, 1920, 3), (GRID, 1080, 1920, 135), ("tiled_full_resolution", 224, 225, 6)],
)
def test_the_budget_of_a_mode(mode, height, width, expected):
    assert AutoGazeInferenceMode.parse(mode).fixation_budget(3, height, width) == expected


def test_the_budget_of_nothing_is_refused():
    with pytest.raises(InvalidInputError, match="height is 0"):
        GRID.fixation_budget(3, 0, 1920)
