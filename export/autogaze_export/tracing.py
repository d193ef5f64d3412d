"""Traces the torch modules into ONNX graphs without weights. Needs the extra ``export``."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
import torch
from autogaze_backend.graphs import WEIGHTS_LOCATION, GraphSignature, Phase, signature
from autogaze_backend.spec import ModelSpec
from torch import Tensor, nn

from autogaze_export.binding import weight_shapes
from autogaze_export.graphs import IR_VERSION, OPSET
from autogaze_export.modeling import Encoder, Prefill, Step
from autogaze_export.torch_ops import translation_table

_MODULES: dict[Phase, type[nn.Module]] = {Phase.ENCODER: Encoder, Phase.PREFILL: Prefill, Phase.STEP: Step}


def build_module(spec: ModelSpec, phase: Phase, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The torch module of a phase; with ``weights`` (bundle names) loaded, else uninitialised."""
    module = _MODULES[phase](spec).eval()
    if weights is not None:
        module.load_state_dict({name: weights[name] for name in module.state_dict()}, strict=True)
    return module


def example_inputs(
    spec: ModelSpec,
    phase: Phase,
    *,
    rows: int = 2,
    capacity: int = 512,
    generator: torch.Generator | None = None,
) -> tuple[Any, ...]:
    """Random inputs of a phase that obey its rules (rows of different lengths, real padding)."""
    random = generator or torch.Generator().manual_seed(0)
    grid, width, size = spec.vision_grid, spec.hidden_size, spec.group_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    if phase is Phase.ENCODER:
        state = normal(rows, spec.encoder_depth, spec.temporal_kernel - 1, width, grid, grid)
        return normal(rows, 3, 3, spec.input_size, spec.input_size), state
    cache = (rows, spec.num_heads, capacity, spec.head_dim)
    keys = [normal(*cache) for _ in range(spec.num_layers)]
    values = [normal(*cache) for _ in range(spec.num_layers)]
    write_index = torch.randint(0, capacity - spec.vision_tokens - max(size, 3), (rows,), generator=random)
    budget = torch.randint(1, 2 * size + 1, (rows,), generator=random)
    requirement = torch.linspace(-1.0, 1.0, rows)
    leftover = max(size, 3)  # torch would take a length of 1 for a constant
    tokens = leftover + spec.vision_tokens if phase is Phase.PREFILL else size
    angles = normal(rows, tokens, spec.head_dim // 2)
    shared = (angles.cos(), angles.sin(), write_index, budget, requirement, keys, values)
    if phase is Phase.STEP:
        group = torch.randint(0, spec.tokens_per_frame, (rows, size), generator=random)
        chosen = torch.rand((rows, spec.vocab_size), generator=random) < 0.3
        return group, chosen, *shared
    pending = torch.randint(0, spec.tokens_per_frame, (rows, leftover), generator=random)
    real = torch.randint(0, leftover + 1, (rows,), generator=random)
    order = torch.stack([_order(int(count), leftover, spec.vision_tokens) for count in real])
    return normal(rows, spec.vision_tokens, width), pending, order, real + spec.vision_tokens - 1, *shared


def _order(real: int, pending: int, vision: int) -> Tensor:
    tokens = torch.arange(pending + vision)
    return torch.cat((tokens[:real], tokens[pending:], tokens[real:pending]))


def _dynamic_shapes(spec: ModelSpec, phase: Phase) -> tuple[Any, ...]:
    rows = torch.export.Dim("rows", min=1, max=4096)
    if phase is Phase.ENCODER:
        return {0: rows, 1: torch.export.Dim("frames", min=1, max=4096)}, {0: rows}
    cache = {0: rows, 2: torch.export.Dim("capacity", min=1, max=1 << 24)}
    caches = [cache] * spec.num_layers
    row = {0: rows}
    if phase is Phase.STEP:
        return row, row, row, row, row, row, row, caches, caches
    pending = torch.export.Dim("pending", min=0, max=4096)
    tokens = {0: rows, 1: pending + spec.vision_tokens}
    return row, {0: rows, 1: pending}, tokens, row, tokens, tokens, row, row, row, caches, caches


def trace(spec: ModelSpec, phase: Phase) -> onnx.ModelProto:
    """Traces a phase and takes the weights out, leaving their names, shapes and types.

    Raises:
        onnx.checker.ValidationError: the result is no valid model.
    """
    names = signature(spec, phase)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes on axis names and its own deprecations
        program = _export(spec, phase, names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        program.save(str(path))
        model = onnx.load(str(path))
    return strip(spec, model)


def _export(spec: ModelSpec, phase: Phase, names: GraphSignature) -> torch.onnx.ONNXProgram:
    return torch.onnx.export(
        build_module(spec, phase),
        example_inputs(spec, phase),
        dynamo=True,
        dynamic_shapes=_dynamic_shapes(spec, phase),
        input_names=list(names.inputs),
        output_names=list(names.outputs),
        custom_translation_table=translation_table(),
        opset_version=OPSET,
        optimize=True,
        verbose=False,
    )


def strip(spec: ModelSpec, model: onnx.ModelProto) -> onnx.ModelProto:
    """Replaces weights by external references and drops what differs from trace to trace."""
    shapes = weight_shapes(spec)
    for tensor in model.graph.initializer:
        if tensor.name not in shapes:
            continue
        for field in ("raw_data", "float_data"):
            tensor.ClearField(field)
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=WEIGHTS_LOCATION)
        tensor.data_location = onnx.TensorProto.EXTERNAL
    for holder in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del holder.metadata_props[:]
    used = {name for node in model.graph.node for name in node.input}
    used.update(output.name for output in model.graph.output)
    for node in model.graph.node:
        # A runtime computes every output that is named, so Attention's optional ones must go.
        while len(node.output) > 1 and node.output[-1] not in used:
            del node.output[-1]
    for item in (*model.graph.node, *model.graph.initializer):
        item.doc_string = ""
    del model.graph.value_info[:], model.functions[:]
    _rename_values(model.graph, shapes)
    model.producer_name, model.producer_version, model.doc_string = "autogaze-export", "", ""
    model.ir_version = IR_VERSION
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", OPSET)])
    return model


def _rename_values(graph: onnx.GraphProto, keep: Iterable[str]) -> None:
    """Numbers inner values and nodes in order: the exporter's own names depend on what it traced before."""
    fixed = {*keep, *(item.name for item in (*graph.input, *graph.output))}
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        if not name or name in fixed:
            return name
        return names.setdefault(name, f"inner_{len(names)}")

    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    # Copies: taking a message out of its graph frees what it holds.
    tensors = {
        tensor.name: onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer
    }
    del graph.initializer[:]
    graph.initializer.extend(tensors[name] for name in sorted(tensors))
    symbols = {dim.dim_param for item in graph.input for dim in item.type.tensor_type.shape.dim}
    for item in graph.output:
        for axis, dim in enumerate(item.type.tensor_type.shape.dim):
            # Symbols that the inputs do not have are the exporter's, numbered as it went.
            if dim.dim_param and dim.dim_param not in symbols:
                dim.dim_param = f"{item.name}_{axis}"
