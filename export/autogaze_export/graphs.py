"""Where the traced graphs lie that this package ships, and their masked forms."""

from __future__ import annotations

from pathlib import Path

from autogaze_backend.graphs import Phase
from autogaze_backend.spec import ModelSpec

OPSET = 24
IR_VERSION = 11
SHIPPED = Path(__file__).with_name("shipped_graphs")


def traced_graph(spec: ModelSpec, phase: Phase, folder: str | Path = SHIPPED) -> Path:
    """Path of an architecture's graph in ``folder``; it does not exist where that architecture was not traced."""
    return Path(folder) / spec.graph_name / f"{phase.value}.onnx"


def masked_graph(traced: Path) -> Path:
    """Path of the form of a traced graph that ONNX Runtime runs on a GPU: it lies beside it."""
    return traced.with_suffix(".masked.onnx")
