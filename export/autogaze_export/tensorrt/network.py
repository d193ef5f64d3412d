"""Parses a graph into a network, and checks that the parser made of it what it says.

The parser drops what it does not know without a word (key lengths of ``Attention``, in 1.7.1), so nothing is taken
for granted: every input must be read by a layer, every attention must have its mask, and every value the type that
ONNX gives it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autogaze_backend.graphs import Phase, signature
from autogaze_backend.plans import Bucket, GraphVariant, PlanTensor
from autogaze_backend.spec import ModelSpec
from autogaze_client._errors import PlanBuildError
from onnx import TensorProto

from autogaze_export.rewriting.editing import value_types
from autogaze_export.tensorrt.library import TensorRTLibrary

# TensorRT's names of types, numpy's, and ONNX's.
_TYPES = {
    "FLOAT": ("float32", TensorProto.FLOAT),
    "HALF": ("float16", TensorProto.FLOAT16),
    "INT32": ("int32", TensorProto.INT32),
    "INT64": ("int64", TensorProto.INT64),
    "BOOL": ("bool", TensorProto.BOOL),
}


@dataclass(frozen=True)
class AttentionFound:
    """One attention of a network.

    Attributes:
        dtype: numpy's name of its queries' type.
        mask: shape of its mask.
        decomposable: whether it may be split where there is no fused kernel.
    """

    dtype: str
    mask: tuple[int, ...]
    decomposable: bool


@dataclass(frozen=True)
class NetworkReport:
    """What a parsed network holds.

    Attributes:
        layers: how many of each kind, by TensorRT's name.
        attentions: in order.
        products: matrix products and convolutions, by numpy's name of their inputs' type.
        checked_types: values whose type was compared with ONNX's.
        tensors: the bindings, as a plan's manifest has them.
    """

    layers: Mapping[str, int]
    attentions: tuple[AttentionFound, ...]
    products: Mapping[str, int]
    checked_types: int
    tensors: tuple[PlanTensor, ...]


def parse_network(
    library: TensorRTLibrary, model: Any, spec: ModelSpec, bucket: Bucket, variant: GraphVariant
) -> tuple[Any, Any, NetworkReport]:
    """Parses a graph with static shapes and weights inside.

    Returns:
        The network, the parser (which owns the weights: keep it until the plan is built), and the report.

    Raises:
        PlanBuildError: the parser refused the graph, or made something else of it.
    """
    network = library.network()
    parser = library.trt.OnnxParser(network, library.logger)
    library.messages.clear()
    if not parser.parse(model.SerializeToString()):
        found = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise PlanBuildError(
            f"{library.kind.value} {library.version} cannot parse the {bucket.phase.value} graph "
            f"(variant {variant.value}): {found or library.said()}; "
            + (
                "try --graph-variant plain"
                if variant is GraphVariant.OPSET24
                else "install another version of TensorRT"
            )
        )
    attentions = _attentions(library.trt, network)
    for attention in attentions:
        # There is no fused kernel of float32: without this the build fails.
        attention.decomposable = _type_name(attention.get_input(0)) == "float32"
    types = value_types(model)
    report = _report(network, spec, bucket.phase, attentions, types)
    faults = _faults(report, network, types, spec, bucket, variant)
    if faults:
        raise PlanBuildError(
            f"{library.kind.value} {library.version} parses the {bucket.phase.value} graph into something else than it "
            f"says: {'; '.join(faults)}; no plan was written. Try --graph-variant plain"
        )
    return network, parser, report


def mark_refittable(library: TensorRTLibrary, network: Any, names: Iterable[str]) -> None:
    """Marks the weights that a stripped plan leaves out and a refit gives back.

    Raises:
        PlanBuildError: the network does not know a weight by its name, so no refit could give it back.
    """
    for name in names:
        library.messages.clear()
        if not network.mark_weights_refittable(name):
            raise PlanBuildError(
                f"{library.kind.value} {library.version} does not know the weight {name}: {library.said()}; leave "
                "--strip-weights out"
            )


def _causal(attention: Any) -> bool:
    # The kind came with 10.16; before, there is only yes or no.
    kind = getattr(attention, "causal_kind", None)
    return bool(attention.causal) if kind is None else kind.name != "NONE"


def _report(
    network: Any, spec: ModelSpec, phase: Phase, attentions: list[Any], types: Mapping[str, int]
) -> NetworkReport:
    layers: Counter[str] = Counter()
    products: Counter[str] = Counter()
    aliases: dict[str, str] = {}
    for layer in _layers(network):
        kind = layer.type.name
        layers[kind] += 1
        if kind in ("MATRIX_MULTIPLY", "CONVOLUTION"):
            products[_type_name(layer.get_input(0))] += 1
        if kind == "KV_CACHE_UPDATE":
            aliases[layer.get_output(0).name] = layer.get_input(0).name
    found = tuple(
        AttentionFound(
            _type_name(item.get_input(0)),
            tuple(item.mask.shape) if item.mask is not None and not _causal(item) else (),
            bool(item.decomposable),
        )
        for item in attentions
    )
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    outputs = {network.get_output(i).name: network.get_output(i) for i in range(network.num_outputs)}
    names = signature(spec, phase)
    tensors = [
        PlanTensor(name, _type_name(inputs[name]), tuple(inputs[name].shape), True)
        for name in names.inputs
        if name in inputs
    ]
    tensors += [
        PlanTensor(name, _type_name(outputs[name]), tuple(outputs[name].shape), False, aliases.get(name))
        for name in names.outputs
        if name in outputs
    ]
    checked = sum(value.name in types for value in _values(network))
    return NetworkReport(dict(layers), found, dict(products), checked, tuple(tensors))


def _faults(
    report: NetworkReport,
    network: Any,
    types: Mapping[str, int],
    spec: ModelSpec,
    bucket: Bucket,
    variant: GraphVariant,
) -> list[str]:
    faults = []
    names = signature(spec, bucket.phase)
    missing = {*names.inputs, *names.outputs} - {tensor.name for tensor in report.tensors}
    faults += [f"{name} is gone" for name in sorted(missing)]
    read = {
        layer.get_input(i).name
        for layer in _layers(network)
        for i in range(layer.num_inputs)
        if layer.get_input(i) is not None
    }
    faults += [f"no layer reads {name}" for name in names.inputs if name not in read]
    faults += [
        f"{tensor.name} has the shape {list(tensor.shape)}, which is not static"
        for tensor in report.tensors
        if min(tensor.shape, default=1) < 0
    ]
    for value in _values(network):
        wanted = types.get(value.name)
        if wanted is not None and wanted != _TYPES.get(value.dtype.name, (None, None))[1]:
            faults.append(f"{value.name} became {value.dtype.name}, not {TensorProto.DataType.Name(wanted)}")
    if bucket.phase is Phase.ENCODER:
        return faults
    layers = spec.num_layers
    expected = (
        {"ATTENTION_INPUT": layers, "KV_CACHE_UPDATE": 2 * layers, "ROTARY_EMBEDDING": 2 * layers}
        if variant is GraphVariant.OPSET24
        else {"SOFTMAX": layers, "SCATTER": 2 * layers}
    )
    faults += [
        f"{report.layers.get(kind, 0)} layers {kind}, not {count}"
        for kind, count in expected.items()
        if report.layers.get(kind, 0) != count
    ]
    if variant is GraphVariant.OPSET24:
        faults += [
            f"attention {index} has no mask of the cache's {bucket.length} positions"
            for index, attention in enumerate(report.attentions)
            if attention.mask[-1:] != (bucket.length,) or attention.mask[:1] != (bucket.rows,)
        ]
        caches = [t for t in report.tensors if t.name.startswith(("new_key_", "new_value_"))]
        faults += [
            f"{tensor.name} is not written in place"
            for tensor in caches
            if tensor.alias != tensor.name.removeprefix("new_")
        ]
    return faults


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _values(network: Any) -> list[Any]:
    """The outputs of layers; those that stand for a value of the graph have its name."""
    return [layer.get_output(i) for layer in _layers(network) for i in range(layer.num_outputs)]


def _attentions(trt: Any, network: Any) -> list[Any]:
    found = []
    for layer in _layers(network):
        if layer.type.name == "ATTENTION_INPUT":
            # The binding gives a layer as its base class; this is TensorRT's own way to the derived one.
            layer.__class__ = trt.IAttentionInputLayer
            found.append(layer.attention)
    return found


def _type_name(tensor: Any) -> str:
    name = tensor.dtype.name
    return _TYPES[name][0] if name in _TYPES else str(name).lower()
