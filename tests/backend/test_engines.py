"""Which engine a bundle gets: by name, by device, and by "auto"."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
from autogaze_backend import GazeModel
from autogaze_backend.bundle import Bundle
from autogaze_backend.devices import Device
from autogaze_backend.engines import ENGINES, choose_engine, served_engine
from autogaze_backend.metering import MeteredModel
from autogaze_backend.metrics import Meters
from autogaze_backend.plan_selection import Gpu, Machine, NoGpuError
from autogaze_backend.plans import EngineKind, PlanTarget
from autogaze_client import InvalidInputError, MissingExtraError, NotFoundError, PlanMismatchError
from goldens import clips

from backend.tensorrt_doubles import CAPABILITY, VERSION, FakeCuda, FakeTensorRt, write_plans

FEW = {"rows": (1, 2), "lengths": (256, 512), "frames": (1,)}
H100 = Machine((Gpu("NVIDIA H100", CAPABILITY),), libraries={EngineKind.TENSORRT: VERSION})


@pytest.fixture
def own_bundle(bundle, tmp_path) -> Bundle:
    shutil.copytree(bundle("release"), tmp_path / "bundle")
    return Bundle.load(tmp_path / "bundle")


@pytest.fixture
def gpu_machine(monkeypatch):
    """This machine, with an H100 and TensorRT that are doubles."""
    pytest.importorskip("cuda.bindings.runtime", reason="the extra cuda is not installed")
    import autogaze_backend.tensorrt_engine.api as api
    import autogaze_backend.tensorrt_engine.cuda as cuda

    double = FakeCuda()
    trt = FakeTensorRt(double)
    monkeypatch.setattr(api, "import_tensorrt", lambda kind: trt)
    monkeypatch.setattr(cuda, "import_runtime", lambda: double)
    monkeypatch.setattr(Machine, "probe", classmethod(lambda cls: H100))
    yield double
    assert double.memory == {}


def write(own: Bundle, target: PlanTarget | None = None) -> None:
    write_plans(own.path, own.path / "plans", target=target, **FEW)


def test_the_order_of_preference():
    assert list(ENGINES) == ["tensorrt", "tensorrt-rtx", "torch", "onnxruntime"]


@pytest.mark.parametrize(
    ("text", "name", "index"),
    [("cpu", "cpu", None), ("cuda", "cuda:0", 0), ("cuda:3", "cuda:3", 3), ("auto", "auto", 0)],
)
def test_devices_are_read(text, name, index):
    device = Device.parse(text)
    assert (device.name, device.index) == (name, index)


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cuda:0,1"])
def test_other_devices_are_refused(text):
    with pytest.raises(InvalidInputError, match="'cpu', 'cuda', 'cuda:<number>' or 'auto'"):
        Device.parse(text)


def test_auto_takes_tensorrt_where_plans_fit(own_bundle):
    write(own_bundle)
    assert choose_engine(own_bundle, Device.parse("auto").on(H100)).name == "tensorrt"
    assert choose_engine(own_bundle, Device.parse("cuda").on(H100)).name == "tensorrt"


def test_auto_passes_over_what_does_not_fit_and_keeps_the_reasons(own_bundle):
    write(own_bundle, PlanTarget(EngineKind.TENSORRT, "10.14.1", CAPABILITY, "exact"))
    choice = choose_engine(own_bundle, Device.parse("auto").on(H100))
    assert choice.name != "tensorrt"
    assert isinstance(choice.passed_over["tensorrt"], PlanMismatchError)
    assert isinstance(choice.passed_over["tensorrt-rtx"], NotFoundError)


def test_a_cpu_never_looks_for_a_gpu(own_bundle, monkeypatch):
    write(own_bundle)
    monkeypatch.setattr(Machine, "probe", classmethod(lambda cls: pytest.fail("looked for a GPU")))
    assert choose_engine(own_bundle, Device.parse("cpu")).name == "onnxruntime"
    shutil.rmtree(own_bundle.path / "plans")
    tensorrt = [name for name in ENGINES if name.startswith("tensorrt")]
    for name in tensorrt:
        assert isinstance(ENGINES[name].fits(own_bundle, Device.parse("auto")), NotFoundError)


def test_torch_fits_a_cpu_only_by_its_name(own_bundle):
    pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")
    assert choose_engine(own_bundle, Device.parse("cpu"), "torch").name == "torch"
    choice = choose_engine(own_bundle, Device.parse("cpu"))
    assert choice.name == "onnxruntime"
    assert "name it to run it" in str(choice.passed_over["torch"])


def test_torch_is_taken_for_a_gpu_without_plans_and_says_what_it_misses(own_bundle, monkeypatch, tmp_path):
    """Each thing that it needs is taken away in turn; torch itself is asked last, since importing it takes seconds."""
    pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")
    from autogaze_backend.torch_engine import opening

    node, device = tmp_path / "nvidia0", Device.parse("cuda:1").on(H100)
    monkeypatch.setattr("autogaze_backend.engines._GPU_NODES", (str(node),))
    with pytest.raises(
        InvalidInputError, match="'cuda:1', but torch needs an NVIDIA GPU, and this machine shows none"
    ):
        choose_engine(own_bundle, device, "torch")
    node.touch()
    asked = []
    monkeypatch.setattr(opening, "open_device", asked.append)
    choice = choose_engine(own_bundle, device)
    assert (choice.name, asked) == ("torch", ["cuda:1"])
    assert isinstance(choice.passed_over["tensorrt"], NotFoundError)
    other = replace(own_bundle, spec=replace(own_bundle.spec, intermediate_size=416))
    with pytest.raises(InvalidInputError, match=r"intermediate_size is 416, .* multiples of 64"):
        choose_engine(other, device, "torch")

    def refuse(name):
        raise InvalidInputError(f"device is {name!r}, but there are 1 CUDA devices, numbered from 0")

    monkeypatch.setattr(opening, "open_device", refuse)
    with pytest.raises(InvalidInputError, match="there are 1 CUDA devices"):
        choose_engine(own_bundle, device, "torch")
    find, gone = importlib.util.find_spec, set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name in gone else find(name))
    for missing in ("triton", "torch"):
        gone.add(missing)
        with pytest.raises(MissingExtraError, match=r"pip install 'autogaze-triton\[torch\]'"):
            choose_engine(own_bundle, device, "torch")


def test_a_named_engine_that_does_not_fit_gives_its_own_error(own_bundle):
    with pytest.raises(NotFoundError, match="holds no plans for tensorrt"):
        choose_engine(own_bundle, Device.parse("auto"), "tensorrt")
    write(own_bundle)
    with pytest.raises(InvalidInputError, match="'cpu', but tensorrt needs a GPU"):
        choose_engine(own_bundle, Device.parse("cpu"), "tensorrt")
    nothing = Machine(library_errors={EngineKind.TENSORRT: "tensorrt needs tensorrt: pip install"})
    with pytest.raises(MissingExtraError, match="pip install"):
        choose_engine(own_bundle, Device.parse("cuda").on(nothing), "tensorrt")
    no_gpu = Machine(libraries=H100.libraries, gpu_error="no CUDA-capable device is detected")
    with pytest.raises(NoGpuError):
        choose_engine(own_bundle, Device.parse("cuda").on(no_gpu), "tensorrt")
    with pytest.raises(
        InvalidInputError, match=r"'onnx'; known engines are tensorrt, .*onnxruntime, or 'auto'"
    ):
        choose_engine(own_bundle, Device.parse("cpu"), "onnx")
    with pytest.raises(InvalidInputError, match=r"runs on the CPU only; .* or install onnxruntime-gpu"):
        choose_engine(own_bundle, Device.parse("cuda").on(no_gpu), "onnxruntime")


def test_where_nothing_fits_every_reason_is_told(own_bundle, monkeypatch):
    monkeypatch.setattr("autogaze_backend.engines.ENGINES", {"onnxruntime": ENGINES["onnxruntime"]})
    with pytest.raises(
        InvalidInputError, match=r"no engine runs .* on device 'cuda:0': onnxruntime: device is"
    ):
        choose_engine(own_bundle, Device.parse("cuda"))


def test_loading_on_auto_runs_tensorrt_and_says_so(own_bundle, gpu_machine, model, caplog):
    write(own_bundle)
    with caplog.at_level(logging.INFO, "autogaze"):
        loaded = GazeModel.load(own_bundle, device="auto")
    assert f"engine tensorrt {VERSION} (exact) on cuda:0" in caplog.text
    meters = Meters()
    metered = MeteredModel(loaded, meters)
    (line,) = [line for line in meters.text().splitlines() if line.startswith("autogaze_engine_info")]
    assert line == (
        f'autogaze_engine_info{{device="cuda:0",engine="tensorrt",engine_version="{VERSION}",precision="exact"}} 1'
    )
    clip = clips.normalise(clips.synthetic_clip(1, 224, 224, 3))[None]
    found, expected = (one.generate(clip, gazing_ratio=0.2) for one in (metered, model()))
    np.testing.assert_array_equal(found.gazing_pos, expected.gazing_pos)
    loaded.engine.close()


def test_loading_on_auto_without_plans_says_what_was_passed_over(own_bundle, caplog, monkeypatch):
    names = ("tensorrt", "tensorrt-rtx", "onnxruntime")
    monkeypatch.setattr("autogaze_backend.engines.ENGINES", {name: ENGINES[name] for name in names})
    with caplog.at_level(logging.INFO, "autogaze"):
        loaded = GazeModel.load(own_bundle, device="auto")
    assert loaded.info.engine == "onnxruntime"
    assert loaded.info.device == "cpu"
    assert "engine tensorrt passed over: " in caplog.text
    assert "autogaze build CHECKPOINT" in caplog.text


def test_a_plan_that_fits_and_does_not_open_is_an_error_not_a_slow_server(own_bundle, gpu_machine):
    write(own_bundle)
    gpu_machine.fail["cudaMallocHost"] = gpu_machine.cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(Exception, match="AUTOGAZE_MAX_ROWS"):
        GazeModel.load(own_bundle, device="auto")
    gpu_machine.fail.clear()


def test_rows_are_limited_by_the_environment(own_bundle, gpu_machine, monkeypatch):
    write(own_bundle)
    monkeypatch.setenv("AUTOGAZE_MAX_ROWS", "1")
    loaded = GazeModel.load(own_bundle, device="cuda:0", engine="tensorrt")
    assert loaded.engine.preferred_rows == 1
    loaded.engine.close()
    monkeypatch.setenv("AUTOGAZE_MAX_ROWS", "many")
    with pytest.raises(InvalidInputError, match="AUTOGAZE_MAX_ROWS is 'many'"):
        GazeModel.load(own_bundle, device="cuda:0", engine="tensorrt")


def test_a_served_model_reads_the_environment_before_its_parameters(monkeypatch):
    for name in ("AUTOGAZE_ENGINE", "AUTOGAZE_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    assert served_engine({}) == {"engine": "auto", "device": "auto"}
    parameters = {"engine": "onnxruntime", "device": "cpu"}
    assert served_engine(parameters) == parameters
    monkeypatch.setenv("AUTOGAZE_ENGINE", "tensorrt")
    monkeypatch.setenv("AUTOGAZE_DEVICE", "cuda:1")
    assert served_engine(parameters) == {"engine": "tensorrt", "device": "cuda:1"}
