"""The engine canary: what it proves, what it must not disturb, and that the served models' readiness is its answer."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from autogaze_backend.canary import CanaryLimits, EngineCanary
from autogaze_backend.clip_service import ClipService
from autogaze_backend.metering import MeteredModel
from autogaze_backend.metrics import Meters
from autogaze_backend.serving import model_repository_path
from autogaze_backend.stream_pool import StreamLimits
from autogaze_backend.stream_service import StreamService
from autogaze_client import InvalidInputError, ServerUnavailableError
from goldens import clips

from backend.test_clip_service import Sender, alone, request
from backend.test_stream_pool import positions
from backend.test_stream_pool import request as frame_request
from backend.test_triton_seam import PbUtils

# No question waits longer in a test that is to pass; a wedged engine is waited for a moment only.
PATIENT = CanaryLimits(canary_seconds=60, canary_fresh_seconds=1e-9)
HASTY = CanaryLimits(canary_seconds=0.3, canary_fresh_seconds=1e-9)


class Watched:
    """An engine that counts its slots and calls, and can be told to fail."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self.open: set[int] = set()
        self.calls: list[str] = []
        self.full = False
        self.broken: str | None = None
        self.gate: threading.Event | None = None

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def open_slot(self):
        if self.full:
            raise ServerUnavailableError("all slots are open")
        slot = self._engine.open_slot()
        self.open.add(slot)
        return slot

    def close_slot(self, slot):
        self.open.discard(slot)
        self._engine.close_slot(slot)

    def encode(self, *arguments):
        return self._call("encode", arguments)

    def prefill(self, *arguments):
        return self._call("prefill", arguments)

    def step(self, *arguments):
        return self._call("step", arguments)

    def _call(self, name, arguments):
        self.calls.append(name)
        if self.gate is not None:
            self.gate.wait()
        if self.broken == name:
            raise RuntimeError(f"{name} is broken")
        result = getattr(self._engine, name)(*arguments)
        if self.broken == "nan" and name == "step":
            result.confidences[:] = np.nan
        return result


@pytest.fixture
def engine(model):
    return Watched(model().engine)


def asked(engine, limits=PATIENT, **settings) -> EngineCanary:
    """A canary whose engine's thread comes at once."""
    return EngineCanary(
        engine, limits, wake=lambda: threading.Thread(target=canary[0].answer).start(), **settings
    )


canary: list[EngineCanary] = []


def ready(engine, limits=PATIENT) -> bool:
    canary[:] = [asked(engine, limits)]
    return canary[0].is_ready()


def test_a_working_engine_is_ready_and_every_graph_ran(engine):
    assert ready(engine)
    assert engine.calls == ["encode", "prefill", "step"]
    assert not engine.open


@pytest.mark.parametrize("part", ["encode", "prefill", "step", "nan"])
def test_an_engine_that_fails_or_computes_nonsense_is_not_ready_and_keeps_no_slot(part, engine):
    engine.broken = part
    assert not ready(engine)
    assert not engine.open
    engine.broken = None
    assert ready(engine)


def test_an_engine_whose_slots_are_all_at_work_is_ready(engine):
    engine.full = True
    assert ready(engine)
    assert engine.calls == ["encode"]


def test_nobody_comes_and_the_engine_is_not_ready(engine):
    started = time.monotonic()
    assert not EngineCanary(engine, HASTY, wake=lambda: None).is_ready()
    assert time.monotonic() - started >= HASTY.canary_seconds
    assert engine.calls == []


def test_questions_at_once_share_an_answer(engine):
    woken = threading.Semaphore(0)
    many = EngineCanary(engine, PATIENT, wake=woken.release)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(many.is_ready())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert woken.acquire(timeout=60)
    many.answer()
    for thread in threads:
        thread.join(60)
    assert answers == [True] * 8
    assert engine.calls.count("encode") == 1
    many.answer()
    assert engine.calls.count("encode") == 1, "nobody asked again"


def test_a_fresh_answer_serves_again_and_an_old_or_bad_one_does_not(engine):
    now = [0.0]
    limits = CanaryLimits(canary_seconds=60, canary_fresh_seconds=1.0)
    fresh = EngineCanary(engine, limits, wake=lambda: fresh.answer(), clock=lambda: now[0])
    assert fresh.is_ready()
    now[0] = 0.9
    assert fresh.is_ready()
    assert engine.calls.count("encode") == 1
    now[0] = 1.1
    engine.broken = "step"
    assert not fresh.is_ready()
    engine.broken = None
    assert fresh.is_ready(), "a bad answer is not kept"


def test_it_is_not_counted_as_load(model):
    meters = Meters()
    metered = MeteredModel(model(), meters)
    before = meters.text()
    assert ready(metered.engine)
    assert meters.text() == before


# --- in the services ---------------------------------------------------------------------------------------


class WatchedModel:
    """A model on a watched engine."""

    def __new__(cls, loaded, engine):
        from autogaze_backend import GazeModel

        return GazeModel(loaded.bundle, engine)


def test_clips_that_run_keep_their_tokens_while_canaries_come(model, engine):
    loaded = model()
    service = ClipService(WatchedModel(loaded, engine), canary=PATIENT)
    try:
        caller = Sender(service)
        requests = {index: request(index, 0.3, frames=3) for index in range(4)}
        for index, tensors in requests.items():
            caller.send(index, tensors)
        assert all(service.is_ready() for _ in range(5))
        for index, answer in caller.wait(4).items():
            np.testing.assert_array_equal(answer["GAZING_POS"][0], alone(loaded, requests[index])[0])
    finally:
        service.close()
    assert not engine.open


