"""The shipped graphs against the torch modules they were traced from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from autogaze_backend import ModelSpec
from autogaze_backend.graphs import MASKED_PHASES, Phase
from autogaze_export.graphs import masked_graph, traced_graph
from goldens import checkpoint

for _module in ("torch", "onnxscript"):
    pytest.importorskip(_module, reason="re-traces the shipped graphs; pip install 'autogaze-triton[export]'")

SPECS = {layout: ModelSpec.from_config(checkpoint.config(layout)) for layout in ("release", "single")}


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.value)
@pytest.mark.parametrize("layout", SPECS)
def test_a_fresh_trace_is_the_shipped_graph(layout, phase):
    """Every node, attribute, constant and name, in both forms; the values inside are numbered in order."""
    import onnx
    from autogaze_export.rewriting.masking import masked
    from autogaze_export.tracing import trace

    traced = trace(SPECS[layout], phase)
    path = traced_graph(SPECS[layout], phase)
    fresh = {path: traced}
    if phase in MASKED_PHASES:
        fresh[masked_graph(path)] = masked(traced, SPECS[layout].head_dim)
    for shipped, model in fresh.items():
        expected = onnx.load(str(shipped), load_external_data=False)
        assert onnx.printer.to_text(model) == onnx.printer.to_text(expected), shipped.name


@pytest.mark.parametrize(
    ("phase", "form"),
    [*((phase, "traced") for phase in Phase), *((phase, "masked") for phase in MASKED_PHASES)],
    ids=lambda item: getattr(item, "value", item),
)
@pytest.mark.parametrize("layout", SPECS)
def test_the_shipped_graph_computes_what_torch_does(layout, phase, form):
    from autogaze_export.validation import check_graph

    path = traced_graph(SPECS[layout], phase)
    report = check_graph(SPECS[layout], phase, masked_graph(path) if form == "masked" else path, trials=4)
    assert report.trials == 4
    assert 0 < report.max_difference < 2e-4


def test_a_graph_that_computes_something_else_is_refused(tmp_path):
    import onnx
    from autogaze_client import CheckpointError
    from autogaze_export.validation import check_graph

    model = onnx.load(str(traced_graph(SPECS["release"], Phase.ENCODER)), load_external_data=False)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Sigmoid"
    path = tmp_path / "encoder.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="tokens differs from torch's by"):
        check_graph(SPECS["release"], Phase.ENCODER, path)


@pytest.mark.parametrize("layout", SPECS)
def test_the_torch_model_reproduces_a_recorded_run(layout, seeded_checkpoint, golden):
    """The oracle itself: first logits of the published model, in torch, from the same checkpoint."""
    import torch
    from autogaze_export import load_checkpoint
    from autogaze_export.binding import bind_weights
    from autogaze_export.tracing import build_module

    case = golden("whole_clip" if layout == "release" else "single_scale")
    loaded = load_checkpoint(seeded_checkpoint(layout))
    spec = loaded.spec
    weights = {name: torch.from_numpy(w) for name, w in bind_weights(spec, loaded.tensors).items()}
    state = torch.zeros(1, spec.encoder_depth, spec.temporal_kernel - 1, spec.hidden_size, 14, 14)
    tokens, _ = build_module(spec, Phase.ENCODER, weights)(torch.from_numpy(case.video[:, :1]), state)
    from autogaze_backend.rotary import rotary_cos_sin

    cos, sin = rotary_cos_sin(spec, np.arange(spec.vision_tokens)[None])
    caches = [torch.zeros(1, spec.num_heads, 256, spec.head_dim) for _ in range(spec.num_layers)]
    none = torch.zeros(1, dtype=torch.int64)
    outputs = build_module(spec, Phase.PREFILL, weights)(
        tokens[:, 0],
        torch.zeros(1, 0, dtype=torch.int64),
        torch.arange(spec.vision_tokens)[None],
        torch.tensor([spec.vision_tokens - 1]),
        torch.from_numpy(cos),
        torch.from_numpy(sin),
        none,
        torch.tensor([100]),
        torch.tensor([float("nan")]),
        caches,
        caches,
    )
    np.testing.assert_allclose(outputs[6].reshape(1, -1).numpy(), case.expected["first_logits"], atol=1e-3)


def test_a_choice_between_equals_may_differ_and_no_other():
    from autogaze_export.validation import tied_rows

    logits = np.zeros((4, 2, 5), np.float32)
    logits[:, :, 1], logits[:, :, 2], logits[:, :, 3] = 3.0, 3.0 - 1e-6, 2.0
    expected = np.full((4, 2), 1)
    found = np.array([[1, 1], [2, 3], [3, 1], [5, 1]])
    assert tied_rows(found, expected, logits).tolist() == [False, True, False, False]


def test_export_traces_another_architecture_that_builds_and_runs(tmp_path, seeded_checkpoint):
    """Two encoder blocks and two layers: nothing like it is shipped."""
    from autogaze_backend import GazeModel
    from autogaze_export import build, export
    from autogaze_export.binding import checkpoint_shapes
    from safetensors.numpy import save_file

    config = checkpoint.config()
    config["gaze_model_config"]["vision_model_config"]["depth"] = 2
    config["gaze_model_config"]["gaze_decoder_config"]["num_hidden_layers"] = 2
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    shapes = checkpoint_shapes(ModelSpec.from_config(config))
    save_file(
        {name: (0.05 * random.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    graphs = dict(export(folder, tmp_path / "graphs"))
    assert [path.name for path in graphs] == [
        "encoder.onnx",
        "prefill.onnx",
        "prefill.masked.onnx",
        "step.onnx",
        "step.masked.onnx",
    ]
    model = GazeModel.load(build(folder, tmp_path / "bundle", graphs=tmp_path / "graphs"))
    video = random.standard_normal((1, 4, 3, 224, 224)).astype(np.float32)
    whole = model.generate(video, gazing_ratio=0.2)
    assert whole.tokens_of_rows.tolist() == [[53] * 4]
