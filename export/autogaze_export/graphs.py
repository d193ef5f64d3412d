"""Where the traced graphs lie that this package ships."""

from __future__ import annotations

from pathlib import Path

from autogaze_backend.graphs import Phase
from autogaze_backend.spec import ModelSpec

OPSET = 24
IR_VERSION = 11
SHIPPED = Path(__file__).with_name("shipped_graphs")


def shipped_graph(spec: ModelSpec, phase: Phase) -> Path:
    """Path of an architecture's graph; it does not exist where the architecture is not shipped."""
    return SHIPPED / spec.graph_name / f"{phase.value}.onnx"
