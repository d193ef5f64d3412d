"""``fast`` in float32 arithmetic, each float16 value rounded on the spot: what a GPU's float16 would give.

ONNX Runtime on the CPU has no float16 kernels: it computes in float32 and drops a Cast to float16 that meets the one
it inserts, so it rounds less than a GPU does. Here every rounding is arithmetic, which no optimiser takes away;
products are summed in float32, as tensor cores do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from autogaze_export.rewriting.editing import NodeBuilder, attributes, rewrite, value_types

_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)

# Splits 24 bits of mantissa after the 11th (Veltkamp).
_SPLIT = np.float32(2**13 + 1)
_COMPUTING = {"Attention", "Conv", "MatMul"}


def emulated(model: Any) -> Any:
    """A ``halved`` graph with float32 in place of float16 and explicit rounding; weights must be rounded by the caller.

    Below 6e-5 float16 has fewer bits than this keeps.
    """
    types = value_types(model)

    def rounded(build: NodeBuilder, name: str, output: str) -> None:
        spread = build("Mul", name, build.constant(_SPLIT))
        build("Sub", spread, build("Sub", spread, name), output=output)

    def rule(node: Any, build: NodeBuilder) -> bool:
        if node.op_type == "Cast" and attributes(node)["to"] == _HALF:
            rounded(build, node.input[0], node.output[0])
        elif node.op_type == "Cast" and types.get(node.input[0]) == _HALF:
            build("Identity", node.input[0], output=node.output[0])
        elif node.op_type in _COMPUTING and types.get(node.output[0]) == _HALF:
            settings = attributes(node)
            settings.pop("softmax_precision", None)
            rounded(build, build(node.op_type, *node.input, **settings), node.output[0])
        else:
            return False
        return True

    result = rewrite(model, "emulated", rule)
    for item in (*result.graph.input, *result.graph.output):
        if item.type.tensor_type.elem_type == _HALF:
            item.type.tensor_type.elem_type = _FLOAT
    for tensor in result.graph.initializer:
        if tensor.data_type == _HALF:
            tensor.data_type = _FLOAT
    return result
