"""Writes a bundle: shipped graphs, bound weights, manifest. Needs neither torch nor onnx."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from autogaze_backend.bundle import FORMAT, MANIFEST_FILE, Bundle, file_sha256
from autogaze_backend.graphs import MASKED_PHASES, WEIGHTS_LOCATION, Phase
from autogaze_backend.plans import PLANS_FOLDER, Agreement, EngineKind
from autogaze_backend.preprocessing import PreprocessingConfig
from autogaze_client._errors import AutoGazeError, CheckpointError, InvalidInputError, MissingExtraError
from safetensors.numpy import save_file

from autogaze_export.binding import bind_weights
from autogaze_export.checkpoint import CONFIG_FILE, Checkpoint, load_checkpoint
from autogaze_export.graphs import SHIPPED, masked_graph, traced_graph
from autogaze_export.storage import no_room_told

if TYPE_CHECKING:
    from autogaze_export.tensorrt.library import TensorRTLibrary
    from autogaze_export.tensorrt.options import PlanOptions

PLAN_ENGINES = tuple(kind.value for kind in EngineKind)
ENGINES = ("onnxruntime", "torch", *PLAN_ENGINES)
PRECISIONS = ("exact", "fast")


def build(
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    engine: str = "onnxruntime",
    precision: str = "exact",
    revision: str | None = None,
    sha256: str | None = None,
    graphs: str | Path | None = None,
    plans: PlanOptions | None = None,
) -> Path:
    """Writes the bundle of a checkpoint: graphs, weights, config and manifest, all that serving needs.

    The folder appears whole or not at all; a bundle that is already there is replaced. With a TensorRT engine, a
    bundle of the same checkpoint stays as it is and gets plans (folder ``plans``); ONNX Runtime still serves it.

    Args:
        checkpoint: a folder or a hub id such as ``nvidia/AutoGaze``.
        out_dir: the bundle's folder.
        engine: "onnxruntime", "torch", "tensorrt" or "tensorrt-rtx".
        precision: "exact" (float32 arithmetic, tokens identical to the published model's) or "fast" (float16).
        revision: of a hub id: branch, tag or commit. The manifest records the commit.
        sha256: what ``model.safetensors`` must have; None = anything.
        graphs: a folder that ``autogaze export`` wrote; None for the graphs shipped with this package.
        plans: targets and shapes of a TensorRT build; None for the defaults.

    Returns:
        ``out_dir`` as an absolute path.

    Raises:
        NotFoundError: no such checkpoint.
        CheckpointError: the checkpoint is damaged, or its architecture's graphs are not shipped.
        InvalidInputError: an unknown engine or precision, an option that the engine does not have, or ``out_dir``
            holds something else.
        MissingExtraError: the engine's or the precision's packages are not installed.
        PlanBuildError: TensorRT failed.
        BundleWriteError: there is no room for it.
    """
    if engine not in ENGINES:
        raise InvalidInputError(f"engine is {engine!r}; this version builds {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise InvalidInputError(
            f"precision is {precision!r}; engine {engine!r} is built as {', '.join(PRECISIONS)}"
        )
    out = Path(out_dir).expanduser().resolve()
    if not _replaceable(out):
        raise InvalidInputError(
            f"{out} exists and holds other things than a bundle; choose another folder or empty it"
        )
    if plans is not None and engine not in PLAN_ENGINES:
        raise InvalidInputError(
            f"options of plans were given, but engine {engine!r} has none; name a TensorRT"
        )
    library = None
    if engine in PLAN_ENGINES:
        # Before anything is written: a library that is missing leaves no trace.
        library = _tensorrt(EngineKind(engine))
    loaded = load_checkpoint(checkpoint, revision=revision, sha256=sha256)
    if engine == "torch":
        _write_folder(out, loaded, {}, precision)
        return out
    traced = {phase: traced_graph(loaded.spec, phase, graphs or SHIPPED) for phase in Phase}
    needed = [*traced.values(), *_masked(traced).values()]
    if absent := [path.name for path in needed if not path.is_file()]:
        raise CheckpointError(
            f"the graphs {', '.join(absent)} of architecture {loaded.spec.graph_name} are not in "
            f"{graphs or 'this package'}; trace "
            f"them with `autogaze export {checkpoint} DIR` (pip install 'autogaze-triton[export]') and pass graphs=DIR "
            "(`autogaze build --graphs DIR`)"
        )
    if library is None:
        _write_folder(out, loaded, traced, precision)
    else:
        from autogaze_export.tensorrt.adding import add_plans
        from autogaze_export.tensorrt.options import PlanOptions

        options = plans or PlanOptions()
        library.check(options)
        library.targets(options)
        if not holds(out, loaded, traced):
            _write_folder(out, loaded, traced, "exact")
        with no_room_told(out):
            add_plans(library, out, loaded, traced, precision, options)
    return out


def _tensorrt(kind: EngineKind) -> TensorRTLibrary:
    try:
        # Imported here for what it needs: rewriting wants onnx.
        import autogaze_export.tensorrt.building  # noqa: F401
        from autogaze_export.tensorrt.library import TensorRTLibrary
    except ImportError as error:
        raise MissingExtraError.for_extra(f"engine {kind.value!r}", kind.value, error) from error
    return TensorRTLibrary(kind)


def holds(folder: Path, checkpoint: Checkpoint, traced: Mapping[Phase, Path]) -> bool:
    """Whether a folder is a whole bundle of this checkpoint and these graphs."""
    try:
        bundle = Bundle.load(folder)
    except AutoGazeError:
        return False
    same_graphs = bundle.traced_graphs == {phase: file_sha256(path) for phase, path in traced.items()}
    return same_graphs and bundle.manifest.get("checkpoint", {}).get("sha256") == checkpoint.sha256


def _write_folder(out: Path, loaded: Checkpoint, traced: Mapping[Phase, Path], precision: str) -> None:
    keeps_plans = (out / PLANS_FOLDER).is_dir() and holds(out, loaded, traced)
    with no_room_told(out), _staging(out) as folder:
        staged = Path(folder) / "bundle"
        staged.mkdir()
        write_bundle(staged, loaded, traced, precision)
        replaced = Path(folder) / "replaced"
        if out.exists():
            out.rename(replaced)
        try:
            staged.rename(out)
        except OSError:
            if replaced.exists():
                replaced.rename(out)
            raise
        if keeps_plans:
            (replaced / PLANS_FOLDER).rename(out / PLANS_FOLDER)


@contextmanager
def _staging(out: Path) -> Iterator[str]:
    """A folder beside ``out``, on the same disk, that is gone afterwards."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        yield folder


def _replaceable(out: Path) -> bool:
    """Whether nothing is lost when ``out`` is replaced: it is absent, empty, or holds a bundle's files only."""
    if not out.exists():
        return True
    if not out.is_dir():
        return False
    found = {path.name for path in out.iterdir()}
    own = {
        MANIFEST_FILE,
        CONFIG_FILE,
        WEIGHTS_LOCATION,
        PLANS_FOLDER,
        *(f"{phase.value}.onnx" for phase in Phase),
        *(f"{phase.value}.masked.onnx" for phase in MASKED_PHASES),
    }
    # Other software has manifests too; ours comes with weights.
    return not found or (found <= own and {MANIFEST_FILE, WEIGHTS_LOCATION} <= found)


def _masked(traced: Mapping[Phase, Path]) -> dict[Phase, Path]:
    """The masked forms, which lie beside the traced graphs; none where there are none of those."""
    return {phase: masked_graph(traced[phase]) for phase in MASKED_PHASES if phase in traced}


def write_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    traced: Mapping[Phase, Path],
    precision: str,
    *,
    measure: bool = True,
) -> None:
    """Writes the files of a bundle into an empty folder.

    Args:
        folder: exists and is empty.
        checkpoint: whose weights are bound.
        traced: the traced graph of each phase for ONNX Runtime, its masked form beside it; empty for torch, which
            takes float32 weights only.
        precision: "exact" or "fast".
        measure: whether ``fast`` is compared with ``exact``, which takes seconds.
    """
    sources = [*traced.values(), *_masked(traced).values()]
    graphs = {path.name: path.read_bytes() for path in sources}
    types: dict[str, Any] = {}
    if precision == "fast" and traced:
        rewritten = {path.name: _fast_graph(checkpoint, path) for path in sources}
        graphs = {name: graph for name, (graph, _) in rewritten.items()}
        types = {name: dtype for _, found in rewritten.values() for name, dtype in found.items()}
    weights = bind_weights(checkpoint.spec, checkpoint.tensors)
    save_file(
        {name: weight.astype(types.get(name, np.float32)) for name, weight in weights.items()},
        folder / WEIGHTS_LOCATION,
    )
    # safetensors writes for the owner alone; a server may run as someone else.
    (folder / WEIGHTS_LOCATION).chmod((folder / WEIGHTS_LOCATION).stat().st_mode | 0o044)
    for name, graph in graphs.items():
        (folder / name).write_bytes(graph)
    (folder / CONFIG_FILE).write_text(json.dumps(checkpoint.config, indent=2) + "\n", encoding="utf-8")

    def entry(name: str) -> dict[str, Any]:
        return {"file": name, "sha256": file_sha256(folder / name)}

    manifest = {
        "format": FORMAT,
        "autogaze_triton": version("autogaze-triton"),
        "engine": "onnxruntime" if traced else "torch",
        "precision": precision,
        "checkpoint": {
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "commit": checkpoint.commit,
            "sha256": checkpoint.sha256,
            "stored_dtype": checkpoint.stored_dtype,
        },
        "architecture": checkpoint.spec.graph_name,
        "spec": checkpoint.spec.to_dict(),
        "preprocessing": asdict(PreprocessingConfig.from_processor(checkpoint.preprocessor)),
        "graphs": {phase.value: entry(path.name) for phase, path in traced.items()},
        "masked_graphs": {phase.value: entry(path.name) for phase, path in _masked(traced).items()},
        "weights": entry(WEIGHTS_LOCATION),
    }
    if precision == "fast" and traced:
        manifest["traced"] = {phase.value: file_sha256(path) for phase, path in traced.items()}
        manifest["agreement"] = None
    manifest_file = folder / MANIFEST_FILE
    manifest_file.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if precision == "fast" and traced and measure:
        manifest["agreement"] = asdict(_measure(Bundle.load(folder), checkpoint, traced))
        manifest_file.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _fast_graph(checkpoint: Checkpoint, traced: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        from autogaze_export.rewriting.variants import fast_for_onnxruntime, weight_types
    except ImportError as error:
        raise MissingExtraError.for_extra("precision 'fast'", "fast", error) from error
    model = fast_for_onnxruntime(checkpoint.spec, traced)
    return model.SerializeToString(deterministic=True), weight_types(model)


def _measure(fast: Bundle, checkpoint: Checkpoint, traced: Mapping[Phase, Path]) -> Agreement:
    try:
        from autogaze_export.agreement import measure_agreement, sample_clips
    except ImportError as error:
        raise MissingExtraError.for_extra("precision 'fast'", "fast", error) from error
    with tempfile.TemporaryDirectory(dir=fast.path.parent) as folder:
        write_bundle(Path(folder), checkpoint, traced, "exact")
        return measure_agreement(Bundle.load(folder), fast, sample_clips(fast))
