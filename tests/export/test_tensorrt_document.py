"""docs/tensorrt.md against the program: options, keys of the manifest, the configuration for Triton."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from autogaze_backend.graphs import Phase
from autogaze_export import build
from autogaze_export._commands.build import Command
from autogaze_export.tensorrt.options import PlanOptions

DOCUMENT = (Path(__file__).parents[2] / "docs" / "tensorrt.md").read_text(encoding="utf-8")
TYPES = {"TYPE_FP32": "float32"}


def table(heading: str) -> list[str]:
    """First cells of the table under a heading."""
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [
        re.findall(r"`([^`]+)`", line.split("|")[1])
        for line in section.splitlines()
        if line.startswith("| `")
    ]


def test_every_option_of_plans_is_in_the_table():
    parser = argparse.ArgumentParser()
    Command().add_arguments(parser)
    (group,) = (group for group in parser._action_groups if group.title and group.title.startswith("plans"))
    declared = {option for action in group._group_actions for option in action.option_strings}
    written = {name.split()[0] for (name,) in table("Options")}
    assert written == declared | {"--precision"}


def test_the_defaults_of_the_table_are_those_of_the_program():
    options = PlanOptions()
    for name in ("batch_buckets", "length_buckets", "frame_buckets"):
        values = ",".join(map(str, getattr(options, name)))
        assert f"| `--{name.replace('_', '-')}` | {values} |" in DOCUMENT
    assert f"The defaults make {len(options.buckets(206))} plans a target" in DOCUMENT


def test_keys_of_the_manifest_and_tritons_configuration(seeded_checkpoint, tmp_path):
    pytest.importorskip(
        "tensorrt_rtx_bindings",
        reason="builds a plan; pip install 'autogaze-triton[tensorrt-rtx]'",
    )
    options = PlanOptions(
        compute_capabilities=((8, 9),),
        batch_buckets=(1,),
        length_buckets=(256,),
        frame_buckets=(16,),
        keep_onnx=tmp_path / "onnx",
    )
    out = build(seeded_checkpoint(), tmp_path / "bundle", engine="tensorrt-rtx", plans=options)
    (path,) = out.glob("plans/*/plans.json")
    manifest = json.loads(path.read_text())
    assert sorted(key for cell in table("Folder and manifest") for key in cell) == sorted(manifest)
    plan = next(item for item in manifest["plans"] if item["phase"] == Phase.ENCODER.value)
    assert plan["file"] == "encoder-r1-t16.plan"
    written = {
        name: (TYPES[dtype], [int(size) for size in dims.split(",")])
        for name, dtype, dims in re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[([^\]]+)\]', DOCUMENT)
    }
    assert written == {tensor["name"]: (tensor["dtype"], tensor["shape"]) for tensor in plan["tensors"]}
    # What other tools are given: whole models that need nothing else.
    import onnx
    import onnxruntime as ort

    assert sorted(file.name for file in options.keep_onnx.iterdir()) == [
        "encoder-r1-t16.onnx",
        "prefill-r1-l256.onnx",
        "step-r1-l256.onnx",
    ]
    for file in options.keep_onnx.iterdir():
        onnx.checker.check_model(str(file), full_check=True)
        ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
