"""The TensorRT executor on doubles of TensorRT and CUDA that run the real graphs: tokens, memory, order of calls."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
from autogaze_backend import GazeModel
from autogaze_backend.bundle import Bundle
from autogaze_backend.engine import Limits
from autogaze_backend.graphs import Phase, cache_names
from autogaze_backend.plan_selection import Gpu, select_plans
from autogaze_backend.plan_selection import Machine as PlanMachine
from autogaze_backend.plans import Bucket, EngineKind, PlanSet, PlanTensor
from autogaze_client import (
    AutoGazeGenerateOutput,
    InvalidInputError,
    PlanMismatchError,
    ServerUnavailableError,
)
from goldens import clips
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cuda.bindings.runtime", reason="the extra cuda is not installed")

from autogaze_backend.tensorrt_engine import CudaError, PlanExecutionError, TensorRtEngine
from autogaze_backend.tensorrt_engine.api import Binding, TensorRt
from autogaze_backend.tensorrt_engine.cuda import Cuda
from autogaze_backend.tensorrt_engine.opening import Grid, check_bindings

from backend.tensorrt_doubles import FakeCuda, FakeTensorRt, write_plans
from backend.test_goldens import CASES

SMALL = {"rows": (1, 2), "lengths": (256, 512), "frames": (1,)}


class Machine:
    """An engine and the doubles beneath it."""

    def __init__(self, bundle, folder, *, plans=None, trt=None, engine=None, change=None):
        self.cuda = FakeCuda()
        self.trt = FakeTensorRt(self.cuda, **(trt or {}))
        self.bundle = Bundle.load(bundle)
        self.plans = write_plans(bundle, folder / "plans", **(plans or {}))
        if change is not None:
            change(self)
        self.engine = TensorRtEngine(
            self.bundle.spec,
            self.plans,
            TensorRt(EngineKind.TENSORRT, self.trt),
            Cuda(0, self.cuda),
            **(engine or {}),
        )
        self.model = GazeModel(self.bundle, self.engine)

    def context(self, bucket: Bucket):
        (found,) = [context for context in self.trt.contexts if context.engine.name == bucket.file]
        return found


@pytest.fixture(scope="module")
def machine(bundle, tmp_path_factory):
    """The engine of a layout; every test leaves it without open slots."""
    made: dict[str, Machine] = {}

    def make(layout: str = "release") -> Machine:
        if layout not in made:
            made[layout] = Machine(bundle(layout), tmp_path_factory.mktemp(layout))
        assert len(made[layout].engine._pool) == 0
        return made[layout]

    yield make
    for one in made.values():
        one.engine.close()
        assert one.cuda.memory == {}, "memory was leaked"
        assert one.cuda.alive == set(), "a stream or graph was leaked"


@pytest.fixture
def small(bundle, tmp_path):
    """Makes engines with few, small buckets, and sees that they leave nothing behind."""
    made: list[Machine] = []

    def make(**settings) -> Machine:
        made.append(Machine(bundle("release"), tmp_path / str(len(made)), **{"plans": SMALL, **settings}))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()
        assert one.cuda.memory == {}
        assert one.cuda.alive == set()


def same(found, expected) -> None:
    np.testing.assert_array_equal(found.gazing_pos, expected["gazing_pos"])
    np.testing.assert_array_equal(found.if_padded_gazing, expected["if_padded_gazing"])
    np.testing.assert_array_equal(found.num_gazing_each_frame, expected["num_gazing_each_frame"])


def equal(found, expected) -> None:
    np.testing.assert_array_equal(found.gazing_pos, expected.gazing_pos)
    np.testing.assert_array_equal(found.if_padded_gazing, expected.if_padded_gazing)
    np.testing.assert_allclose(found.task_loss_predictions, expected.task_loss_predictions, atol=1e-4)
    np.testing.assert_allclose(found.confidences, expected.confidences, atol=1e-4)


def video(frames: int, *seeds: int) -> np.ndarray:
    return np.stack([clips.normalise(clips.synthetic_clip(frames, 224, 224, seed)) for seed in seeds])


def limits_of(rows: int) -> Limits:
    return Limits(np.full(rows, 100), np.full(rows, np.nan, np.float32))


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_published_model(name, golden, machine):
    case = golden(name)
    generated = machine(case.settings.get("layout", "release")).model.generate(case.video, **case.knobs)
    same(generated, case.expected)


@pytest.mark.parametrize("chunks", [[1] * 6, [2, 3, 1]])
def test_a_stream_gives_the_published_streams_tokens(chunks, golden, machine):
    case = golden("streaming")
    parts, start = [], 0
    with machine().model.open_stream() as stream:
        for size in chunks:
            parts.append(stream.push(case.video[:, start : start + size], **case.knobs))
            start += size
    same(AutoGazeGenerateOutput.concatenate(parts), case.expected)


def test_the_first_logits_are_those_of_onnx_runtime(machine, model):
    frames = video(1, 3)
    engines = [machine().engine, model().engine]
    machine().engine.reads_logits = True
    groups = []
    for engine in engines:
        vision, _ = engine.encode(frames, None)
        none, slot = np.zeros(1, np.int64), engine.open_slot()
        limits = Limits(np.array([100]), np.array([np.nan], np.float32))
        slots = np.array([slot])
        groups.append(
            engine.prefill(slots, vision[:, 0], np.zeros((1, 0), np.int64), none, none, none, limits)
        )
        engine.close_slot(slot)
    machine().engine.reads_logits = False
    assert groups[0].logits.shape == (1, 10, 266)
    np.testing.assert_allclose(groups[0].logits, groups[1].logits, atol=1e-4)
    np.testing.assert_array_equal(groups[0].ids, groups[1].ids)


def test_frames_and_rows_beyond_the_buckets_are_encoded_in_pieces(machine, model):
    frames = video(6, 1, 2, 3, 4, 5)  # pieces of 4, 1 and 1 frames, of 4 and 1 rows
    state = np.random.default_rng(0).normal(size=(5, *model().engine.encoder_state_shape)).astype(np.float32)
    found, expected = machine().engine.encode(frames, state), model().engine.encode(frames, state)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


def test_streams_past_their_horizon_and_past_the_places(small, model):
    """Five streams on two places: caches are parked and fetched, grow, and lose their oldest frames."""
    box = small(plans={**SMALL, "lengths": (256, 512, 1024)})
    streams = [[loaded.open_stream(horizon=2) for _ in range(5)] for loaded in (box.model, model())]
    random = np.random.default_rng(5)
    for turn in range(8):
        chosen = random.permutation(5)[: random.integers(1, 5)]
        frames = [video(1, 10 * turn + int(index))[0] for index in chosen]
        knobs = {"gazing_ratio": float(random.uniform(0.05, 0.4)), "task_loss_requirement": 0.7}
        found, expected = (
            loaded.step_streams([(own[i], f) for i, f in zip(chosen, frames, strict=True)], **knobs)
            for loaded, own in zip((box.model, model()), streams, strict=True)
        )
        for one, other in zip(found, expected, strict=True):
            equal(one, other)
    assert box.engine._pool.moved_rows > 5
    assert any(box.engine._pool._parking.values()), "nothing was ever parked"
    for stream in itertools.chain(*streams):
        stream.close()
    assert len(box.engine._pool) == 0
    assert all((arena.occupants == -1).all() for arena in box.engine._pool.arenas.values())


@settings(max_examples=5, derandomize=True)
@given(data=st.data())
def test_rows_that_come_and_go_equal_their_rows_alone(data, machine, model):
    """Clips of different lengths in one scheduler: rows of several cache lengths share calls."""
    rows = data.draw(st.integers(2, 7), label="rows")
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=rows, max_size=rows), label="frames")
    loaded = machine().model
    from autogaze_backend.budgets import resolve_budget

    ratio = data.draw(st.floats(0.02, 0.9), label="ratio")
    made, expected = [], []
    for index, frames in enumerate(lengths):
        clip = video(frames, index)
        knobs = {"gazing_ratio": ratio, "task_loss_requirement": 0.7}
        made.append(
            loaded.row(clip[0], resolve_budget(loaded.spec, frames, max_gaze_tokens_each_frame=None, **knobs))
        )
        expected.append(model().generate(clip, **knobs))
    for index, tokens in loaded.generate_rows(made):
        assert not isinstance(tokens, Exception), tokens
        ids = np.concatenate([frame.arrays()[0] for frame in tokens])
        padded = expected[index].if_padded_gazing[0]
        np.testing.assert_array_equal(ids == loaded.spec.tokens_per_frame, padded)
        frame = expected[index].frame_of_slot
        np.testing.assert_array_equal(
            ids[~padded], (expected[index].gazing_pos[0] - frame * loaded.spec.tokens_per_frame)[~padded]
        )


def test_every_plan_is_bound_once_run_once_then_captured(small):
    box = small()
    order: dict[str, list[str]] = {}
    for what, name in box.trt.events:
        order.setdefault(name, []).append(what)
    assert set(order) == {bucket.file for bucket in box.plans.plans}
    for name, events in order.items():
        context = next(c for c in box.trt.contexts if c.engine.name == name)
        assert events == ["deserialize", "context", *["bind"] * len(context.addresses), "enqueue", "capture"]
    box.model.generate(video(2, 1), gazing_ratio=0.1)
    assert all(context.enqueued == 1 for context in box.trt.contexts), "a captured plan was enqueued"
    assert box.engine.fallbacks == {}


def test_a_steady_step_is_one_launch_and_one_wait(small):
    box = small()
    engine, size = box.engine, box.bundle.spec.group_size
    vision, _ = engine.encode(video(1, 1, 2), None)
    slots = np.array([engine.open_slot(), engine.open_slot()])
    zero, limits = np.zeros(2, np.int64), Limits(np.array([90, 90]), np.full(2, np.nan, np.float32))
    group = engine.prefill(slots, vision[:, 0], np.zeros((2, 0), np.int64), zero, zero, zero, limits)
    length = zero + vision.shape[2]
    for turn in range(4):
        box.cuda.calls.clear()
        group = engine.step(slots, group.ids, length[:, None] + np.arange(-size, 0), length, limits)
        length = length + size
        if turn:
            assert box.cuda.names() == ["cudaSetDevice", "cudaGraphLaunch", "cudaStreamSynchronize"]
    # The other way round: rows keep their places, so nothing moves.
    box.cuda.calls.clear()
    engine.step(slots[::-1], group.ids[::-1], length[:, None] + np.arange(-size, 0), length, limits)
    assert "cudaMemcpy3DAsync" not in box.cuda.names()
    # One rests: the other stays where it is too, and runs in the plan that reaches it.
    for slot in (0, 1):
        box.cuda.calls.clear()
        engine.step(
            slots[slot : slot + 1],
            group.ids[slot : slot + 1],
            length[:1, None] + np.arange(-size, 0),
            length[:1],
            limits_of(1),
        )
        assert box.cuda.names() == ["cudaSetDevice", "cudaGraphLaunch", "cudaStreamSynchronize"]
    for slot in slots:
        engine.close_slot(int(slot))


def test_a_row_that_rests_keeps_its_cache_and_its_tokens(small, model):
    """Two rows of one batch, of which now one, now the other and now both run: as each would alone."""
    box = small(plans={**SMALL, "lengths": (512,)})
    engines = [box.engine, model().engine]
    size = box.bundle.spec.group_size
    turns = [(0, 1), (0,), (0,), (1,), (0, 1), (1,), (0,)]
    results = []
    for engine in engines:
        vision, _ = engine.encode(video(1, 1, 2), None)
        slots = np.array([engine.open_slot(), engine.open_slot()])
        zero = np.zeros(2, np.int64)
        group = engine.prefill(
            slots, vision[:, 0], np.zeros((2, 0), np.int64), zero, zero, zero, limits_of(2)
        )
        ids, length, seen = group.ids.copy(), zero + vision.shape[2], [group.ids]
        for turn in turns:
            rows = np.array(turn)
            positions = length[rows, None] + np.arange(-size, 0)
            group = engine.step(slots[rows], ids[rows], positions, length[rows], limits_of(len(rows)))
            ids[rows], length[rows] = group.ids, length[rows] + size
            seen.append(group.ids)
        for slot in slots:
            engine.close_slot(int(slot))
        results.append(seen)
    for found, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_row_far_from_what_its_call_needs_changes_places(small, model):
    """With room for no third, the two are exchanged, and both keep what they hold."""
    box = small(plans={**SMALL, "rows": (1, 8), "lengths": (1024,)})
    streams = [[loaded.open_stream() for _ in range(8)] for loaded in (box.model, model())]
    frames = [video(1, seed)[0] for seed in range(8)]
    knobs = {"gazing_ratio": 0.1}

    def step(turn: int, chosen: list[int]) -> None:
        found, expected = (
            loaded.step_streams([(own[i], frames[(i + turn) % 8]) for i in chosen], **knobs)
            for loaded, own in zip((box.model, model()), streams, strict=True)
        )
        for one, other in zip(found, expected, strict=True):
            equal(one, other)

    step(0, list(range(8)))
    before = box.engine._pool.moved_rows
    step(1, [5])
    assert box.engine._pool.moved_rows == before + 3, "out of the way, in, and back into the free place"
    (arena,) = box.engine._pool.arenas.values()
    assert arena.occupants.tolist() == [5, 1, 2, 3, 4, 0, 6, 7]
    step(2, [5])
    step(3, list(range(8)))
    for stream in itertools.chain(*streams):
        stream.close()


def test_a_graph_holds_one_copy_up_and_one_down(small):
    box = small()
    kinds = box.cuda.cudaMemcpyKind
    copies = [arguments[3] for name, arguments in box.cuda.calls if name == "cudaMemcpyAsync"]
    # Once plainly, once captured, for each plan.
    assert copies.count(kinds.cudaMemcpyHostToDevice) == 2 * len(box.plans.plans)
    assert copies.count(kinds.cudaMemcpyDeviceToHost) == 2 * len(box.plans.plans)
    assert copies.count(kinds.cudaMemcpyDeviceToDevice) == 0


def test_caches_are_shared_by_input_and_output_and_by_all_plans_of_a_length(small):
    box = small()
    for length in SMALL["lengths"]:
        places = []
        for phase, rows in itertools.product((Phase.PREFILL, Phase.STEP), SMALL["rows"]):
            addresses = box.context(Bucket(phase, rows, length)).addresses
            for name in cache_names(box.bundle.spec):
                assert addresses[name] == addresses[f"new_{name}"]
            places.append([addresses[name] for name in cache_names(box.bundle.spec)])
        assert all(place == places[0] for place in places)
        assert len(set(places[0])) == len(places[0])


def test_addresses_stay_over_many_calls(small):
    box = small()
    before = {context.engine.name: dict(context.addresses) for context in box.trt.contexts}
    for seed in range(3):
        box.model.generate(video(1, seed, seed + 1), gazing_ratio=0.3)
    # The double also refuses a second address for a tensor.
    assert {context.engine.name: context.addresses for context in box.trt.contexts} == before


def test_an_engine_that_does_not_alias_gets_its_caches_copied_back(small, model):
    box = small(trt={"aliased": False})
    addresses = box.context(Bucket(Phase.STEP, 2, 512)).addresses
    assert all(addresses[name] != addresses[f"new_{name}"] for name in cache_names(box.bundle.spec))
    clips_ = video(2, 7, 8)
    equal(box.model.generate(clips_, gazing_ratio=0.2), model().generate(clips_, gazing_ratio=0.2))


def test_what_cannot_be_captured_is_enqueued_and_says_why(small, model, caplog):
    with caplog.at_level(logging.WARNING, "autogaze.tensorrt"):
        box = small(trt={"capturable": False})
    assert set(box.engine.fallbacks) == {bucket.file for bucket in box.plans.plans}
    assert "could not enqueue step-r1-l256.plan" in box.engine.fallbacks["step-r1-l256.plan"]
    assert "runs without a CUDA graph" in caplog.text
    clips_ = video(2, 7)
    equal(box.model.generate(clips_, gazing_ratio=0.2), model().generate(clips_, gazing_ratio=0.2))
    assert box.context(Bucket(Phase.STEP, 1, 512)).enqueued > 2
    assert "cudaGraphLaunch" not in box.cuda.names()


def test_a_graph_that_cuda_refuses_falls_back_too(small, caplog):
    def refuse(box: Machine) -> None:
        box.cuda.fail["cudaGraphInstantiate"] = box.cuda.cudaError_t.cudaErrorNotSupported

    box = small(change=refuse)
    assert len(box.engine.fallbacks) == len(box.plans.plans)
    assert "cudaGraphInstantiate failed" in caplog.text
    box.model.generate(video(1, 7), gazing_ratio=0.1)


def test_too_long_a_row_is_refused_alone(small):
    box = small()
    stream = box.model.open_stream()
    with pytest.raises(InvalidInputError, match=r"longest plan has 512.*--length-buckets"):
        stream.push(video(3, 1), gazing_ratio=0.75)
    stream.close()
    box.model.generate(video(1, 7), gazing_ratio=0.1)


def test_moves_that_overlap_are_refused(small):
    box = small()
    with box.model.open_stream() as stream:
        stream.push(video(1, 1), gazing_ratio=0.1)
        with pytest.raises(InvalidInputError, match="disjoint"):
            box.engine.move(0, np.array([5, 6]), np.array([4, 5]))


def test_positions_are_moved_in_every_layer_and_head(small):
    box = small()
    slot = box.engine.open_slot()
    vision, _ = box.engine.encode(video(1, 1), None)
    zero, limits = np.zeros(1, np.int64), Limits(np.array([90]), np.full(1, np.nan, np.float32))
    box.engine.prefill(np.array([slot]), vision[:, 0], np.zeros((1, 0), np.int64), zero, zero, zero, limits)
    context = box.context(Bucket(Phase.STEP, 1, 256))

    def caches() -> np.ndarray:
        box.engine._cuda.synchronize()
        return np.stack([context._array(name)[0].copy() for name in cache_names(box.bundle.spec)])

    before = caches()
    source, destination = np.array([150, 151, 160, 170]), np.array([3, 4, 9, 8])
    box.cuda.calls.clear()
    box.engine.move(slot, source, destination)
    assert box.cuda.names().count("cudaMemcpy3DAsync") == 3, "one copy a run of positions"
    expected = before.copy()
    expected[:, :, destination] = before[:, :, source]
    np.testing.assert_array_equal(caches(), expected)
    box.engine.close_slot(slot)


def test_an_unknown_input_is_refused_by_name(small):
    with pytest.raises(
        PlanMismatchError, match=r"inputs that this version does not know \(mask\).*autogaze build"
    ):
        small(trt={"extra_input": "mask"})


def test_a_plan_that_tensorrt_refuses_is_refused_with_its_reason(small):
    def damage(box: Machine) -> None:
        box.plans.file(box.plans.plans[Bucket(Phase.STEP, 1, 512)]).write_bytes(b"\x00" * 64)

    with pytest.raises(PlanMismatchError, match=r"refuses .*step-r1-l512.*magicTag.*autogaze build"):
        small(change=damage)


def test_a_plan_of_another_shape_than_its_manifest_says_is_refused(small):
    def exchange(box: Machine) -> None:
        one, other = (box.plans.file(box.plans.plans[Bucket(Phase.STEP, 1, n)]) for n in (256, 512))
        one.write_bytes(other.read_bytes())

    with pytest.raises(
        PlanMismatchError, match=r"key_0 of step-r1-l256.plan has the shape \[1, 6, 512, 32\]"
    ):
        small(change=exchange)


def test_a_missing_bucket_is_named(small):
    def lose(box: Machine) -> None:
        plans = dict(box.plans.plans)
        del plans[Bucket(Phase.STEP, 2, 512)]
        box.plans = replace(box.plans, plans=plans)

    with pytest.raises(
        PlanMismatchError, match=r"lacks the step plan of 2 rows and 512.*--length-buckets 256,512"
    ):
        small(change=lose)


def test_weights_left_out_of_plans_come_from_the_bundle(small):
    def strip(box: Machine) -> None:
        box.plans = replace(box.plans, stripped=True)

    weights = {"decoder.embed": np.zeros(3, np.float32), "encoder.patch.weight": np.zeros(3, np.float32)}
    box = small(change=strip, trt={"stripped": True}, engine={"weights": weights})
    assert [name for what, name in box.trt.events if what == "refit"] == [b.file for b in box.engine._graphs]
    with pytest.raises(PlanMismatchError, match=r"wants the weight 'encoder.patch.weight'"):
        small(change=strip, trt={"stripped": True})


def test_fewer_rows_open_fewer_plans(small):
    box = small(engine={"max_rows": 1})
    assert box.engine.preferred_rows == 1
    assert {bucket.rows for bucket in box.engine._graphs} == {1}
    with pytest.raises(PlanMismatchError, match="AUTOGAZE_MAX_ROWS"):
        small(engine={"max_rows": 0})


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMallocHost", "cudaMemsetAsync", "cudaMemcpyAsync"])
def test_a_failure_while_opening_frees_everything(call, small):
    boxes = []

    def fail(box: Machine) -> None:
        boxes.append(box)
        original = FakeCuda.__getattr__
        count = 0

        class Failing(FakeCuda):
            def __getattr__(self, name):
                nonlocal count
                answer = original(self, name)
                count += name == call
                if name == call and count == 3:
                    return lambda *_: (self._real.cudaError_t.cudaErrorMemoryAllocation, None)
                return answer

        box.cuda.__class__ = Failing

    with pytest.raises(ServerUnavailableError, match=rf"{call} failed.*AUTOGAZE_MAX_ROWS"):
        small(change=fail)
    assert boxes[0].cuda.memory == {}
    assert boxes[0].cuda.alive == set()


def test_a_failing_device_fails_the_call_and_names_it(small):
    box = small()
    box.cuda.fail["cudaStreamSynchronize"] = box.cuda.cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(CudaError, match=r"cudaStreamSynchronize failed on device 0.*illegal"):
        box.model.generate(video(1, 7), gazing_ratio=0.1)
    box.cuda.fail.clear()
    box.engine._cuda.synchronize()


def test_a_context_that_does_not_run_at_all_is_an_error(small, monkeypatch):
    monkeypatch.setattr("backend.tensorrt_doubles.FakeContext.execute_async_v3", lambda self, stream: False)
    with pytest.raises(PlanExecutionError, match=r"could not enqueue encoder-r1-t1\.plan"):
        small()


def test_the_doubles_names_are_the_real_librarys():
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    from backend import tensorrt_doubles as doubles

    for double, real in (
        (doubles.FakeEngine, trt.ICudaEngine),
        (doubles.FakeContext, trt.IExecutionContext),
    ):
        own = {"check_rules", "compute"}
        public = {name for name in vars(double) if not name.startswith("_")} - own
        assert {name for name in public if not hasattr(real, name)} == set()
    assert {name for name in dir(trt.Refitter) if not name.startswith("_")} >= {
        "get_missing_weights",
        "get_weights_prototype",
        "set_named_weights",
        "refit_cuda_engine",
    }
    assert int(trt.TensorIOMode.INPUT) == doubles.TensorIOMode.INPUT
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
    for severity in doubles.Severity:
        assert hasattr(trt.ILogger.Severity, severity.name)
    for dtype in doubles.DataType:
        assert int(getattr(trt.DataType, dtype.name)) == dtype


def test_the_real_library_refuses_what_is_no_plan():
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    api = TensorRt(EngineKind.TENSORRT_RTX)
    assert api.version.count(".") >= 2
    with pytest.raises(PlanMismatchError, match=r"refuses x.plan.*(magicTag|incompatible)[\s\S]*; remedy"):
        api.deserialize(b"no plan" * 20, "x.plan", "remedy")
    api.close()


def test_fast_plans_keep_their_caches_in_half_precision_and_agree_with_float32(
    seeded_checkpoint, bundle, tmp_path
):
    from autogaze_backend.onnxruntime_engine import OnnxRuntimeEngine
    from autogaze_export import build
    from autogaze_export.agreement import ShadowedEngine

    pytest.importorskip("onnx", reason="the extra fast is not installed")
    fast = build(seeded_checkpoint(), tmp_path / "fast", precision="fast")
    box = Machine(fast, tmp_path, plans={"rows": (2,), "lengths": (512,), "frames": (1,)})
    assert box.context(Bucket(Phase.STEP, 2, 512)).engine.get_tensor_dtype("key_0").name == "HALF"
    box.engine.reads_logits = True
    shadowed = ShadowedEngine(OnnxRuntimeEngine(Bundle.load(bundle("release"))), box.engine)
    GazeModel(box.bundle, shadowed).generate(video(2, 1, 2), max_gaze_tokens_each_frame=60)
    agreement = shadowed.agreement("doubles")
    assert agreement.choices == 240
    assert agreement.equal >= 0.97
    shadowed.close()
    assert box.cuda.memory == {}


def test_a_manifest_that_lists_other_tensors_is_refused(small):
    def misstate(box: Machine) -> None:
        bucket = Bucket(Phase.STEP, 1, 256)
        tensor = PlanTensor("budget", "int32", (1,), True)
        plans = {**box.plans.plans, bucket: replace(box.plans.plans[bucket], tensors=(tensor,))}
        box.plans = replace(box.plans, plans=plans)

    with pytest.raises(
        PlanMismatchError, match=r"budget of step-r1-l256.plan is int64 \[1\], .* says int32 \[1\]"
    ):
        small(change=misstate)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_plans_that_the_real_builder_wrote_are_what_the_executor_expects(
    precision, seeded_checkpoint, tmp_path
):
    """Built by TensorRT-RTX for another GPU: its own list of tensors passes the checks of loading."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    pytest.importorskip("onnx", reason="the extra tensorrt-rtx is not installed")
    from autogaze_backend.plans import plan_folders
    from autogaze_export import build
    from autogaze_export.tensorrt.options import PlanOptions

    options = PlanOptions(((8, 9),), batch_buckets=(1, 2), length_buckets=(256,), frame_buckets=(1,))
    path = build(
        seeded_checkpoint(), tmp_path / "bundle", engine="tensorrt-rtx", precision=precision, plans=options
    )
    loaded = Bundle.load(path)
    (folder,) = plan_folders(path)
    plans = PlanSet.load(folder)
    grid = Grid.of(plans)
    assert (grid.rows, grid.lengths, grid.frames) == ((1, 2), (256,), (1,))
    for bucket in grid.buckets:
        plan = plans.plans[bucket]
        bindings = [Binding(t.name, t.is_input, t.shape, np.dtype(t.dtype), t.alias) for t in plan.tensors]
        check_bindings(plan, bindings, loaded.spec, "")
        aliases = {b.name: b.alias for b in bindings if b.alias}
        caches = () if bucket.phase is Phase.ENCODER else cache_names(loaded.spec)
        assert aliases == {f"new_{name}": name for name in caches}
    # Here is no GPU that runs them, which selection says before it opens anything.
    machine = PlanMachine(
        (Gpu("RTX 4090", (8, 9)),), libraries={EngineKind.TENSORRT_RTX: plans.target.version}
    )
    chosen = select_plans(loaded, EngineKind.TENSORRT_RTX, machine, precision=precision)
    assert chosen == plans
    with pytest.raises(PlanMismatchError, match=r"capability 8.9, but NVIDIA L4 has 8.0"):
        select_plans(
            loaded,
            EngineKind.TENSORRT_RTX,
            replace(machine, gpus=(Gpu("NVIDIA L4", (8, 0)),)),
            precision=precision,
        )


