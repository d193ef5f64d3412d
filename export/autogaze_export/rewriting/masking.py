"""Key lengths of ``Attention`` as an explicit mask, computed in the graph.

TensorRT's ONNX parser (TensorRT-RTX 1.7.1) accepts per-row key lengths without any layer reading them, and takes
``is_causal`` for the upper-left triangle, where ONNX means the lower-right one. A mask leaves nothing to interpret.
ONNX Runtime's CUDA provider (1.27) refuses key lengths with ``is_causal`` where there are fewer queries than keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autogaze_export.rewriting.editing import NodeBuilder, attributes, rewrite

# Position of the lengths among Attention's inputs, and of the mask.
_LENGTHS = 6
_MASK = 3


def masked(model: Any, head_dim: int) -> Any:
    """A traced graph with a boolean mask ``[B, 1, S, L]`` in place of key lengths and ``is_causal``.

    Args:
        model: as traced.
        head_dim: width of an attention head; queries are scaled by its root here, and not in ``Attention``.
    """
    masks: dict[tuple[str, bool], str] = {}

    def rule(node: Any, build: NodeBuilder) -> bool:
        if node.op_type != "Attention" or len(node.input) <= _LENGTHS:
            return False
        settings = attributes(node)
        lengths, causal = node.input[_LENGTHS], bool(settings["is_causal"])
        query, key, value = node.input[:_MASK]
        scale = build.constant(np.float32(head_dim**-0.5))
        if (lengths, causal) not in masks:
            masks[lengths, causal] = _mask(build, lengths, query, key, causal)
        # Runtimes may spread the scale over queries and keys, and the keys are the whole cache.
        query = build("Mul", query, scale)
        settings |= {"is_causal": 0, "scale": 1.0}
        build("Attention", query, key, value, masks[lengths, causal], output=node.output[0], **settings)
        return True

    return rewrite(model, "mask", rule)


def _mask(build: NodeBuilder, lengths: str, query: str, key: str, causal: bool) -> str:
    """Query i of S sees the keys below ``length - S + i + 1`` when causal, else those below ``length``."""
    axis = build.integers(2)
    visible = build("Unsqueeze", lengths, build.integers(1))
    if causal:
        count = build("Shape", query, start=2, end=3)
        steps = build("Sub", _range(build, count), count)
        visible = build("Add", visible, build("Add", steps, build.integers(1)))
    visible = build("Unsqueeze", visible, axis)
    positions = _range(build, build("Shape", key, start=2, end=3))
    return build("Unsqueeze", build("Less", positions, visible), build.integers(1))


def _range(build: NodeBuilder, count: str) -> str:
    zero, one = build.constant(np.int64(0)), build.constant(np.int64(1))
    return build("Range", zero, build("Squeeze", count), one)
