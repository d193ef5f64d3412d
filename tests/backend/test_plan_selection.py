"""Which plans a machine takes, and that each refusal names its reason and the command that mends it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from autogaze_backend.bundle import Bundle
from autogaze_backend.plan_selection import Gpu, Machine, NoGpuError, select_plans
from autogaze_backend.plans import EngineKind, PlanSet, PlanTarget
from autogaze_client import CheckpointError, MissingExtraError, NotFoundError, PlanMismatchError

from backend.tensorrt_doubles import VERSION, write_plans

KIND = EngineKind.TENSORRT
H100 = Machine((Gpu("NVIDIA H100", (9, 0)),), "", "", {KIND: VERSION}, {}, "13.0")
FEW = {"rows": (1, 2), "lengths": (256, 512), "frames": (1, 4)}


@pytest.fixture
def own_bundle(bundle, tmp_path) -> Bundle:
    """A bundle that a test may change."""
    shutil.copytree(bundle("release"), tmp_path / "bundle")
    return Bundle.load(tmp_path / "bundle")


def put(own_bundle: Bundle, target: PlanTarget | None = None, **changes) -> PlanSet:
    return write_plans(own_bundle.path, own_bundle.path / "plans", target=target, **{**FEW, **changes})


def test_the_plans_of_this_machine_are_taken(own_bundle):
    made = put(own_bundle)
    put(own_bundle, PlanTarget(KIND, "10.14.1", (9, 0), "exact"))
    put(own_bundle, PlanTarget(KIND, VERSION, (8, 9), "exact"))
    put(own_bundle, PlanTarget(KIND, VERSION, (9, 0), "fast"))
    assert select_plans(own_bundle, KIND, H100) == made
    assert select_plans(own_bundle, KIND, H100, precision="fast").target.precision == "fast"


def test_plans_for_this_very_machine_come_before_compatible_ones(own_bundle):
    older = PlanTarget(KIND, "10.13.0", (8, 0), "exact")
    compatible = put(own_bundle, older, version_compatible=True, hardware_compatible=True)
    assert select_plans(own_bundle, KIND, H100) == compatible
    made = put(own_bundle)
    assert select_plans(own_bundle, KIND, H100) == made


def rewrite(made: PlanSet, **changes) -> None:
    dataclasses.replace(made, **changes).write()


BUILD = r"autogaze build CHECKPOINT \S+/bundle --engine tensorrt"


def other_version(own):
    put(own, PlanTarget(KIND, "10.14.1", (9, 0), "exact"))


def other_gpu(own):
    put(own, PlanTarget(KIND, VERSION, (8, 9), "exact"))


def other_precision(own):
    put(own, PlanTarget(KIND, VERSION, (9, 0), "fast"))


def other_checkpoint(own):
    rewrite(put(own), checkpoint="ab" * 32)


def other_graph(own):
    plans = put(own)
    rewrite(plans, graphs=dict.fromkeys(plans.graphs, "cd" * 32))


def missing_bucket(own):
    plans = put(own)
    rewrite(plans, plans={b: p for b, p in plans.plans.items() if b.file != "step-r2-l256.plan"})


def truncated(own):
    plans = put(own)
    path = plans.path / "step-r2-l256.plan"
    path.write_bytes(path.read_bytes()[:-7])


def changed(own):
    plans = put(own)
    path = plans.path / "step-r2-l256.plan"
    path.write_bytes(path.read_bytes()[:-1] + b" ")


def lost(own):
    (put(own).path / "step-r2-l256.plan").unlink()


def no_manifest(own):
    (put(own).path / "plans.json").unlink()


def no_plans(own):
    put(own, PlanTarget(EngineKind.TENSORRT_RTX, "1.7.1", (9, 0), "exact"))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (no_plans, NotFoundError, rf"holds no plans for tensorrt; .*`{BUILD}`"),
        (
            other_version,
            PlanMismatchError,
            rf"built with tensorrt 10.14.1, but {VERSION} is installed; .*`{BUILD}",
        ),
        (other_gpu, PlanMismatchError, rf"capability 8.9, but NVIDIA H100 has 9.0; .*`{BUILD}.*--sm 9.0`"),
        (
            other_precision,
            PlanMismatchError,
            rf"'fast', but 'exact' is asked for; .*AUTOGAZE_PRECISION.*`{BUILD}",
        ),
        (other_checkpoint, PlanMismatchError, rf"checkpoint abababababab…, but the bundle holds .*`{BUILD}"),
        (other_graph, PlanMismatchError, rf"encoder plans .* from graph cdcdcdcdcdcd….*`{BUILD}"),
        (
            missing_bucket,
            PlanMismatchError,
            rf"lacks the step plan of 2 rows and 256 cache positions.*`{BUILD}",
        ),
        (truncated, CheckpointError, rf"step-r2-l256.plan is truncated: \d+ bytes of \d+; .*`{BUILD}"),
        (changed, CheckpointError, rf"step-r2-l256.plan has SHA-256 .*; .*`{BUILD}"),
        (lost, CheckpointError, rf"lacks step-r2-l256.plan; .*`{BUILD}"),
        (no_manifest, CheckpointError, rf"plans.json is missing.*`{BUILD}"),
    ],
)
def test_a_refusal_names_its_reason_and_the_command(spoil, error, message, own_bundle):
    spoil(own_bundle)
    with pytest.raises(error, match=message) as raised:
        select_plans(own_bundle, KIND, H100)
    assert type(raised.value) is error


@pytest.mark.parametrize(
    ("machine", "device", "error", "message"),
    [
        (
            dataclasses.replace(H100, gpus=(), gpu_error="no CUDA-capable device is detected"),
            0,
            NoGpuError,
            r"finds none \(no CUDA-capable device is detected\).*docker run --gpus all",
        ),
        (H100, 1, NoGpuError, r"device is 'cuda:1', but CUDA numbers 1 GPUs.*CUDA_VISIBLE_DEVICES"),
        (
            dataclasses.replace(
                H100,
                libraries={},
                library_errors={KIND: "tensorrt needs tensorrt: pip install 'autogaze-triton[tensorrt]'"},
            ),
            0,
            MissingExtraError,
            r"pip install 'autogaze-triton\[tensorrt\]'",
        ),
        (
            dataclasses.replace(
                H100, cuda_missing="TensorRT needs cuda: pip install 'autogaze-triton[tensorrt]'"
            ),
            0,
            MissingExtraError,
            "needs cuda: pip install",
        ),
    ],
)
def test_a_machine_that_lacks_something_is_told_what(machine, device, error, message, own_bundle):
    put(own_bundle)
    with pytest.raises(error, match=message):
        select_plans(own_bundle, KIND, machine, device=device)


def test_of_several_refusals_the_one_nearest_to_fitting_is_told(own_bundle):
    other_version(own_bundle)
    other_checkpoint(own_bundle)
    with pytest.raises(PlanMismatchError, match="checkpoint abab"):
        select_plans(own_bundle, KIND, H100)


def test_a_damaged_set_does_not_hide_one_that_fits(own_bundle):
    broken = put(own_bundle, PlanTarget(KIND, "10.14.1", (9, 0), "exact"))
    (broken.path / "plans.json").write_text("{")
    made = put(own_bundle)
    assert select_plans(own_bundle, KIND, H100) == made


def test_rtx_plans_are_another_librarys(own_bundle):
    target = PlanTarget(EngineKind.TENSORRT_RTX, "1.7.1.116", (12, 0), "exact")
    made = put(own_bundle, target)
    machine = Machine((Gpu("RTX 5090", (12, 0)),), libraries={EngineKind.TENSORRT_RTX: "1.7.1.116"})
    assert select_plans(own_bundle, EngineKind.TENSORRT_RTX, machine) == made
    # A folder that was renamed is not believed.
    (own_bundle.path / "plans").joinpath(target.name).rename(own_bundle.path / "plans" / "tensorrt-x")
    with pytest.raises(PlanMismatchError, match="are for tensorrt-rtx, which tensorrt cannot run"):
        select_plans(own_bundle, KIND, H100)


def test_plans_without_weights_need_a_bundle_whose_weights_are_not_rounded(own_bundle):
    target = PlanTarget(KIND, VERSION, (9, 0), "fast")
    made = put(own_bundle, target, stripped=True)
    assert select_plans(own_bundle, KIND, H100, precision="fast") == made
    rounded = dataclasses.replace(own_bundle, precision="fast")
    with pytest.raises(
        PlanMismatchError, match=rf"precision 'fast'.*autogaze build CHECKPOINT {own_bundle.path}`"
    ):
        select_plans(rounded, KIND, H100)


class FakeRuntime:
    """What ``cuda.bindings.runtime`` says of a machine."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        from types import SimpleNamespace

        self.cudaDeviceAttr = SimpleNamespace(
            cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
        )

    def cudaDriverGetVersion(self):  # noqa: N802
        return 0, 13020

    def cudaGetDeviceCount(self):  # noqa: N802
        return self.status, 2

    def cudaGetErrorString(self, status):  # noqa: N802
        return 0, b"no CUDA-capable device is detected"

    def cudaDeviceGetAttribute(self, attribute, index):  # noqa: N802
        return 0, {"major": 8, "minor": 6 + 3 * index}[attribute]

    def cudaGetDeviceProperties(self, index):  # noqa: N802
        from types import SimpleNamespace

        return 0, SimpleNamespace(name=b"NVIDIA L4")


def test_a_machine_is_asked_what_it_is(monkeypatch):
    import autogaze_backend.tensorrt_engine.cuda as cuda

    monkeypatch.setattr(cuda, "import_runtime", FakeRuntime)
    machine = Machine.probe()
    assert machine.gpus == (Gpu("NVIDIA L4", (8, 6)), Gpu("NVIDIA L4", (8, 9)))
    assert (machine.gpu_error, machine.driver) == ("", "13.2")
    monkeypatch.setattr(cuda, "import_runtime", lambda: FakeRuntime(100))
    assert Machine.probe().gpus == ()
    assert Machine.probe().gpu_error == "no CUDA-capable device is detected"
    for kind in EngineKind:
        assert (kind in Machine.probe().libraries) != (kind in Machine.probe().library_errors)


def test_what_is_written_stays_plain_json(own_bundle):
    assert json.loads((put(own_bundle).path / "plans.json").read_text())["compute_capability"] == "9.0"
