"""The graph of a phase in the form that an engine takes at a precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from autogaze_backend.plans import GraphVariant
from autogaze_backend.spec import ModelSpec
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from autogaze_export.rewriting.halving import halved
from autogaze_export.rewriting.masking import masked
from autogaze_export.rewriting.plain import plain

Array = NDArray[Any]

# What the names of weights begin with, and no constant's does.
WEIGHT_PREFIXES = ("encoder.", "decoder.")


def read_graph(path: Path) -> Any:
    """A traced graph, its weights left outside."""
    return onnx.load(str(path), load_external_data=False)


def fast_for_onnxruntime(spec: ModelSpec, traced: Path) -> Any:
    """A traced graph, or its masked form, at precision ``fast``; attention stays as it is there."""
    return halved(read_graph(traced), spec)


def for_builder(spec: ModelSpec, traced: Path, variant: GraphVariant, precision: str) -> Any:
    """The graph that TensorRT parses, weights still outside."""
    model = masked(read_graph(traced), spec.head_dim)
    if variant is GraphVariant.PLAIN:
        model = plain(model)
    return halved(model, spec, name_softmax=False) if precision == "fast" else model


def weight_types(model: Any) -> dict[str, np.dtype[Any]]:
    """The type of each weight that the graph takes from outside."""
    return {
        tensor.name: helper.tensor_dtype_to_np_dtype(tensor.data_type)
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def with_weights(model: Any, weights: Mapping[str, Array]) -> Any:
    """A copy with its weights inside, each converted to the type that the graph declares."""
    filled = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in filled.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].astype(dtype), tensor.name))
    return filled


def with_static_shapes(model: Any, sizes: Mapping[str, int]) -> Any:
    """A copy whose symbolic dimensions are numbers.

    Args:
        model: any variant.
        sizes: a number for each symbol of the graph's inputs and outputs.

    Raises:
        KeyError: a symbol has no number.
    """
    fixed = onnx.ModelProto.FromString(model.SerializeToString())
    for item in (*fixed.graph.input, *fixed.graph.output):
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    return fixed
