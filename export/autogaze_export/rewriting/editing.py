"""Replaces nodes of an ONNX graph, in order, by others with fresh names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Node = Any


class NodeBuilder:
    """The nodes of the new graph so far; a call appends one."""

    def __init__(self, graph: Any, prefix: str) -> None:
        self.nodes: list[Node] = []
        self._graph = graph
        self._prefix = prefix
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def __call__(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Appends a node of one output and gives the output's name."""
        name = output or self._fresh()
        self.nodes.append(
            helper.make_node(op, list(inputs), [name], f"{op}_{self._prefix}_{self._count}", **attributes)
        )
        self._count += 1
        return name

    def keep(self, node: Node) -> None:
        """Appends a node as it is."""
        self.nodes.append(node)

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Name of an initialiser with this value."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = name = self._fresh()
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """Name of an int64 vector."""
        return self.constant(np.array(values, np.int64))

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._prefix}_{self._count}"


def rewrite(model: Any, prefix: str, rule: Callable[[Node, NodeBuilder], bool]) -> Any:
    """A copy of ``model`` in which each node is what ``rule`` made of it.

    Args:
        model: an ONNX model, its weights possibly external.
        prefix: of new names; one that the graph does not use yet.
        rule: appends to the builder what stands for the node, under the node's own output name, and
            returns True; or returns False, and the node stays.
    """
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    builder = NodeBuilder(copy.graph, prefix)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in copy.graph.node]
    for node in nodes:
        if not rule(node, builder):
            builder.keep(node)
    del copy.graph.node[:]
    copy.graph.node.extend(builder.nodes)
    _drop_unused(copy.graph)
    return copy


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _drop_unused(graph: Any) -> None:
    """Removes nodes and initialisers that no output needs."""
    needed = {item.name for item in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [
        onnx.TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in needed
    ]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def value_types(model: Any) -> dict[str, int]:
    """Element type of every value, by ONNX's own inference."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {item.name: item.type.tensor_type.elem_type for item in (*inferred.input, *inferred.output)}
    types |= {item.name: item.type.tensor_type.elem_type for item in inferred.value_info}
    return types | {item.name: item.data_type for item in inferred.initializer}
