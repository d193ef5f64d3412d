"""How much memory the torch engine takes, and where it opens."""

from __future__ import annotations

import pytest
from autogaze_backend import GazeModel
from autogaze_client import InvalidInputError

torch = pytest.importorskip("torch", reason="the torch engine needs the extra 'torch'")

from autogaze_backend.torch_engine.opening import TorchSettings, cache_pages, open_device  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_settings_are_read_from_the_environment(monkeypatch):
    for name in ("AUTOGAZE_SLOTS", "AUTOGAZE_ROWS", "AUTOGAZE_CACHE_GIB", "AUTOGAZE_AWAKE_MS"):
        monkeypatch.delenv(name, raising=False)
    assert TorchSettings.from_environment(CUDA) == TorchSettings()
    assert TorchSettings.from_environment(CPU) == TorchSettings(slots=64, rows=64)
    monkeypatch.setenv("AUTOGAZE_SLOTS", "24")
    assert TorchSettings.from_environment(CUDA) == TorchSettings(slots=24, rows=24)
    monkeypatch.setenv("AUTOGAZE_ROWS", "8")
    monkeypatch.setenv("AUTOGAZE_CACHE_GIB", "1.5")
    monkeypatch.setenv("AUTOGAZE_AWAKE_MS", "0.2")
    assert TorchSettings.from_environment(CPU) == TorchSettings(slots=24, rows=8, cache_gib=1.5, awake_ms=0.2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AUTOGAZE_SLOTS", "many"),
        ("AUTOGAZE_SLOTS", "0"),
        ("AUTOGAZE_ROWS", "1.5"),
        ("AUTOGAZE_CACHE_GIB", "-1"),
        ("AUTOGAZE_CACHE_GIB", "nan"),
        ("AUTOGAZE_CACHE_GIB", "inf"),
        ("AUTOGAZE_AWAKE_MS", "0"),
    ],
)
def test_other_values_are_refused(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInputError, match=f"{name} is '{value}'; it must be a number above 0"):
        TorchSettings.from_environment(CPU)


def test_a_call_cannot_have_more_rows_than_there_are_slots(monkeypatch):
    monkeypatch.setenv("AUTOGAZE_SLOTS", "4")
    monkeypatch.setenv("AUTOGAZE_ROWS", "5")
    with pytest.raises(InvalidInputError, match="AUTOGAZE_ROWS is 5, more than the 4 slots"):
        TorchSettings.from_environment(CPU)


def test_the_cache_is_counted_in_pages_of_the_precision(model):
    spec = model().spec
    page = 64 * spec.num_layers * 2 * spec.hidden_size
    settings = TorchSettings(cache_gib=0.25)
    assert cache_pages(spec, settings, CPU, torch.float32) == 2**28 // (4 * page)
    assert cache_pages(spec, settings, CPU, torch.float16) == 2**28 // (2 * page)
    with pytest.raises(InvalidInputError, match="less than a frame's 512; raise AUTOGAZE_CACHE_GIB"):
        cache_pages(spec, TorchSettings(cache_gib=0.001), CPU, torch.float32)


@pytest.mark.parametrize("name", ["warp", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InvalidInputError, match=f"device is '{name}'"):
        open_device(name)


def test_the_engine_is_taken_on_a_cpu_where_it_is_named(bundle, monkeypatch):
    monkeypatch.setenv("AUTOGAZE_SLOTS", "2")
    monkeypatch.setenv("AUTOGAZE_CACHE_GIB", "0.1")
    loaded = GazeModel.load(bundle("release"), engine="torch")
    labels = loaded.info.labels
    assert torch.__version__.startswith(labels.pop("engine_version").split("+")[0])
    assert labels == {"engine": "torch", "precision": "exact", "device": "cpu"}
    assert loaded.engine.max_slots == 2
    loaded.warm_up()
    loaded.engine.close()
    with pytest.raises(AttributeError):
        loaded.warm_up()


def test_a_bundle_without_graphs_runs_on_torch_alone(seeded_checkpoint, tmp_path, golden, monkeypatch):
    from autogaze_backend.bundle import Bundle
    from autogaze_backend.devices import Device
    from autogaze_backend.engines import choose_engine
    from autogaze_export import build

    monkeypatch.setenv("AUTOGAZE_SLOTS", "4")
    path = build(seeded_checkpoint("release"), tmp_path / "bundle", engine="torch")
    assert not list(path.rglob("*.onnx"))
    own = Bundle.load(path)
    assert own.engine == "torch"
    with pytest.raises(InvalidInputError, match="holds no graphs"):
        choose_engine(own, Device.parse("cpu"), "onnxruntime")
    # "auto" does not fall back to minutes a clip unasked.
    with pytest.raises(InvalidInputError, match="torch is the slow oracle; name it to run it"):
        choose_engine(own, Device.parse("cpu"))
    case = golden("ratio_only")
    found = GazeModel.load(own, engine="torch").generate(case.video[:, :1], **case.knobs)
    slots = found.gazing_pos.shape[1]
    assert found.gazing_pos.tolist() == case.expected["gazing_pos"][:, :slots].tolist()


def test_fast_rounds_and_stays_close(seeded_checkpoint, tmp_path, golden, model):
    """On a CPU too the precision is the bundle's: float16 weights and cache."""
    from autogaze_backend.bundle import Bundle
    from autogaze_backend.torch_engine.engine import TorchEngine
    from autogaze_export import build

    own = Bundle.load(
        build(seeded_checkpoint("release"), tmp_path / "bundle", engine="torch", precision="fast")
    )
    engine = TorchEngine(own, settings=TorchSettings(slots=2, rows=2, cache_gib=0.1), device="cpu")
    knobs = {"max_gaze_tokens_each_frame": 10}
    clip = golden("row_a").video[:, :1]
    found, expected = GazeModel(own, engine).generate(clip, **knobs), model().generate(clip, **knobs)
    difference = largest(found.task_loss_predictions[:, :10] - expected.task_loss_predictions[:, :10])
    assert 0 < difference < 0.01


def largest(values) -> float:
    return float(abs(values).max())
