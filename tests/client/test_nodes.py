"""The pipeline of nodes: seed, and pipeline §6."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import math
import re
from pathlib import Path

import autogaze_client as ag
import numpy as np
import pytest
from autogaze_client import (
    AutoGazeInferenceMode,
    AutoGazePatchDiffConfig,
    AutoGazePipeline,
    AutoGazeRgbaClip,
    AutoGazeRgbaClipShape,
    AutoGazeRgbaFrameQueue,
    AutoGazeSparseMaskSource,
    AutoGazeTensorClip,
    AutoGazeTensorPipeline,
    AutoGazeTensorPipelineConfig,
    FnOutputNode,
    GazeClient,
    GazeEngine,
    InferenceError,
    InvalidInputError,
    MissingExtraError,
    NotFoundError,
    PatchDiffEngine,
    RgbaClipInput,
    TensorClipInput,
    VecOutputNode,
)
from autogaze_client.nodes import engines
from client_helpers import FakeServer

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "nodes.md"
CONFIG = AutoGazeTensorPipelineConfig()
EVERYTHING = CONFIG.with_emit_traces(True).with_emit_generated(True).with_emit_readout_points(True)


@pytest.fixture
def pipeline(client) -> AutoGazePipeline:
    return AutoGazePipeline(client, concurrent=True)


def rgba_clip(frames=3, height=12, width=20, seed=0) -> AutoGazeRgbaClip:
    rng = np.random.default_rng(seed)
    return AutoGazeRgbaClip(rng.integers(0, 256, (frames, height, width, 4)).astype(np.uint8))


def run(pipeline, clip, config) -> ag.AutoGazePipelinePacket:
    source = RgbaClipInput() if isinstance(clip, AutoGazeRgbaClip) else TensorClipInput()
    graph = AutoGazeTensorPipeline(pipeline, source.with_clip(clip), VecOutputNode(), config)
    assert graph.run_next()
    assert not graph.run_next()
    return graph.output_node.into_packets()[0]


def test_the_guide_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/nodes.md", "exec"), namespace)


@pytest.mark.parametrize("module", ["clips", "engines", "frame_queue", "graph", "realtime"])
def test_docstring_examples(module):
    names = {"np": np, **{public: getattr(ag, public) for public in ag.__all__}}
    loaded = importlib.import_module(f"autogaze_client.nodes.{module}")
    assert doctest.testmod(loaded, extraglobs=names).failed == 0


def test_nothing_asked_for_runs_nothing(pipeline, server: FakeServer):
    """§6: no flags: packet with clip only; the model is not run."""
    clip = rgba_clip()
    packet = run(pipeline, clip, CONFIG)
    assert packet.clip is clip
    assert (packet.traces, packet.generated, packet.readout_points) == (None, None, None)
    assert server.requests == []
    with pytest.raises(InvalidInputError, match="set emit_traces"):
        packet.gaze()


@pytest.mark.parametrize("flag", ["emit_traces", "emit_generated", "emit_readout_points"])
def test_one_flag_makes_one_product(pipeline, server, flag):
    """§6: one generation, kept only as asked for."""
    packet = run(pipeline, rgba_clip(), getattr(CONFIG, f"with_{flag}")(True))
    made = {
        "emit_traces": packet.traces,
        "emit_generated": packet.generated,
        "emit_readout_points": packet.readout_points,
    }
    assert [name for name, product in made.items() if product is not None] == [flag]
    assert len(server.requests) == 1
    assert server.requests[0]["TOP_K"].tolist() == [[10]]
    assert len(packet.frame_readout_tokens(1, ag.SparseReadoutGrid(14, 14))) > 0


def test_all_products_come_from_one_generation(pipeline, server):
    """§6: reused for all products; points without padding."""
    packet = run(pipeline, rgba_clip(), EVERYTHING)
    assert len(server.requests) == 1
    assert [len(frame) for frame in packet.readout_points[0]] == [2, 2, 2]
    assert packet.readout_points[0][1] == packet.traces[0].frames[1].points
    assert packet.scale_layouts == packet.generated.scale_layouts
    grid = ag.SparseReadoutGrid(14, 14)
    expected = ag.trace_to_frame_readout_tokens(packet.traces[0], grid)
    for frame, tokens in enumerate(expected):
        np.testing.assert_array_equal(packet.frame_readout_tokens(frame, grid), tokens)
        assert len(packet.frame_readout_rects(frame)) == 2


def test_packets_read_out(pipeline):
    packet = run(pipeline, rgba_clip(2, 28, 28), EVERYTHING)
    geometry = ag.SparseVideoPatchGeometry.square_patch(2, 28, 28, 2, 14)
    projection = ag.SparseVideoReadoutProjection.from_patch_geometry(ag.SparseReadoutGrid(2, 2), geometry)
    tokens = packet.video_readout_tokens(projection)
    assert len(tokens)
    coords = packet.video_readout_coords(projection)
    np.testing.assert_array_equal(packet.video_readout_coord_tensor(projection), coords)
    assert coords.shape == (len(tokens), 4)
    assert packet.frame_tensor(1).shape == (1, 3, 28, 28)
    np.testing.assert_allclose(packet.frame_tensor(1)[0, 0] * 255, packet.clip.frames[1, ..., 0], atol=1e-4)
    assert packet.frame_mask(1, 28, 28).shape == (1, 1, 28, 28)
    assert packet.frame_pyramid_tokens(0, [ag.ImagePyramidLevel(4, 4)]).level_token_ranges == ((0, 16),)
    with pytest.raises(InvalidInputError, match="frame is 2"):
        packet.frame_tensor(2)
    without = run(pipeline, rgba_clip(), CONFIG.with_emit_readout_points(True))
    with pytest.raises(InvalidInputError, match="set emit_traces"):
        without.frame_mask(0, 4, 4)


def test_tensor_clips_become_the_bytes_that_they_were(pipeline, server):
    """Batches are one request a clip; rows of different lengths share slots."""
    from goldens import clips

    frames = np.stack([clips.synthetic_clip(2, 16, 24, seed) for seed in (1, 2)])
    video = np.stack([clips.normalise(clip) for clip in frames])
    packet = run(pipeline, AutoGazeTensorClip(video), EVERYTHING)
    for request, clip in zip(server.requests, frames, strict=True):
        np.testing.assert_array_equal(request["FRAMES"][0], clip)
    assert len(packet.traces) == packet.generated.gazing_pos.shape[0] == 2
    for row in (0, 1):
        np.testing.assert_array_equal(packet.generated.fixations(row), packet.traces[row].to_array())


def test_rows_of_different_lengths_join():
    from autogaze_client.nodes.graph import join_rows
    from client_helpers import generated_for

    parts = [generated_for(2, slots=5), generated_for(2, slots=3, seed=1)]
    joined = join_rows(parts)
    assert joined.num_gazing_each_frame.tolist() == [5, 5]
    for row, part in enumerate(parts):
        np.testing.assert_array_equal(joined.fixations(row), part.fixations(0))
    assert joined.gazing_pos[1, 3:5].tolist() == [265, 265]


@pytest.mark.parametrize(
    "config",
    [
        EVERYTHING.with_mode("tiled-full-resolution"),
        EVERYTHING.with_mask_source(AutoGazeSparseMaskSource.patch_diff()),
        CONFIG.with_top_k(0),
    ],
)
def test_a_rejected_plan_keeps_its_clip(pipeline, config):
    """§6: emit_generated with tiled or patch-diff: an error; here the clip is not lost."""
    source = RgbaClipInput().with_clip(rgba_clip())
    with pytest.raises(InvalidInputError):
        AutoGazeTensorPipeline(pipeline, source, VecOutputNode(), config).run_next()
    assert len(source) == 1


def test_patch_diff_runs_no_model(pipeline, server):
    """§6: differences of the last two frames, strictly above the threshold, last frame only; T = 1: none."""
    video = np.zeros((2, 3, 3, 28, 28), np.float32)
    video[1, 2, :, :14, 14:] = 0.5
    config = CONFIG.with_emit_traces(True).with_emit_readout_points(True)
    config = config.with_mask_source(AutoGazeSparseMaskSource.patch_diff(AutoGazePatchDiffConfig(2)))
    packet = run(pipeline, AutoGazeTensorClip(video), config)
    assert server.requests == []
    assert [[len(frame) for frame in clip] for clip in packet.readout_points] == [[0, 0, 0], [0, 0, 1]]
    assert packet.traces[1].frames[2].points[0].to_dict()["x"] == 0.75
    assert run(pipeline, AutoGazeTensorClip(video[:, :1]), config).readout_points == (((),), ((),))
    video[1, 2, :, :14, 14:] = 0.45
    assert run(pipeline, AutoGazeTensorClip(video), config).readout_points[1][2] == ()


async def test_async_twins(pipeline):
    """§6: `run_next_async` is equivalent; `readout_points_with_mode_async` likewise."""
    clip, found = rgba_clip(), []
    graph = AutoGazeTensorPipeline(
        pipeline, RgbaClipInput().with_clip(clip), FnOutputNode(found.append), EVERYTHING
    )
    assert await graph.run_next_async()
    assert not await graph.run_next_async()
    expected = run(pipeline, clip, EVERYTHING)
    assert found[0].traces == expected.traces
    points = await asyncio.gather(*[pipeline.readout_points_with_mode_async(clip) for _ in range(2)])
    assert points[0] == points[1] == expected.readout_points == pipeline.readout_points_with_mode(clip)
    assert pipeline.trace_rgba_clip_with_mode(clip) == expected.traces[0]


def test_errors_of_engine_and_output_end_the_run(pipeline, server):
    def refuse(packet):
        raise OSError("disk full")

    graph = AutoGazeTensorPipeline(pipeline, RgbaClipInput().with_clip(rgba_clip()), FnOutputNode(refuse))
    with pytest.raises(OSError, match="disk full"):
        graph.run_next()
    server.fail_if = lambda inputs: True
    with pytest.raises(InferenceError):
        run(pipeline, rgba_clip(), EVERYTHING)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoGazeRgbaClipShape(1, 0, 4), "must be at least 1"),
        (lambda: AutoGazeRgbaClip(b"abc", AutoGazeRgbaClipShape(1, 1, 1)), "has 3 values .* need 4 bytes"),
        (lambda: AutoGazeTensorClip(np.zeros((1, 0, 3, 2, 2))), "nonzero"),
        (lambda: AutoGazeTensorClip(np.full((1, 1, 3, 2, 2), math.nan)).rgb_frames(0), "NaN"),
        (lambda: AutoGazeTensorClip(np.zeros((1, 1, 4, 2, 2))).rgb_frames(0), "4 channels"),
        (lambda: AutoGazeRgbaFrameQueue().push(np.zeros((2, 2, 3), np.uint8), 1), "RGBA"),
        (lambda: PatchDiffEngine().gaze(np.zeros((1, 2, 2), np.uint8)), "frames are"),
    ],
)
def test_what_is_refused(make, message):
    """§7, the rows of clips and queues."""
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_frame_queue():
    """§6: exactly n frames or nothing; slides by one; another size clears; buffers are used again."""
    queue = AutoGazeRgbaFrameQueue(max_spare=1)
    frames = [np.full((2, 3, 4), index, np.uint8) for index in range(5)]
    assert queue.build_latest_clip() is None
    for index, frame in enumerate(frames):
        queue.push(frame, 2)
        clip = queue.build_clip(2)
        if index == 0:
            assert clip is None
            continue
        assert clip.frames[:, 0, 0, 0].tolist() == [index - 1, index]
        assert (clip.last_frame() == index).all()
    frames[-1][:] = 99
    assert (queue.build_latest_clip().frames == 4).all()
    memory = clip.frames
    queue.recycle_clip_buffer(clip)
    queue.recycle_clip_buffer(clip)
    assert queue.spare_buffers == 1
    assert np.shares_memory(queue.build_clip(2).frames, memory)
    queue.push(np.zeros((4, 4, 4), np.uint8), 2)
    assert (len(queue), queue.spare_buffers) == (1, 0)


def test_sequencer():
    """Visualization §7: reserve 1, 2; accept 2, then 1 no, 3 yes; invalidated ones are refused."""
    sequencer = ag.AutoGazeInferenceSequencer()
    assert [sequencer.reserve(), sequencer.reserve()] == [1, 2]
    assert [sequencer.accept(2), sequencer.accept(1), sequencer.accept(3)] == [True, False, True]
    sequencer = ag.AutoGazeInferenceSequencer()
    pending = sequencer.reserve()
    sequencer.invalidate_pending()
    assert not sequencer.accept(pending)
    assert sequencer.accept(sequencer.reserve())


def test_realtime_policy():
    """Visualization §7."""
    policy = ag.AutoGazeRealtimePolicy(0)
    assert policy.max_in_flight == 1
    assert policy.should_start_inference(0)
    assert policy.inference_busy(1)
    assert policy.should_draw_live_preview(False)
    assert not policy.should_draw_live_preview(True)
    assert policy.should_draw_async_stream_preview()
    resize, tiled, _ = AutoGazeInferenceMode
    assert ag.should_use_streaming_cache(True, 16, resize)
    for case in ((True, 16, tiled), (True, 1, resize), (False, 16, resize)):
        assert not ag.should_use_streaming_cache(*case)


def test_the_engines_share_one_protocol():
    for engine in (PatchDiffEngine(), GazeClient(transport=FakeServer())):
        assert isinstance(engine, GazeEngine)
        frames = np.zeros((2, 28, 28, 3), np.uint8)
        frames[1, :14] = 255
        result = AutoGazePipeline(engine).gaze(frames, "resize")
        assert result.source_size.frames == 2
        assert result.generated.tokens_of_rows.sum() == len(result.fixations) > 0


def test_loading_finds_engines(tmp_path, monkeypatch):
    """A url is a client; a folder is loaded by the entry point of the group; the client imports no backend."""
    assert isinstance(AutoGazePipeline.load("localhost:8001").engine, GazeClient)
    with pytest.raises(NotFoundError, match="neither a bundle's folder nor host:port"):
        AutoGazePipeline.load("nowhere")

    class Entry:
        name = "in-process"

        @staticmethod
        def load():
            return lambda bundle, **settings: (bundle, settings)

    monkeypatch.setattr(
        engines, "entry_points", lambda group: [Entry()] if group == "autogaze.engines" else []
    )
    assert AutoGazePipeline.load(tmp_path, device="cpu").engine == (tmp_path, {"device": "cpu"})
    monkeypatch.setattr(engines, "entry_points", lambda group: [])
    with pytest.raises(MissingExtraError, match=r"autogaze-triton\[server\]"):
        AutoGazePipeline.load(tmp_path)


def test_the_in_process_model_is_an_engine(bundle):
    """The real entry point: the same tokens as the model itself, through a pipeline of nodes."""
    import importlib.metadata

    from goldens import clips

    pytest.importorskip("onnxruntime", reason="the extra server is not installed")
    if not importlib.metadata.entry_points(group="autogaze.engines"):
        pytest.skip("installed before the entry point was added; make setup")
    pipeline = AutoGazePipeline.load(bundle("release"), gazing_ratio=0.05)
    assert isinstance(pipeline.engine, GazeEngine)
    frames = clips.synthetic_clip(2, 64, 96, 5)
    rgba = np.concatenate([frames, np.full((*frames.shape[:3], 1), 255, np.uint8)], axis=3)
    packet = run(pipeline, AutoGazeRgbaClip(rgba), EVERYTHING)
    expected = pipeline.engine.gaze(frames, gazing_ratio=0.05, top_k=10)
    np.testing.assert_array_equal(packet.generated.gazing_pos, expected.generated.gazing_pos)
    tensor = run(pipeline, AutoGazeTensorClip(clips.normalise(frames)[None]), EVERYTHING)
    np.testing.assert_array_equal(tensor.generated.gazing_pos, expected.generated.gazing_pos)
