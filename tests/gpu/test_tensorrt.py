"""Plans that run on this machine's GPU: golden clips, and the result in their manifest (make test-tensorrt).

The plans are built from the seeded checkpoint into ``AUTOGAZE_TENSORRT_OUT`` (build/tensorrt), and skipped by hash
where they were built before.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend import GazeModel
from autogaze_backend.bundle import Bundle
from autogaze_backend.devices import Device
from autogaze_backend.engines import ENGINES
from autogaze_backend.onnxruntime_engine import OnnxRuntimeEngine
from autogaze_backend.plan_selection import Gpu, Machine, require_machine, select_plans
from autogaze_backend.plans import EngineKind, PlanSet
from autogaze_client import AutoGazeError, InvalidInputError
from backend.test_goldens import CASES

from gpu.golden_parity import record, run_cases

pytestmark = pytest.mark.tensorrt

MACHINE = Machine.probe()
OUT = Path(os.environ.get("AUTOGAZE_TENSORRT_OUT", "build/tensorrt"))


@pytest.fixture(scope="module", params=list(EngineKind), ids=lambda kind: kind.value)
def kind(request) -> EngineKind:
    try:
        require_machine(request.param, MACHINE)
    except AutoGazeError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="module")
def gpu(kind) -> Gpu:
    return require_machine(kind, MACHINE)


@pytest.fixture(scope="module")
def built(kind, seeded_checkpoint):
    """The bundle of a layout, with plans of a precision for this GPU."""
    from autogaze_export import build

    def make(layout: str, precision: str = "exact") -> Bundle:
        checkpoint, out = seeded_checkpoint(layout), OUT / layout
        try:
            return Bundle.load(build(checkpoint, out, engine=kind.value, precision=precision))
        except InvalidInputError as error:
            if kind is EngineKind.TENSORRT_RTX:
                # It builds for RTX-class GPUs only, and says so.
                pytest.skip(str(error))
            raise

    return make


def opened(bundle: Bundle, kind: EngineKind, precision: str, monkeypatch) -> tuple[GazeModel, PlanSet]:
    monkeypatch.setenv("AUTOGAZE_PRECISION", precision)
    plans = select_plans(bundle, kind, MACHINE, precision=precision)
    return GazeModel.load(bundle, device="cuda:0", engine=kind.value), plans


def test_exact_plans_give_the_published_models_tokens(kind, gpu, built, golden, monkeypatch):
    different: list[str] = []
    for layout in ("release", "single"):
        model, plans = opened(built(layout), kind, "exact", monkeypatch)
        cases = [golden(name) for name in CASES]
        outcome = run_cases(model, (c for c in cases if c.settings.get("layout", "release") == layout))
        record(plans, outcome, gpu=gpu.name, driver=MACHINE.driver)
        assert model.engine.fallbacks == {}, "a plan could not be captured as a CUDA graph"
        model.engine.close()
        different += outcome.different
    assert different == []


def test_fast_plans_agree_with_float32(kind, gpu, built, golden, monkeypatch):
    from autogaze_export.agreement import ShadowedEngine

    model, plans = opened(built("release", "fast"), kind, "fast", monkeypatch)
    model.engine.reads_logits = True
    shadowed = ShadowedEngine(OnnxRuntimeEngine(built("release")), model.engine)
    case = golden("whole_clip")
    GazeModel(model.bundle, shadowed).generate(case.video, gazing_ratio=0.75)
    agreement = shadowed.agreement(f"{kind.value} {plans.target.version} on {gpu.name}")
    record(plans, run_cases(model, [case]), gpu=gpu.name, driver=MACHINE.driver, agreement=agreement)
    shadowed.close()
    assert agreement.choices > 1000
    assert agreement.equal >= 0.98
    assert agreement.max_task_loss_difference <= 0.01


def test_streams_and_rows_give_what_they_give_alone(kind, built, golden, model, monkeypatch):
    loaded, _ = opened(built("release"), kind, "exact", monkeypatch)
    case = golden("streaming")
    streams = [loaded.open_stream(horizon=3) for _ in range(3)]
    alone = model().open_stream(horizon=3)
    for index in range(case.video.shape[1]):
        frame = case.video[:, index]
        expected = alone.step(frame, **case.knobs)
        for found in loaded.step_streams([(stream, frame) for stream in streams], **case.knobs):
            np.testing.assert_array_equal(found.gazing_pos, expected.gazing_pos)
    for stream in [*streams, alone]:
        stream.close()
    loaded.engine.close()


def test_auto_takes_these_plans(kind, built):
    bundle = built("release")
    fitting = [name for name, entry in ENGINES.items() if entry.fits(bundle, Device.parse("auto")) is None]
    assert fitting[0] in {one.value for one in EngineKind}
    assert kind.value in fitting
