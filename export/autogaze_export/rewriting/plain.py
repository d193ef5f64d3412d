"""Fused operators spelled out in opset 18, for TensorRT before 10.15 and whatever else does not know them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from autogaze_export.rewriting.editing import NodeBuilder, attributes, rewrite

# The oldest opset that has everything used here (Split's num_outputs, axes of reductions as inputs).
OPSET = 18
IR_VERSION = 8


def plain(model: Any) -> Any:
    """A masked graph without TensorScatter, RotaryEmbedding, RMSNormalization and Attention.

    The cache is written by ScatterND, so its output is another buffer than its input: whoever runs the graph
    swaps the two after each call.

    Args:
        model: what ``masked`` gave.
    """

    def rule(node: Any, build: NodeBuilder) -> bool:
        if node.op_type == "RMSNormalization":
            _norm(build, node)
        elif node.op_type == "RotaryEmbedding":
            _rotary(build, node)
        elif node.op_type == "TensorScatter":
            _scatter(build, node)
        elif node.op_type == "Attention":
            _attention(build, node)
        else:
            return False
        return True

    spelled = rewrite(model, "plain", rule)
    del spelled.opset_import[:]
    spelled.opset_import.extend([helper.make_opsetid("", OPSET)])
    spelled.ir_version = IR_VERSION
    return spelled


def _norm(build: NodeBuilder, node: Any) -> None:
    x, weight = node.input
    epsilon = build.constant(np.float32(attributes(node)["epsilon"]))
    mean = build("ReduceMean", build("Mul", x, x), build.integers(-1), keepdims=1)
    scale = build("Reciprocal", build("Sqrt", build("Add", mean, epsilon)))
    build("Mul", build("Mul", x, scale), weight, output=node.output[0])


def _rotary(build: NodeBuilder, node: Any) -> None:
    x, cos, sin = node.input
    axis = build.integers(1)
    cos, sin = build("Unsqueeze", cos, axis), build("Unsqueeze", sin, axis)
    zero, end, last = build.integers(0), build.integers(np.iinfo(np.int64).max), build.integers(3)
    half = build("Shape", cos, start=3, end=4)
    first = build("Slice", x, zero, half, last)
    second = build("Slice", x, half, end, last)
    left = build("Sub", build("Mul", first, cos), build("Mul", second, sin))
    right = build("Add", build("Mul", second, cos), build("Mul", first, sin))
    build("Concat", left, right, output=node.output[0], axis=-1)


def _scatter(build: NodeBuilder, node: Any) -> None:
    """Writes ``[B, H, S, D]`` into ``[B, H, L, D]`` at ``(b, h, index[b] + s)``."""
    cache, update, write_index = node.input
    shape = build("Shape", update, start=0, end=3)
    zero, one = build.constant(np.int64(0)), build.constant(np.int64(1))

    def coordinate(axis: int) -> str:
        count = build("Squeeze", build("Shape", update, start=axis, end=axis + 1))
        steps = build("Range", zero, count, one)
        return build("Reshape", steps, build.integers(*(-1 if a == axis else 1 for a in range(3))))

    starts = build("Reshape", write_index, build.integers(-1, 1, 1))
    places = (coordinate(0), coordinate(1), build("Add", starts, coordinate(2)))
    last = build.integers(-1)
    columns = [build("Unsqueeze", build("Expand", place, shape), last) for place in places]
    indices = build("Concat", *columns, axis=-1)
    build("ScatterND", cache, indices, update, output=node.output[0])


def _attention(build: NodeBuilder, node: Any) -> None:
    query, key, value, mask = node.input
    scores = build("MatMul", query, build("Transpose", key, perm=[0, 1, 3, 2]))
    hidden = build("Where", mask, scores, build.constant(np.float32(-np.inf)))
    build("MatMul", build("Softmax", hidden, axis=-1), value, output=node.output[0])
