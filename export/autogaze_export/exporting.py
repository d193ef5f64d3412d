"""Export = trace + strip + check, for every phase of an architecture, and the same for the masked forms."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from autogaze_backend.graphs import MASKED_PHASES, Phase
from autogaze_backend.spec import ModelSpec
from autogaze_client._errors import CheckpointError, MissingExtraError

from autogaze_export.checkpoint import _read_json, load_checkpoint
from autogaze_export.graphs import masked_graph

if TYPE_CHECKING:
    from autogaze_export.validation import GraphReport


def export(source: str | Path, out_dir: str | Path) -> list[tuple[Path, GraphReport]]:
    """Traces, checks and writes the graphs of a checkpoint's architecture.

    Args:
        source: a checkpoint (folder or hub id), or the path of a ``config.json`` alone.
        out_dir: graphs go to ``out_dir/<architecture>/<phase>.onnx``, without weights, and the masked forms of
            prefill and step (for ONNX Runtime on a GPU) beside them, ``<phase>.masked.onnx``. A graph is written
            once it has passed its check, and never otherwise.

    Returns:
        Each graph's path and its check, in the order encoder, prefill, its masked form, step, its masked form.

    Raises:
        MissingExtraError: torch, onnx or onnxscript is not installed.
        NotFoundError: there is no such checkpoint.
        CheckpointError: the config is no JSON or not supported, or a graph is no valid ONNX model or does not
            compute what torch does.
    """
    try:
        import onnx

        from autogaze_export.rewriting.masking import masked
        from autogaze_export.tracing import trace
        from autogaze_export.validation import check_graph
    except ImportError as error:
        raise MissingExtraError.for_extra("`autogaze export`", "export", error) from error
    given = Path(source)
    spec = ModelSpec.from_config(_read_json(given)) if given.is_file() else load_checkpoint(source).spec
    folder = Path(out_dir) / spec.graph_name
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with TemporaryDirectory(prefix=".export-", dir=folder) as staging:
        for phase in Phase:
            staged = Path(staging) / f"{phase.value}.onnx"
            forms = {staged: trace(spec, phase)}
            if phase in MASKED_PHASES:
                forms[masked_graph(staged)] = masked(forms[staged], spec.head_dim)
            for path, model in forms.items():
                path.write_bytes(model.SerializeToString(deterministic=True))
                try:
                    report = check_graph(spec, phase, path)
                except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
                    raise CheckpointError(
                        f"the graph traced for {path.name} is no valid ONNX model ({error}); install the versions of "
                        "torch, onnx and onnxscript that the extra 'export' names"
                    ) from error
                written.append((path.replace(folder / path.name), report))
    return written
