"""Export = trace + strip + check, for every phase of an architecture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autogaze_backend.graphs import Phase
from autogaze_backend.spec import ModelSpec
from autogaze_client._errors import MissingExtraError

from autogaze_export.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from autogaze_export.validation import GraphReport


def export(source: str | Path, out_dir: str | Path) -> Iterator[tuple[Path, GraphReport]]:
    """Traces and checks the graphs of a checkpoint's architecture.

    Args:
        source: a checkpoint (folder or hub id), or the path of a ``config.json`` alone.
        out_dir: graphs go to ``out_dir/<architecture>/<phase>.onnx``, without weights.

    Yields:
        Each graph's path and its check, in the order encoder, prefill, step.

    Raises:
        MissingExtraError: torch, onnx or onnxscript is not installed.
        CheckpointError: the config is not supported, or a graph does not compute what torch does.
    """
    try:
        from autogaze_export.tracing import trace
        from autogaze_export.validation import check_graph
    except ImportError as error:
        raise MissingExtraError.for_extra("`autogaze export`", "export", error) from error
    path = Path(source)
    if path.is_file():
        spec = ModelSpec.from_config(json.loads(path.read_text(encoding="utf-8")))
    else:
        spec = load_checkpoint(source).spec
    folder = Path(out_dir) / spec.graph_name
    folder.mkdir(parents=True, exist_ok=True)
    for phase in Phase:
        graph = folder / f"{phase.value}.onnx"
        graph.write_bytes(trace(spec, phase).SerializeToString(deterministic=True))
        yield graph, check_graph(spec, phase, graph)