def test_a_wedged_clip_engine_is_not_ready_and_is_again_when_it_goes_on(model, engine):
    service = ClipService(WatchedModel(model(), engine), canary=HASTY)
    engine.gate = threading.Event()
    try:
        caller = Sender(service)
        caller.send(0, request(1))
        assert not service.is_ready()
        engine.gate.set()
        caller.wait(1)
        deadline = time.monotonic() + 60
        while not service.is_ready():
            assert time.monotonic() < deadline
    finally:
        engine.gate.set()
        service.close()


def test_streams_keep_their_places_and_tokens_while_canaries_come(model, engine):
    loaded = model()
    frames = clips.synthetic_clip(3, 60, 80, 9)
    service = StreamService(WatchedModel(loaded, engine), StreamLimits(max_streams=2), canary=PATIENT)
    try:
        found = []
        for index, frame in enumerate(frames):
            batch = [frame_request(stream, frame, start=index == 0) for stream in (1, 2)]
            found.append([positions(answer) for answer in service.run(batch)])
            assert service.is_ready()
        assert len(service.pool) == 2
        assert service.pool.evicted == 0
        assert len(engine.open) == 2
    finally:
        service.close()
    with loaded.open_stream() as stream:
        for frame, pair in zip(frames, found, strict=True):
            assert pair == [stream.step(loaded.preprocess(frame[None])).gazing_pos[0].tolist()] * 2


def test_a_wedged_stream_engine_is_not_ready(model, engine):
    service = StreamService(WatchedModel(model(), engine), canary=HASTY)
    engine.gate = threading.Event()
    frame = clips.synthetic_clip(1, 60, 80, 9)[0]
    wedged = threading.Thread(target=service.run, args=([frame_request(1, frame, start=True)],))
    wedged.start()
    try:
        assert not service.is_ready()
        engine.gate.set()
        wedged.join(60)
        deadline = time.monotonic() + 60
        while not service.is_ready():
            assert time.monotonic() < deadline
    finally:
        engine.gate.set()
        service.close()


def test_a_stream_of_one_frame_evicts_nobody(model, engine):
    """What the supervision's probe sends, to a server whose places are all taken."""
    frames = clips.synthetic_clip(2, 60, 80, 9)
    service = StreamService(WatchedModel(model(), engine), StreamLimits(max_streams=2))
    try:
        service.run([frame_request(stream, frames[0], start=True) for stream in (1, 2)])
        (single,) = service.run([frame_request(3, frames[0], start=True, end=True)])
        assert single.tensors["SOURCE_SIZE"].tolist() == [1, 60, 80]
        assert len(service.pool) == 2
        assert service.pool.evicted == 0
        assert len(engine.open) == 2
        assert not any(
            isinstance(answer, Exception)
            for answer in service.run([frame_request(stream, frames[1]) for stream in (1, 2)])
        )
        # An engine without a slot for it gives it a place like any other.
        engine_full, engine.full = engine.full, True
        (refused,) = service.run([frame_request(4, frames[0], start=True, end=True)])
        assert isinstance(refused, ServerUnavailableError)
        engine.full = engine_full
    finally:
        service.close()


# --- as Triton calls it --------------------------------------------------------------------------------------


# As in config.pbtxt of autogaze_stream.
SEQUENCES = {"max_sequence_idle_microseconds": 120_000_000, "oldest": {"max_candidate_sequences": 512}}


@pytest.fixture(params=["autogaze_generate", "autogaze_stream"])
def served(request, bundle, monkeypatch):
    """The class of a shipped model.py, initialised as the python backend does."""
    stub = ModuleType("triton_python_backend_utils")
    stub.__dict__.update({name: value for name, value in vars(PbUtils).items() if not name.startswith("__")})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    monkeypatch.setenv("AUTOGAZE_BUNDLE", str(bundle()))
    monkeypatch.setenv("AUTOGAZE_CANARY_SECONDS", "60")
    path = model_repository_path() / request.param / "1" / "model.py"
    spec = importlib.util.spec_from_file_location(f"{request.param}_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    running = module.TritonPythonModel()
    running.initialize(
        {
            "model_name": request.param,
            "model_version": "1",
            "model_repository": str(Path(path).parents[1]),
            "model_config": json.dumps({"parameters": {}, "sequence_batching": SEQUENCES}),
        }
    )
    yield running
    running.finalize()


def test_is_ready_of_a_served_model_is_the_canarys_answer(served):
    assert served.is_ready() is True
    service = served._service
    service._canary._limits = HASTY
    service._canary._engine = Watched(service._canary._engine)
    service._canary._engine.broken = "prefill"
    assert served.is_ready() is False
    service._canary._engine.broken = None
    assert served.is_ready() is True


def test_a_limit_of_the_canary_that_is_none_is_refused(monkeypatch):
    from autogaze_backend.limits import read_limits

    monkeypatch.setenv("AUTOGAZE_CANARY_SECONDS", "soon")
    with pytest.raises(InvalidInputError, match="canary_seconds is 'soon'"):
        read_limits(CanaryLimits, {})
