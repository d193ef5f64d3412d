from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from autogaze_backend import Bundle
from autogaze_client import CheckpointError, InvalidInputError
from autogaze_export import build, load_checkpoint
from autogaze_export.graphs import SHIPPED, masked_graph, traced_graph
from safetensors.numpy import load_file


def test_the_manifest_says_what_the_bundle_is(bundle, seeded_checkpoint):
    manifest = json.loads((bundle() / "manifest.json").read_text())
    assert manifest["engine"] == "onnxruntime"
    assert manifest["precision"] == "exact"
    assert manifest["checkpoint"]["sha256"] == load_checkpoint(seeded_checkpoint()).sha256
    assert set(manifest["graphs"]) == {"encoder", "prefill", "step"}
    assert set(manifest["masked_graphs"]) == {"prefill", "step"}
    loaded = Bundle.load(bundle())
    for phase, path in loaded.masked_graphs.items():
        assert path == bundle().resolve() / f"{phase.value}.masked.onnx"
        assert path.read_bytes() == masked_graph(traced_graph(loaded.spec, phase)).read_bytes()
    assert loaded.spec == load_checkpoint(seeded_checkpoint()).spec
    assert loaded.preprocessing.shortest_edge == 224


def test_graphs_carry_no_weights(bundle):
    """The released weights may not be redistributed, so the shipped graphs must hold none."""
    sizes = [path.stat().st_size for path in bundle().glob("*.onnx")]
    assert len(sizes) == 5
    assert max(sizes) < 64 * 1024


def test_weights_are_the_checkpoints_values_rearranged(bundle, seeded_checkpoint):
    tensors = load_checkpoint(seeded_checkpoint()).tensors
    weights = load_file(bundle() / "weights.safetensors")
    assert sum(weight.size for weight in weights.values()) == 3_258_240
    layer = "gazing_model.gaze_decoder.model.layers.2."
    np.testing.assert_array_equal(
        weights["decoder.layers.2.qkv"][:, 192:384], tensors[layer + "self_attn.k_proj.weight"].T
    )
    kernel = tensors["gazing_model.vision_model.blocks.0.conv3d.weight"]
    np.testing.assert_array_equal(weights["encoder.blocks.0.weight"][5, 192 + 7], kernel[5, 7, 1])


def test_building_again_replaces_the_bundle(seeded_checkpoint, tmp_path):
    out = build(seeded_checkpoint("single"), tmp_path / "bundle")
    assert Bundle.load(out).spec.group_size == 1
    build(seeded_checkpoint("release"), out)
    assert Bundle.load(out).spec.group_size == 10
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_with_other_things_is_not_touched(seeded_checkpoint, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InvalidInputError, match="holds other things"):
        build(seeded_checkpoint(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_another_programs_manifest_does_not_make_a_folder_a_bundle(seeded_checkpoint, tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(InvalidInputError, match="holds other things"):
        build(seeded_checkpoint(), tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "a web app"}'


def test_a_bundle_with_a_stranger_in_it_is_not_replaced(seeded_checkpoint, tmp_path):
    out = build(seeded_checkpoint("single"), tmp_path / "bundle")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="holds other things"):
        build(seeded_checkpoint(), out)
    assert (out / "notes.txt").read_text() == "mine"


def test_every_file_of_a_bundle_can_be_read_by_the_servers_user(bundle):
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in bundle().iterdir())


def test_a_failed_build_leaves_nothing(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        build(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "message"), [({"engine": "tensorflow"}, "'tensorflow'"), ({"precision": "int4"}, "'int4'")]
)
def test_unknown_engines_and_precisions_are_refused(options, message, seeded_checkpoint, tmp_path):
    with pytest.raises(InvalidInputError, match=message):
        build(seeded_checkpoint(), tmp_path / "bundle", **options)


def test_an_architecture_without_graphs_names_the_command(seeded_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"autogaze export .* --graphs"):
        build(seeded_checkpoint(), tmp_path / "bundle", graphs=tmp_path)


def test_graphs_without_their_masked_forms_are_refused_by_name(seeded_checkpoint, tmp_path):
    """As `autogaze export` wrote them before there were any."""
    graphs = shutil.copytree(SHIPPED, tmp_path / "graphs", ignore=shutil.ignore_patterns("*.masked.onnx"))
    message = r"graphs prefill\.masked\.onnx, step\.masked\.onnx of .* are not in .*autogaze export"
    with pytest.raises(CheckpointError, match=message):
        build(seeded_checkpoint(), tmp_path / "bundle", graphs=graphs)
    assert not (tmp_path / "bundle").exists()


def test_building_and_running_import_no_torch(seeded_checkpoint, tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from autogaze_export import build\n"
        "from autogaze_backend import GazeModel\n"
        f"model = GazeModel.load(build({str(seeded_checkpoint())!r}, {str(tmp_path / 'bundle')!r}))\n"
        "model.generate(np.zeros((1, 1, 3, 224, 224), np.float32), gazing_ratio=0.01)\n"
        "print(sorted({'torch', 'onnx', 'onnxscript', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"precision": "fast"}, "fast"),
        ({"engine": "tensorrt-rtx"}, "tensorrt-rtx"),
        ({"engine": "tensorrt"}, "tensorrt"),
    ],
)
def test_without_onnx_the_extra_is_named_and_nothing_is_written(options, extra, seeded_checkpoint, tmp_path):
    (tmp_path / "onnx.py").write_text("raise ModuleNotFoundError(\"No module named 'onnx'\", name='onnx')")
    out = tmp_path / "bundle"
    code = (
        f"from autogaze_export import build; build({str(seeded_checkpoint())!r}, {str(out)!r}, **{options!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert f"needs onnx: pip install 'autogaze-triton[{extra}]'" in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["onnx.py"]
