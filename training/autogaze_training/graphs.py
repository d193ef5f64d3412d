"""Replays a function of fixed shapes as a CUDA graph: hundreds of tiny kernels for one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


class Graphed:
    """``function(tensor, static)`` captured once a shape and static argument; on a CPU, called as it is."""

    def __init__(self, function: Callable[[Tensor, int], Tensors]) -> None:
        self._function = function
        self._captured: dict[tuple[torch.Size, int], tuple[torch.cuda.CUDAGraph, Tensor, Tensors]] = {}

    def __call__(self, tensor: Tensor, static: int) -> Tensors:
        """Returns fresh tensors."""
        if tensor.device.type != "cuda":
            return self._function(tensor, static)
        key = (tensor.shape, static)
        if key not in self._captured:
            self._captured[key] = self._capture(tensor, static)
        graph, entry, results = self._captured[key]
        entry.copy_(tensor)
        graph.replay()
        return tuple(result.clone() for result in results)

    def _capture(self, tensor: Tensor, static: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensors]:
        entry = tensor.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._function(entry, 2)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self._function(entry, static)
        return graph, entry, results
