"""The real builder of TensorRT-RTX, ahead of time, on a machine that needs no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend import GazeModel
from autogaze_backend.bundle import Bundle, file_sha256
from autogaze_backend.graphs import Phase, signature
from autogaze_backend.plans import Bucket, EngineKind, GraphVariant, PlanSet, plan_folders
from autogaze_client import InvalidInputError, MissingExtraError, PlanBuildError
from autogaze_export import build, load_checkpoint
from autogaze_export.tensorrt.options import PlanOptions, parse_compute_capabilities, parse_numbers
from goldens import checkpoint

pytest.importorskip(
    "tensorrt_rtx_bindings",
    reason="builds plans with TensorRT-RTX; pip install 'autogaze-triton[tensorrt-rtx]'",
)

import onnx
from autogaze_export.binding import bind_weights
from autogaze_export.graphs import traced_graph
from autogaze_export.rewriting.editing import value_types
from autogaze_export.rewriting.halving import halved
from autogaze_export.rewriting.masking import masked
from autogaze_export.rewriting.variants import (
    for_builder,
    read_graph,
    with_static_shapes,
    with_weights,
)
from autogaze_export.tensorrt import network as networks
from autogaze_export.tensorrt.building import _sizes
from autogaze_export.tensorrt.library import TensorRTLibrary, local_gpu

TARGETS = ((8, 6), (8, 9), (12, 0))
SMALL = {"batch_buckets": (2,), "length_buckets": (512,), "frame_buckets": (1,)}
BUCKETS = {phase: Bucket(phase, 2, 1 if phase is Phase.ENCODER else 512) for phase in Phase}


@pytest.fixture(scope="module")
def library():
    return TensorRTLibrary(EngineKind.TENSORRT_RTX)


@pytest.fixture(scope="module", params=["release", "single"])
def loaded(request, seeded_checkpoint):
    return load_checkpoint(seeded_checkpoint(request.param))


@pytest.fixture(scope="module")
def built(seeded_checkpoint, tmp_path_factory):
    """All three graphs for three architectures of GPUs, precision fast."""
    return build(
        seeded_checkpoint(),
        tmp_path_factory.mktemp("plans") / "bundle",
        engine="tensorrt-rtx",
        precision="fast",
        plans=PlanOptions(compute_capabilities=TARGETS, **SMALL),
    )


@pytest.fixture
def exact_bundle(seeded_checkpoint, tmp_path):
    """A bundle with the exact plans of one row for one GPU."""
    return build(seeded_checkpoint(), tmp_path / "bundle", engine="tensorrt-rtx", plans=one_row())


def one_row(rows: tuple[int, ...] = (1,), **changes) -> PlanOptions:
    return PlanOptions(
        compute_capabilities=((8, 9),),
        batch_buckets=rows,
        **{"length_buckets": (256,), "frame_buckets": (1,), **changes},
    )


def only_set(bundle: Path) -> PlanSet:
    (folder,) = plan_folders(bundle)
    return PlanSet.load(folder)


def filled(loaded, model, phase: Phase):
    weights = bind_weights(loaded.spec, loaded.tensors)
    return with_weights(with_static_shapes(model, _sizes(loaded.spec, BUCKETS[phase])), weights)


def parsed(library, loaded, phase, variant, precision):
    model = for_builder(loaded.spec, traced_graph(loaded.spec, phase), variant, precision)
    return networks.parse_network(
        library, filled(loaded, model, phase), loaded.spec, BUCKETS[phase], variant
    )[2]


def test_three_graphs_are_built_for_three_gpus_without_one(built):
    folders = plan_folders(built)
    assert [folder.name for folder in folders] == [
        f"tensorrt-rtx-1.7.1.116-sm{sm}-fast" for sm in ("120", "86", "89")
    ]
    for folder in folders:
        plans = PlanSet.load(folder)
        assert set(plans.plans) == set(BUCKETS.values())
        assert plans.variant is GraphVariant.OPSET24
        assert plans.cuda == "13"
        assert all(plan.size > 1 << 20 for plan in plans.plans.values())
        plans.check_bundle(Bundle.load(built))
        plans.check_runtime(EngineKind.TENSORRT_RTX, "1.7.1.116", plans.target.compute_capability)


def test_plans_of_different_gpus_differ(built):
    steps = {PlanSet.load(folder).plans[BUCKETS[Phase.STEP]].sha256 for folder in plan_folders(built)}
    assert len(steps) == len(TARGETS)


def test_the_manifest_says_how_fast_agrees_before_any_gpu_ran_it(built):
    for folder in plan_folders(built):
        plans = PlanSet.load(folder)
        assert plans.parity is None
        assert plans.agreement is not None
        assert plans.agreement.runs_on.startswith("float16 emulated")
        assert plans.agreement.choices > 3000
        assert plans.agreement.equal >= 0.98
        assert 0 < plans.agreement.max_task_loss_difference < 0.01


def test_the_manifest_holds_every_binding(built, loaded):
    plans = PlanSet.load(plan_folders(built)[0])
    spec = Bundle.load(built).spec
    for phase in Phase:
        names = signature(spec, phase)
        tensors = plans.plans[BUCKETS[phase]].tensors
        assert tuple(t.name for t in tensors if t.is_input) == names.inputs
        assert tuple(t.name for t in tensors if not t.is_input) == names.outputs
        assert all(min(t.shape) >= 1 for t in tensors)
        for tensor in tensors:
            cache = tensor.name.removeprefix("new_").startswith(("key_", "value_"))
            assert (tensor.dtype == "float16") == cache
            if cache:
                assert tensor.shape == (2, 6, 512, 32)
                assert tensor.alias == (None if tensor.is_input else tensor.name.removeprefix("new_"))


def test_a_bundle_with_plans_is_still_served_by_onnxruntime(built, golden):
    case = golden("row_a")
    generated = GazeModel.load(built, engine="onnxruntime").generate(case.video, **case.knobs)
    np.testing.assert_array_equal(generated.gazing_pos, case.expected["gazing_pos"])


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.STEP], ids=lambda phase: phase.value)
def test_the_parsed_decoder_has_the_fused_layers(library, loaded, phase, precision):
    spec = loaded.spec
    report = parsed(library, loaded, phase, GraphVariant.OPSET24, precision)
    layers = spec.num_layers
    assert report.layers["KV_CACHE_UPDATE"] == 2 * layers
    assert report.layers["ROTARY_EMBEDDING"] == 2 * layers
    assert report.layers["ATTENTION_INPUT"] == report.layers["ATTENTION_OUTPUT"] == layers
    tokens = spec.group_size + (spec.vision_tokens if phase is Phase.PREFILL else 0)
    # The last layer reads one token; a mask of a single row of scores is not causal.
    assert [a.mask for a in report.attentions] == [(2, 1, tokens, 512)] * (layers - 1) + [(2, 1, 1, 512)]
    assert {a.dtype for a in report.attentions} == {"float16" if precision == "fast" else "float32"}
    assert all(a.decomposable == (precision == "exact") for a in report.attentions)
    assert report.checked_types > 100


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_matrix_products_have_the_types_that_were_asked_for(library, loaded, precision):
    """Nothing is demoted to float32, or promoted to float16, by accident."""
    layers = loaded.spec.num_layers
    # Of each layer qkv, out, gate_up, down, of which the last layer's three after qkv stay float32, and two heads.
    halves, floats = (4 * layers - 3, 5) if precision == "fast" else (0, 4 * layers + 2)
    for phase in (Phase.PREFILL, Phase.STEP):
        found = parsed(library, loaded, phase, GraphVariant.OPSET24, precision).products
        assert (found.get("float16", 0), found.get("float32", 0)) == (halves, floats)
    found = parsed(library, loaded, Phase.ENCODER, GraphVariant.OPSET24, precision).products
    # Patch convolution, block convolution, projection.
    assert found == ({"float16": 1, "float32": 2} if precision == "fast" else {"float32": 3})


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_the_fallback_has_none_of_the_fused_layers(library, loaded, precision):
    layers = loaded.spec.num_layers
    for phase in (Phase.PREFILL, Phase.STEP):
        report = parsed(library, loaded, phase, GraphVariant.PLAIN, precision)
        assert report.layers["SCATTER"] == 2 * layers
        assert report.layers["SOFTMAX"] == layers
        assert not {"KV_CACHE_UPDATE", "ROTARY_EMBEDDING", "ATTENTION_INPUT"} & set(report.layers)
        assert all(tensor.alias is None for tensor in report.tensors)


def test_key_lengths_that_the_parser_drops_are_caught(library, loaded):
    """The traced graph itself: it parses, it builds, and it would read stale cache."""
    model = halved(read_graph(traced_graph(loaded.spec, Phase.STEP)), loaded.spec, name_softmax=False)
    with pytest.raises(PlanBuildError, match="attention 0 has no mask of the cache's 512 positions"):
        networks.parse_network(
            library,
            filled(loaded, model, Phase.STEP),
            loaded.spec,
            BUCKETS[Phase.STEP],
            GraphVariant.OPSET24,
        )


def test_an_input_that_nothing_reads_is_caught(library, loaded):
    model = for_builder(loaded.spec, traced_graph(loaded.spec, Phase.STEP), GraphVariant.OPSET24, "exact")
    for node in model.graph.node:
        node.input[:] = ["budget_or_so" if name == "requirement" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "budget_or_so"))
    with pytest.raises(PlanBuildError, match="no layer reads requirement"):
        networks.parse_network(
            library,
            filled(loaded, model, Phase.STEP),
            loaded.spec,
            BUCKETS[Phase.STEP],
            GraphVariant.OPSET24,
        )


def test_a_value_of_another_type_than_onnx_says_is_caught(library, loaded):
    phase, variant = Phase.STEP, GraphVariant.OPSET24
    model = filled(loaded, for_builder(loaded.spec, traced_graph(loaded.spec, phase), variant, "fast"), phase)
    network, _parser, report = networks.parse_network(library, model, loaded.spec, BUCKETS[phase], variant)
    types = value_types(model)
    assert networks._faults(report, network, types, loaded.spec, BUCKETS[phase], variant) == []
    promoted = {**types, "logits": int(onnx.TensorProto.FLOAT16)}
    faults = networks._faults(report, network, promoted, loaded.spec, BUCKETS[phase], variant)
    assert faults == ["logits became FLOAT, not FLOAT16"]


def test_a_graph_that_the_parser_refuses_names_the_reason_and_the_fallback(library, loaded):
    model = halved(
        masked(read_graph(traced_graph(loaded.spec, Phase.STEP)), loaded.spec.head_dim), loaded.spec
    )
    with pytest.raises(PlanBuildError, match=r"(?s)softmax precision.*--graph-variant plain"):
        networks.parse_network(
            library,
            filled(loaded, model, Phase.STEP),
            loaded.spec,
            BUCKETS[Phase.STEP],
            GraphVariant.OPSET24,
        )


def test_the_same_build_is_skipped_and_another_bucket_is_added(seeded_checkpoint, exact_bundle):
    first = only_set(exact_bundle)
    stamps = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    again = {"engine": "tensorrt-rtx"}
    build(seeded_checkpoint(), exact_bundle, **again, plans=one_row())
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == stamps
    build(seeded_checkpoint(), exact_bundle, **again, plans=one_row((2,)))
    grown = only_set(exact_bundle)
    assert {bucket.rows for bucket in grown.plans} == {1, 2}
    assert len(grown.plans) == 6
    for bucket, plan in first.plans.items():
        assert grown.plans[bucket] == plan
        assert first.file(plan).stat().st_mtime_ns == stamps[first.file(plan)]


def test_a_damaged_set_and_other_inputs_are_built_anew(seeded_checkpoint, exact_bundle):
    first = only_set(exact_bundle)
    path = first.file(first.plans[Bucket(Phase.STEP, 1, 256)])
    path.write_bytes(path.read_bytes()[:1000])
    build(seeded_checkpoint(), exact_bundle, engine="tensorrt-rtx", plans=one_row())
    assert only_set(exact_bundle).inputs == first.inputs
    build(
        seeded_checkpoint(),
        exact_bundle,
        engine="tensorrt-rtx",
        plans=one_row(variant=GraphVariant.PLAIN),
    )
    other = only_set(exact_bundle)
    assert other.inputs != first.inputs
    assert other.variant is GraphVariant.PLAIN
    assert [path.name for path in other.path.parent.iterdir()] == [other.path.name]


def test_another_checkpoint_takes_the_old_plans_away(exact_bundle, tmp_path):
    other = checkpoint.write_checkpoint(tmp_path / "other", seed=8)
    build(other, exact_bundle)
    assert plan_folders(exact_bundle) == ()


def test_the_same_checkpoint_at_another_precision_keeps_the_plans(seeded_checkpoint, exact_bundle):
    before = only_set(exact_bundle)
    build(seeded_checkpoint(), exact_bundle, precision="fast")
    assert Bundle.load(exact_bundle).precision == "fast"
    assert only_set(exact_bundle) == before
    before.check_bundle(Bundle.load(exact_bundle))


def test_a_full_disk_is_said_plainly_and_costs_no_plan_that_is_there(seeded_checkpoint, exact_bundle):
    before = only_set(exact_bundle)
    # The device that is always full, in the place of the file that the next plan is written to first.
    staged = before.path / f".{Bucket(Phase.STEP, 2, 256).file}.{os.getpid()}"
    staged.symlink_to("/dev/full")
    with pytest.raises(PlanBuildError, match=r"no space left in .* MB are needed .*--batch-buckets"):
        build(seeded_checkpoint(), exact_bundle, engine="tensorrt-rtx", plans=one_row((1, 2)))
    after = only_set(exact_bundle)
    assert set(before.plans) < set(after.plans)
    assert Bucket(Phase.STEP, 2, 256) not in after.plans
    assert not [path for path in after.path.iterdir() if path.name.startswith(".")]
    build(seeded_checkpoint(), exact_bundle, engine="tensorrt-rtx", plans=one_row((1, 2)))
    assert len(only_set(exact_bundle).plans) == 6


def test_every_plan_can_be_read_by_the_servers_user(exact_bundle):
    folder = only_set(exact_bundle).path
    assert folder.stat().st_mode & 0o055 == 0o055
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_capabilities": ((9, 0),)}, r"9\.0 is none .*--engine tensorrt"),
        ({"version_compatible": True}, "lean runtime"),
        ({"hardware_compatible": True}, "name every GPU's compute capability"),
        ({"length_buckets": (205,)}, "shorter than one frame's prefill of 206"),
    ],
)
def test_what_the_library_cannot_do_is_refused(options, message, seeded_checkpoint, tmp_path):
    values = {"compute_capabilities": ((8, 9),), **options}
    with pytest.raises(InvalidInputError, match=message):
        build(
            seeded_checkpoint(),
            tmp_path / "bundle",
            engine="tensorrt-rtx",
            plans=PlanOptions(**{**SMALL, **values}),
        )


def test_every_weight_can_be_stripped_and_given_back_by_its_name(library, loaded):
    """As far as it goes without a GPU: the marks are set, the stripped build itself compiles on one."""
    weights = bind_weights(loaded.spec, loaded.tensors)
    for phase in Phase:
        for variant in GraphVariant:
            model = for_builder(loaded.spec, traced_graph(loaded.spec, phase), variant, "fast")
            network, _parser, _ = networks.parse_network(
                library, filled(loaded, model, phase), loaded.spec, BUCKETS[phase], variant
            )
            prefix = "encoder." if phase is Phase.ENCODER else "decoder."
            names = [name for name in weights if name.startswith(prefix)]
            networks.mark_refittable(library, network, names)
            assert all(network.are_weights_marked_refittable(name) for name in names)
            with pytest.raises(PlanBuildError, match="does not know the weight nonsense"):
                networks.mark_refittable(library, network, ["nonsense"])


def test_the_configuration_of_the_other_library_on_the_same_api(library):
    """TensorRT's options, set on TensorRT-RTX's classes: the two share their names."""
    trt = library.trt
    other = TensorRTLibrary(EngineKind.TENSORRT_RTX)
    other.kind = EngineKind.TENSORRT
    options = PlanOptions(version_compatible=True, strip_weights=True)
    config = other.configuration(options, (8, 9), b"")
    for name in ("VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_INDIVIDUAL"):
        assert config.get_flag(getattr(trt.BuilderFlag, name))
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert len(other.timing(config)) > 0
    plain = library.configuration(PlanOptions(), (8, 9), b"")
    assert not any(
        plain.get_flag(getattr(trt.BuilderFlag, n)) for n in ("TF32", "STRIP_PLAN", "VERSION_COMPATIBLE")
    )
    assert plain.get_compute_capability(0) == trt.ComputeCapability.SM89
    for version, variant in (("10.14.1", "plain"), ("10.15.1.29", "opset24"), ("11.4.0", "opset24")):
        other.version = version
        assert other.variant.value == variant
    if local_gpu() is None:
        with pytest.raises(InvalidInputError, match=r"measures kernels on the GPU .* --engine tensorrt-rtx"):
            other.targets(PlanOptions())


@pytest.mark.skipif(local_gpu() is not None, reason="tests what happens without a GPU, and there is one")
def test_without_a_gpu_a_target_must_be_named_and_weights_stay_in(seeded_checkpoint, tmp_path):
    out = tmp_path / "bundle"
    with pytest.raises(InvalidInputError, match=r"name one with --sm \(known: 7\.5,8\.0,8\.6,8\.9,12\.0"):
        build(seeded_checkpoint(), out, engine="tensorrt-rtx")
    with pytest.raises(InvalidInputError, match="compiles kernels on a GPU to strip weights"):
        build(seeded_checkpoint(), out, engine="tensorrt-rtx", plans=one_row(strip_weights=True))
    assert not out.exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_missing_library_names_the_command_and_leaves_no_trace(seeded_checkpoint, tmp_path):
    with pytest.raises(
        MissingExtraError, match=r"pip install 'autogaze-triton\[tensorrt\]' .*NVIDIA's own index"
    ):
        build(seeded_checkpoint(), tmp_path / "bundle", engine="tensorrt")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_a_library_whose_own_parts_are_missing_names_them(engine, tmp_path):
    """What tensorrt's wheel does where its libraries were not fetched."""
    modules = ["tensorrt"] if engine == "tensorrt" else ["tensorrt_rtx", "tensorrt_rtx_bindings"]
    for name in modules:
        (tmp_path / f"{name}.py").write_text(
            "raise OSError('libnvinfer.so.10: cannot open shared object file')"
        )
    code = (
        "from autogaze_export.tensorrt.library import TensorRTLibrary\n"
        "from autogaze_backend.plans import EngineKind\n"
        f"TensorRTLibrary(EngineKind({engine!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert re.search(rf"libnvinfer\.so\.10.*autogaze-triton\[{engine}\]", done.stderr.splitlines()[-1])


def test_plans_options_of_another_engine_are_refused(seeded_checkpoint, tmp_path):
    with pytest.raises(InvalidInputError, match="'onnxruntime' has none"):
        build(seeded_checkpoint(), tmp_path / "bundle", plans=PlanOptions())


def test_the_command_builds_and_prints_the_folder(seeded_checkpoint, tmp_path):
    out = tmp_path / "bundle"
    words = [
        "--engine",
        "tensorrt-rtx",
        "--sm",
        "8.6",
        "--batch-buckets",
        "1",
        "--length-buckets",
        "256",
        "--frame-buckets",
        "1,2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "autogaze_client._cli", "build", str(seeded_checkpoint()), str(out), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{out}\n"
    assert "4/4" in done.stderr
    manifest = json.loads((only_set(out).path / "plans.json").read_text())
    assert [(p["phase"], p["rows"], p["length"]) for p in manifest["plans"]] == [
        ("encoder", 1, 1),
        ("encoder", 1, 2),
        ("prefill", 1, 256),
        ("step", 1, 256),
    ]
    for plan in manifest["plans"]:
        path = only_set(out).path / plan["file"]
        assert (plan["size"], plan["sha256"]) == (path.stat().st_size, file_sha256(path))
        assert plan["build_seconds"] > 0


@pytest.mark.parametrize("text", ["", "1,", "a", "1.5", "-1", "²"])
def test_bad_numbers_are_refused(text):
    with pytest.raises(InvalidInputError, match="--batch-buckets is"):
        parse_numbers(text, "--batch-buckets")


@pytest.mark.parametrize("text", ["", "8", "89", "8.9,", "8.x", "sm89"])
def test_bad_compute_capabilities_are_refused(text):
    with pytest.raises(InvalidInputError, match="--sm is"):
        parse_compute_capabilities(text)


def test_options_are_sorted_and_each_once():
    assert parse_compute_capabilities("12.0, 8.6,8.6") == ((12, 0), (8, 6))
    assert PlanOptions(batch_buckets=(4, 1, 4)).batch_buckets == (1, 4)
    with pytest.raises(InvalidInputError, match="frame_buckets is"):
        PlanOptions(frame_buckets=())


def test_the_bindings_of_a_deserialised_plan_are_the_manifests(library, built):
    """Where the runtime allows it: a GPU that a plan was built for."""
    gpu = local_gpu()
    if gpu is None or gpu.compute_capability not in TARGETS:
        pytest.skip("deserialising needs an RTX GPU (8.6, 8.9 or 12.0), and there is none here")
    major, minor = gpu.compute_capability
    plans = PlanSet.load(built / "plans" / f"tensorrt-rtx-{library.version}-sm{major}{minor}-fast")
    runtime = library.trt.Runtime(library.logger)
    for plan in plans.plans.values():
        engine = runtime.deserialize_cuda_engine(plans.file(plan).read_bytes())
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        assert found == {tensor.name for tensor in plan.tensors}
        for tensor in plan.tensors:
            assert tuple(engine.get_tensor_shape(tensor.name)) == tensor.shape
            if not tensor.is_input:
                assert (engine.get_aliased_input_tensor(tensor.name) or None) == tensor.alias


def test_importing_the_builder_imports_no_tensorrt(tmp_path):
    code = (
        "import sys\n"
        "import autogaze_export.bundle_writer, autogaze_export.tensorrt.options, autogaze_backend.plans\n"
        "import autogaze_export.tensorrt.library\n"
        "print(sorted(n for n in sys.modules if n.startswith(('tensorrt', 'onnx', 'torch', 'cuda'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_bundle_that_was_copied_keeps_its_plans(built, tmp_path):
    copy = Bundle.load(shutil.copytree(built, tmp_path / "copy"))
    for folder in plan_folders(copy.path):
        PlanSet.load(folder).check_bundle(copy)
