"""The precision ``fast``: matrix products, convolutions, attention and the cache in float16, all else in float32.

Every change of type is a Cast in the graph, so that a strongly typed builder has no choice to make.
"""

from __future__ import annotations

from typing import Any

from autogaze_backend.graphs import cache_names
from autogaze_backend.spec import ModelSpec
from onnx import TensorProto, helper

from autogaze_export.rewriting.editing import NodeBuilder, rewrite, value_types

_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)

# What moves values and does not compute keeps the type it is given.
_MOVING = {"Concat", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def kept_in_float32(spec: ModelSpec) -> frozenset[str]:
    """The matrices that stay float32, where rounding hurts most and costs least to avoid.

    The heads; what one token a row goes through in the last layer; the encoder's first and last products, so that
    pixels and vision tokens are not rounded. Together they are 4 % of a clip's products.
    """
    last = f"decoder.layers.{spec.num_layers - 1}."
    return frozenset(
        {
            "decoder.lm_head",
            "decoder.task_loss_head",
            *(f"{last}{name}" for name in ("out", "gate_up", "down")),
            "encoder.patch.weight",
            "encoder.proj.weight",
        }
    )


def halved(
    model: Any, spec: ModelSpec, *, keep: frozenset[str] | None = None, name_softmax: bool = True
) -> Any:
    """``model`` with the types of ``fast``; its weights, where external, change only their declared type.

    Args:
        model: traced, masked or plain.
        spec: the architecture.
        keep: matrices that stay float32; None for ``kept_in_float32``.
        name_softmax: whether ``Attention`` says that its softmax is float32. TensorRT's parser refuses the
            attribute; its fused kernels decide for themselves.
    """
    float_weights = kept_in_float32(spec) if keep is None else keep
    types = value_types(model)
    caches = {*cache_names(spec), *(f"new_{name}" for name in cache_names(spec))}
    for item in (*model.graph.input, *model.graph.output):
        if item.name in caches:
            types[item.name] = _HALF
    outputs = {item.name: types[item.name] for item in model.graph.output}
    half_weights: set[str] = set()
    casts: dict[tuple[str, int], str] = {}

    def as_type(build: NodeBuilder, name: str, wanted: int) -> str:
        if types.get(name) not in (_FLOAT, _HALF) or types[name] == wanted:
            return name
        if (name, wanted) not in casts:
            casts[name, wanted] = build("Cast", name, to=wanted)
        return casts[name, wanted]

    def rule(node: Any, build: NodeBuilder) -> bool:
        kind = _kind(node, types, float_weights)
        if kind is None:
            return False
        for index, name in enumerate(node.input):
            if name and kind == _HALF and name in weights and types[name] == _FLOAT:
                half_weights.add(name)
                types[name] = _HALF
            elif name:
                node.input[index] = as_type(build, name, kind)
        for index, name in enumerate(node.output):
            if name in outputs and outputs[name] in (_FLOAT, _HALF) and outputs[name] != kind:
                node.output[index] = f"{name}_computed"
                types[node.output[index]] = kind
            elif types.get(name) in (_FLOAT, _HALF):
                types[name] = kind
        build.keep(node)
        for name in node.output:
            if name.endswith("_computed"):
                original = name.removesuffix("_computed")
                build("Cast", name, output=original, to=outputs[original])
                types[original] = outputs[original]
        return True

    weights = {
        item.name for item in model.graph.initializer if item.name.startswith(("encoder.", "decoder."))
    }
    result = rewrite(model, "half", rule)
    for item in (*result.graph.input, *result.graph.output):
        if item.name in caches:
            item.type.tensor_type.elem_type = _HALF
    for tensor in result.graph.initializer:
        if tensor.name in half_weights:
            tensor.data_type = _HALF
    for node in result.graph.node:
        if name_softmax and node.op_type == "Attention":
            node.attribute.append(_softmax_in_float32())
    return result


def _kind(node: Any, types: dict[str, int], float_weights: frozenset[str]) -> int | None:
    """The float type that a node computes in; None where it takes no floats."""
    floats = [name for name in node.input if types.get(name) in (_FLOAT, _HALF)]
    if not floats:
        return None
    if node.op_type in ("Attention", "TensorScatter", "ScatterND"):
        return _HALF
    if node.op_type in ("Conv", "MatMul"):
        return _FLOAT if float_weights.intersection(node.input) else _HALF
    if node.op_type in _MOVING and all(types[name] == _HALF for name in floats):
        return _HALF
    return _FLOAT


def _softmax_in_float32() -> Any:
    return helper.make_attribute("softmax_precision", int(_FLOAT))
