"""Checks a traced graph: the format's own checker, and the same numbers as torch on random inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from autogaze_backend.graphs import Phase, signature
from autogaze_backend.spec import ModelSpec
from autogaze_client._errors import CheckpointError
from numpy.typing import NDArray

from autogaze_export.binding import weight_shapes
from autogaze_export.tracing import build_module, example_inputs

Array = NDArray[Any]

# Float32 sums in another order; the activations are of the order of 10.
_TOLERANCE = 2e-4


@dataclass(frozen=True)
class GraphReport:
    """What a check found.

    Attributes:
        phase: of the graph.
        max_difference: largest difference from torch over all float outputs of all trials.
        trials: random inputs compared.
    """

    phase: Phase
    max_difference: float
    trials: int


def random_weights(spec: ModelSpec, seed: int = 0) -> dict[str, Array]:
    """Weights of unit gain, by the graphs' names, so that activations neither vanish nor explode."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(spec).items():
        # Matrices are stored [in, out]; convolutions [out, in, …].
        fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        scale = 0.5 if len(shape) == 1 or name.endswith(("embed", "position")) else fan_in**-0.5
        weights[name] = (random.standard_normal(shape) * scale + ("norm" in name)).astype(np.float32)
    return weights


def check_graph(spec: ModelSpec, phase: Phase, path: Path, *, trials: int = 3) -> GraphReport:
    """Runs the graph in ONNX Runtime beside the torch module.

    Args:
        spec: the architecture.
        phase: of the graph.
        path: the graph, without weights.
        trials: random inputs, of growing numbers of rows.

    Raises:
        onnx.checker.ValidationError: the graph is no valid model.
        CheckpointError: its names or numbers differ from the module's.
    """
    names = signature(spec, phase)
    weights = random_weights(spec)
    onnx.checker.check_model(with_weights(path, weights), full_check=True)
    session = open_graph(path, weights)
    for kind, items, wanted in (
        ("inputs", session.get_inputs(), names.inputs),
        ("outputs", session.get_outputs(), names.outputs),
    ):
        if tuple(item.name for item in items) != wanted:
            raise CheckpointError(
                f"{path}: {kind} are {[item.name for item in items]}; expected {list(wanted)}"
            )
    module = build_module(spec, phase, {name: torch.from_numpy(weight) for name, weight in weights.items()})
    worst = 0.0
    for trial in range(trials):
        inputs = example_inputs(spec, phase, rows=trial + 1, generator=torch.Generator().manual_seed(trial))
        with torch.inference_mode():
            expected_outputs = module(*inputs)
        feeds = dict(zip(names.inputs, _flatten(inputs), strict=True))
        found = dict(zip(names.outputs, session.run(None, feeds), strict=True))
        expected = {
            name: tensor.numpy() for name, tensor in zip(names.outputs, expected_outputs, strict=True)
        }
        tied = np.zeros(trial + 1, bool)
        if "ids" in expected and found["ids"].shape == expected["ids"].shape:
            tied = tied_rows(found["ids"], expected["ids"], expected["logits"])
        for name in names.outputs:
            # What was chosen from equals, and what follows from it.
            rows = ~tied if name in ("ids", "confidences", "new_chosen") else slice(None)
            worst = max(worst, _difference(path, name, found[name][rows], expected[name][rows]))
    return GraphReport(phase, worst, trials)


def tied_rows(found: Array, expected: Array, logits: Array) -> NDArray[np.bool_]:
    """Rows whose first other choice is one between equals: sums in another order may take either.

    Args:
        found: ids ``[B, K]``.
        expected: likewise.
        logits: ``[B, K, V]``, of the expected choice.
    """
    tied = np.zeros(len(found), bool)
    scores = logits.reshape(*expected.shape, -1)
    for row, slots in enumerate(found != expected):
        if slots.any():
            slot = int(slots.argmax())
            ids = [int(found[row, slot]), int(expected[row, slot])]
            # An id of padding has no logit.
            if max(ids) < scores.shape[2]:
                ours, theirs = scores[row, slot, ids]
                tied[row] = abs(float(ours) - float(theirs)) <= _TOLERANCE
    return tied


def with_weights(path: Path, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """The graph with its weights inside, as the format's checker wants it."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    return model


def open_graph(path: Path, weights: Mapping[str, Array]) -> Any:
    """An ONNX Runtime session of a graph without weights, with ``weights`` supplied by name."""
    needed = [
        tensor.name
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns at every cache that is not bound in place
    options.add_external_initializers(
        needed, [ort.OrtValue.ortvalue_from_numpy(weights[name]) for name in needed]
    )
    return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _difference(path: Path, name: str, found: Array, expected: Array) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise CheckpointError(
            f"{path}: {name} is {found.dtype} {found.shape}; torch gives {expected.dtype} {expected.shape}"
        )
    if found.dtype.kind != "f":
        if not np.array_equal(found, expected):
            raise CheckpointError(
                f"{path}: {name} differs from torch's at {int((found != expected).sum())} places"
            )
        return 0.0
    difference = float(np.abs(found - expected).max(initial=0.0))
    if not difference <= _TOLERANCE:
        raise CheckpointError(
            f"{path}: {name} differs from torch's by {difference:.3g}; at most {_TOLERANCE} is allowed"
        )
    return difference


def _flatten(inputs: tuple[Any, ...]) -> list[Array]:
    flat = []
    for item in inputs:
        flat.extend([tensor.numpy() for tensor in item] if isinstance(item, list) else [item.numpy()])
    return flat
