"""What ``export`` writes, and when it refuses. The tracer is replaced: a trace is slow and has its own tests."""

from __future__ import annotations

import json

import pytest
from autogaze_backend import ModelSpec
from autogaze_backend.graphs import MASKED_PHASES
from autogaze_client import CheckpointError
from autogaze_export import export
from autogaze_export.graphs import masked_graph, traced_graph
from goldens import checkpoint

for _module in ("torch", "onnxscript"):
    pytest.importorskip(_module, reason="traces graphs; pip install 'autogaze-triton[export]'")

CONFIG = checkpoint.config("single")
SPEC = ModelSpec.from_config(CONFIG)
NAMES = ["encoder.onnx", "prefill.onnx", "prefill.masked.onnx", "step.onnx", "step.masked.onnx"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def tracer(monkeypatch):
    """Replaces the tracer by one that gives the shipped graphs, after a change to one of them."""
    import onnx

    def install(changed: str = "", change=lambda model: None):
        def trace(spec, phase):
            model = onnx.load(str(traced_graph(spec, phase)), load_external_data=False)
            if phase.value == changed:
                change(model)
            return model

        monkeypatch.setattr("autogaze_export.tracing.trace", trace)

    return install


def test_graphs_are_written_without_iterating(tmp_path, config, tracer):
    tracer()
    reports = export(config, tmp_path / "out")
    folder = tmp_path / "out" / SPEC.graph_name
    assert {path.name for path in folder.iterdir()} == set(NAMES)
    assert [path for path, _ in reports] == [folder / name for name in NAMES]
    assert all(report.trials for _, report in reports)
    for phase in MASKED_PHASES:
        shipped = masked_graph(traced_graph(SPEC, phase))
        assert (folder / shipped.name).read_bytes() == shipped.read_bytes()


def other_activation(model) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def unknown_operator(model) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("change", "message"),
    [(other_activation, "differs from torch's"), (unknown_operator, r"encoder\.onnx is no valid ONNX model")],
)
def test_a_graph_that_fails_its_check_is_not_written(tmp_path, config, tracer, change, message):
    tracer("encoder", change)
    with pytest.raises(CheckpointError, match=message):
        export(config, tmp_path / "out")
    assert list((tmp_path / "out" / SPEC.graph_name).iterdir()) == []


def test_a_masked_form_that_fails_its_check_is_not_written(tmp_path, config, tracer, monkeypatch):
    from autogaze_export.rewriting.masking import masked

    def unscaled(model, head_dim):
        return masked(model, 1)

    tracer()
    monkeypatch.setattr("autogaze_export.rewriting.masking.masked", unscaled)
    with pytest.raises(CheckpointError, match=r"prefill\.masked\.onnx: .* differs from torch's"):
        export(config, tmp_path / "out")
    found = {path.name for path in (tmp_path / "out" / SPEC.graph_name).iterdir()}
    assert found == {"encoder.onnx", "prefill.onnx"}


def test_a_graph_that_fails_leaves_the_one_before(tmp_path, config, tracer):
    folder = tmp_path / "out" / SPEC.graph_name
    folder.mkdir(parents=True)
    (folder / "encoder.onnx").write_bytes(b"checked long ago")
    tracer("encoder", other_activation)
    with pytest.raises(CheckpointError):
        export(config, tmp_path / "out")
    assert (folder / "encoder.onnx").read_bytes() == b"checked long ago"


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json (is no valid JSON|holds a list)"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