def test_remembered_angles_are_the_computed_ones(bundle):
    from autogaze_backend.rotary import RotaryTable, rotary_cos_sin

    spec = Bundle.load(bundle("release")).spec
    table = RotaryTable(spec, 50)
    for positions in (
        np.array([[0, 49], [7, 3]]),
        np.array([49, 50]),
        np.array([-1, 3]),
        np.zeros((0, 4), np.int64),
    ):
        for found, expected in zip(table(positions), rotary_cos_sin(spec, positions), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype


def test_what_the_golden_clips_gave_is_written_into_the_manifest(small, golden, tmp_path):
    from gpu.golden_parity import record, run_cases

    box = small(plans={"rows": (1, 2), "lengths": (2048,), "frames": (1,)})
    case = golden("row_a")
    wrong = replace(
        case, name="wrong", expected={**case.expected, "gazing_pos": case.expected["gazing_pos"] + 1}
    )
    outcome = run_cases(box.model, [case, wrong])
    assert (outcome.cases, outcome.different) == (2, ("wrong",))
    noted = record(box.plans, outcome, gpu="NVIDIA L4", driver="13.0")
    found = PlanSet.load(box.plans.path)
    assert found == noted
    assert (found.parity.gpu, found.parity.cases, found.parity.identical) == ("NVIDIA L4", 2, 1)


def test_plans_are_read_as_written(bundle, tmp_path):
    made = write_plans(bundle("release"), tmp_path, **SMALL)
    assert PlanSet.load(made.path) == made
