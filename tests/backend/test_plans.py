"""The contract between what builds plans and what runs them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from autogaze_backend.bundle import Bundle, file_sha256
from autogaze_backend.graphs import Phase
from autogaze_backend.plans import (
    PLANS_FILE,
    Agreement,
    Bucket,
    EngineKind,
    GraphVariant,
    Parity,
    Plan,
    PlanSet,
    PlanTarget,
    PlanTensor,
    load_plan_sets,
    plan_folders,
)
from autogaze_client import CheckpointError, NotFoundError, PlanMismatchError

TARGET = PlanTarget(EngineKind.TENSORRT_RTX, "1.7.1", (8, 9), "fast")
BUCKETS = [
    Bucket(Phase.ENCODER, 1, 1),
    Bucket(Phase.ENCODER, 1, 16),
    Bucket(Phase.PREFILL, 4, 1024),
    Bucket(Phase.STEP, 1, 4096),
    Bucket(Phase.STEP, 4, 1024),
    Bucket(Phase.STEP, 8, 1024),
]


def write_plans(bundle: Bundle, **changes) -> PlanSet:
    """Plans of a few bytes each; nothing here looks inside one."""
    folder = bundle.path / "plans" / TARGET.name
    folder.mkdir(parents=True, exist_ok=True)
    plans = {}
    for bucket in BUCKETS:
        path = folder / bucket.file
        path.write_bytes(f"plan of {bucket}".encode())
        tensors = (
            PlanTensor("key_0", "float16", (bucket.rows, 6, bucket.length, 32), is_input=True),
            PlanTensor("new_key_0", "float16", (bucket.rows, 6, bucket.length, 32), False, alias="key_0"),
        )
        plans[bucket] = Plan(bucket, path.name, file_sha256(path), path.stat().st_size, 0.25, tensors)
    values = {
        "path": folder,
        "target": TARGET,
        "cuda": "13.1",
        "variant": GraphVariant.OPSET24,
        "checkpoint": bundle.manifest["checkpoint"]["sha256"],
        "graphs": dict(bundle.traced_graphs),
        "inputs": "ab" * 32,
        "version_compatible": False,
        "hardware_compatible": False,
        "stripped": False,
        "plans": plans,
        "agreement": Agreement(1200, 0.99, 0.003, "onnxruntime CPU"),
        "parity": Parity("RTX 4090", "580.1", 14, 0, Agreement(1200, 0.98, 0.004, "tensorrt-rtx 1.7.1")),
    }
    written = PlanSet(**{**values, **changes})
    written.write()
    return written


@pytest.fixture
def own_bundle(bundle, tmp_path):
    return Bundle.load(shutil.copytree(bundle("release"), tmp_path / "bundle"))


def edit(folder: Path, **changes) -> None:
    path = folder / PLANS_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_written_is_read_back(own_bundle):
    written = write_plans(own_bundle)
    assert PlanSet.load(written.path) == written
    assert written.path.name == "tensorrt-rtx-1.7.1-sm89-fast"
    assert written.bundle_path == own_bundle.path
    plain = write_plans(own_bundle, agreement=None, parity=None)
    assert PlanSet.load(plain.path) == plain


def test_plans_leave_the_bundle_valid(own_bundle):
    write_plans(own_bundle)
    assert Bundle.load(own_bundle.path).engine == "onnxruntime"


def test_the_smallest_plan_that_is_large_enough_is_found(own_bundle):
    plans = write_plans(own_bundle)
    assert plans.find(Phase.STEP, 1, 900).bucket == Bucket(Phase.STEP, 1, 4096)
    assert plans.find(Phase.STEP, 3, 1024).bucket == Bucket(Phase.STEP, 4, 1024)
    assert plans.find(Phase.STEP, 5, 1).bucket == Bucket(Phase.STEP, 8, 1024)
    assert plans.find(Phase.ENCODER, 1, 2).bucket == Bucket(Phase.ENCODER, 1, 16)


@pytest.mark.parametrize(
    ("phase", "rows", "length", "option"),
    [
        (Phase.STEP, 9, 10, "--batch-buckets 9 --length-buckets 10"),
        (Phase.STEP, 2, 1025, "--batch-buckets 2 --length-buckets 1025"),
        (Phase.ENCODER, 1, 17, "--batch-buckets 1 --frame-buckets 17"),
    ],
)
def test_a_missing_bucket_names_the_command_that_builds_it(phase, rows, length, option, own_bundle):
    plans = write_plans(own_bundle)
    with pytest.raises(PlanMismatchError, match=option) as caught:
        plans.find(phase, rows, length)
    assert f"autogaze build CHECKPOINT {own_bundle.path} --engine tensorrt-rtx" in str(caught.value)


def test_a_truncated_a_changed_and_a_missing_plan_are_refused(own_bundle):
    plans = write_plans(own_bundle)
    path = plans.file(plans.plans[BUCKETS[3]])
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match=r"is truncated: .* bytes of .*autogaze build"):
        PlanSet.load(plans.path, verify=False)
    path.write_bytes(whole[:-3] + b"xyz")
    PlanSet.load(plans.path, verify=False)
    with pytest.raises(CheckpointError, match=r"has SHA-256 .*autogaze build"):
        PlanSet.load(plans.path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"lacks step-r1-l4096\.plan; .*autogaze build"):
        PlanSet.load(plans.path)


def test_a_plan_outside_the_folder_is_refused(own_bundle, tmp_path):
    plans = write_plans(own_bundle)
    entries = json.loads((plans.path / PLANS_FILE).read_text())["plans"]
    stranger = tmp_path / "stranger.plan"
    stranger.write_bytes(plans.file(plans.plans[BUCKETS[0]]).read_bytes())
    for name in (str(stranger), "../../../stranger.plan"):
        edit(plans.path, plans=[{**entries[0], "file": name}, *entries[1:]])
        with pytest.raises(CheckpointError, match="outside its folder"):
            PlanSet.load(plans.path)
    link = plans.path / entries[0]["file"]
    link.unlink()
    link.symlink_to(stranger)
    edit(plans.path, plans=entries)
    with pytest.raises(CheckpointError, match="outside its folder"):
        PlanSet.load(plans.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 7},
        {"engine": "tensorflow"},
        {"compute_capability": "eight"},
        {"plans": []},
        {"stripped": "no"},
        {"graphs": ["encoder"]},
        {"agreement": {"choices": 3}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_damaged_manifest_is_refused_with_the_command(changes, own_bundle):
    plans = write_plans(own_bundle)
    edit(plans.path, **changes)
    command = f"autogaze build CHECKPOINT {own_bundle.path} --engine tensorrt-rtx --precision fast"
    with pytest.raises(CheckpointError) as caught:
        PlanSet.load(plans.path)
    assert command in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]"])
def test_no_json_is_refused(content, own_bundle):
    plans = write_plans(own_bundle)
    (plans.path / PLANS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="autogaze build"):
        PlanSet.load(plans.path)


def test_no_manifest_is_not_found(own_bundle):
    with pytest.raises(NotFoundError, match="holds no plans"):
        PlanSet.load(own_bundle.path / "plans" / TARGET.name)


def test_plans_of_another_checkpoint_or_graph_are_refused(own_bundle):
    write_plans(own_bundle).check_bundle(own_bundle)
    with pytest.raises(PlanMismatchError, match="built from checkpoint 000000000000…"):
        write_plans(own_bundle, checkpoint="0" * 64).check_bundle(own_bundle)
    graphs = {**own_bundle.traced_graphs, Phase.STEP: "1" * 64}
    with pytest.raises(PlanMismatchError, match=r"step plans in .* graph 111111111111…"):
        write_plans(own_bundle, graphs=graphs).check_bundle(own_bundle)


def test_another_library_version_or_gpu_is_refused(own_bundle):
    plans = write_plans(own_bundle)
    plans.check_runtime(EngineKind.TENSORRT_RTX, "1.7.1", (8, 9))
    with pytest.raises(PlanMismatchError, match=r"--engine tensorrt --precision fast --sm 8\.9"):
        plans.check_runtime(EngineKind.TENSORRT, "1.7.1", (8, 9))
    with pytest.raises(PlanMismatchError, match=r"built with tensorrt-rtx 1\.7\.1, but 1\.8\.0"):
        plans.check_runtime(EngineKind.TENSORRT_RTX, "1.8.0", (8, 9))
    with pytest.raises(PlanMismatchError, match=r"8\.9, but Orin has 8\.7; .*--sm 8\.7"):
        plans.check_runtime(EngineKind.TENSORRT_RTX, "1.7.1", (8, 7), "Orin")


def test_compatible_plans_run_elsewhere_and_forward_only(own_bundle):
    plans = write_plans(own_bundle, version_compatible=True, hardware_compatible=True)
    plans.check_runtime(EngineKind.TENSORRT_RTX, "1.10.0", (12, 0))
    with pytest.raises(PlanMismatchError, match=r"1\.6\.9 is installed"):
        plans.check_runtime(EngineKind.TENSORRT_RTX, "1.6.9", (12, 0))


def test_folders_are_listed_with_what_is_wrong_with_them(own_bundle):
    assert plan_folders(own_bundle.path) == ()
    plans = write_plans(own_bundle)
    other = plans.path.with_name("tensorrt-10.15.1-sm90-exact")
    other.mkdir()
    plans.path.with_name(".building").mkdir()
    found = dict(load_plan_sets(own_bundle.path))
    assert list(found) == [other, plans.path]
    assert isinstance(found[other], CheckpointError)
    assert found[plans.path] == plans


def test_a_set_is_immutable(own_bundle):
    with pytest.raises(dataclasses.FrozenInstanceError):
        write_plans(own_bundle).stripped = True
