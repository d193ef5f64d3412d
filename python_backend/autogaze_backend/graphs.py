"""The three graphs of a bundle and the names of their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from autogaze_backend.spec import ModelSpec

# Weights are external to every graph; the engine supplies them by name, so this file is never opened as such.
WEIGHTS_LOCATION = "weights.safetensors"


class Phase(str, Enum):
    """A graph of the bundle; the value is the file's stem."""

    ENCODER = "encoder"
    PREFILL = "prefill"
    STEP = "step"


# The graphs with attention, which come in a second form for GPUs: a mask in place of key lengths and causality.
MASKED_PHASES = (Phase.PREFILL, Phase.STEP)


@dataclass(frozen=True)
class GraphSignature:
    """Input and output names of a graph, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cache_names(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the cache inputs, keys of every layer first; ``new_`` before each names the output."""
    return tuple(f"{kind}_{layer}" for kind in ("key", "value") for layer in range(spec.num_layers))


def signature(spec: ModelSpec, phase: Phase) -> GraphSignature:
    """The names of a phase's tensors; ``autogaze_export.modeling`` gives their shapes and meanings."""
    if phase is Phase.ENCODER:
        return GraphSignature(("frames", "state"), ("tokens", "new_state"))
    shared = ("cos", "sin", "write_index", "budget", "requirement", *cache_names(spec))
    own = ("vision", "pending", "order", "last") if phase is Phase.PREFILL else ("group", "chosen")
    selected = ("ids", "count", "finished", "confidences", "losses", "new_chosen", "logits")
    return GraphSignature((*own, *shared), (*selected, *(f"new_{name}" for name in cache_names(spec))))
