"""Writes a bundle: shipped graphs, bound weights, manifest. Needs neither torch nor onnx."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend.bundle import FORMAT, MANIFEST_FILE, file_sha256
from autogaze_backend.graphs import WEIGHTS_LOCATION, Phase
from autogaze_backend.preprocessing import PreprocessingConfig
from autogaze_client._errors import CheckpointError, InvalidInputError
from safetensors.numpy import save_file

from autogaze_export.binding import bind_weights
from autogaze_export.checkpoint import CONFIG_FILE, Checkpoint, load_checkpoint
from autogaze_export.graphs import SHIPPED, traced_graph

ENGINES = ("onnxruntime",)
PRECISIONS = ("exact",)


def build(
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    engine: str = "onnxruntime",
    precision: str = "exact",
    revision: str | None = None,
    sha256: str | None = None,
    graphs: str | Path | None = None,
) -> Path:
    """Writes the bundle of a checkpoint: graphs, weights, config and manifest, all that serving needs.

    The folder appears whole or not at all; a bundle that is already there is replaced.

    Args:
        checkpoint: a folder or a hub id such as ``nvidia/AutoGaze``.
        out_dir: the bundle's folder.
        engine: "onnxruntime".
        precision: "exact" (float32 arithmetic, tokens identical to the published model's).
        revision: of a hub id: branch, tag or commit. The manifest records the commit.
        sha256: what ``model.safetensors`` must have; None = anything.
        graphs: a folder that ``autogaze export`` wrote; None for the graphs shipped with this package.

    Returns:
        ``out_dir`` as an absolute path.

    Raises:
        NotFoundError: no such checkpoint.
        CheckpointError: the checkpoint is damaged, or its architecture's graphs are not shipped.
        InvalidInputError: an unknown engine or precision, or ``out_dir`` holds something else.
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
    loaded = load_checkpoint(checkpoint, revision=revision, sha256=sha256)
    traced = {phase: traced_graph(loaded.spec, phase, graphs or SHIPPED) for phase in Phase}
    if not all(path.is_file() for path in traced.values()):
        raise CheckpointError(
            f"the graphs of architecture {loaded.spec.graph_name} are not in {graphs or 'this package'}; trace "
            f"them with `autogaze export {checkpoint} DIR` (pip install 'autogaze-triton[export]') and pass graphs=DIR "
            "(`autogaze build --graphs DIR`)"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        staged = Path(folder) / "bundle"
        staged.mkdir()
        _write(staged, loaded, traced, engine, precision)
        replaced = Path(folder) / "replaced"
        if out.exists():
            out.rename(replaced)
        try:
            staged.rename(out)
        except OSError:
            if replaced.exists():
                replaced.rename(out)
            raise
    return out


def _replaceable(out: Path) -> bool:
    """Whether nothing is lost when ``out`` is replaced: it is absent, empty, or holds a bundle's files only."""
    if not out.exists():
        return True
    if not out.is_dir():
        return False
    found = {path.name for path in out.iterdir()}
    own = {MANIFEST_FILE, CONFIG_FILE, WEIGHTS_LOCATION, *(f"{phase.value}.onnx" for phase in Phase)}
    # Other software has manifests too; ours comes with weights.
    return not found or (found <= own and {MANIFEST_FILE, WEIGHTS_LOCATION} <= found)


def _write(
    folder: Path, checkpoint: Checkpoint, graphs: dict[Phase, Path], engine: str, precision: str
) -> None:
    weights = bind_weights(checkpoint.spec, checkpoint.tensors)
    save_file(
        {name: weight.astype(np.float32) for name, weight in weights.items()}, folder / WEIGHTS_LOCATION
    )
    # safetensors writes for the owner alone; a server may run as someone else.
    (folder / WEIGHTS_LOCATION).chmod((folder / WEIGHTS_LOCATION).stat().st_mode | 0o044)
    for path in graphs.values():
        shutil.copyfile(path, folder / path.name)
    (folder / CONFIG_FILE).write_text(json.dumps(checkpoint.config, indent=2) + "\n", encoding="utf-8")

    def entry(name: str) -> dict[str, Any]:
        return {"file": name, "sha256": file_sha256(folder / name)}

    manifest = {
        "format": FORMAT,
        "autogaze_triton": version("autogaze-triton"),
        "engine": engine,
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
        "graphs": {phase.value: entry(path.name) for phase, path in graphs.items()},
        "weights": entry(WEIGHTS_LOCATION),
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
