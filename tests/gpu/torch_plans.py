"""A stand-in for TensorRT on a real GPU: the executor's memory, streams and graphs are CUDA's, the kernels torch's.

What it leaves out is TensorRT alone. The plans are those of ``backend.tensorrt_doubles``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from autogaze_backend.bundle import Bundle
from autogaze_backend.graphs import Phase
from autogaze_export import modeling
from autogaze_export.tracing import build_module
from backend.tensorrt_doubles import NUMPY, DataType, FakeContext, FakeEngine, FakeTensorRt, TensorIOMode
from safetensors.numpy import load_file

_INTEGERS = {"pending", "order", "last", "group", "write_index", "budget", "ids", "count"}
_FLAGS = {"chosen", "new_chosen", "finished"}


def scatter_cache(cache: torch.Tensor, update: torch.Tensor, write_index: torch.Tensor) -> torch.Tensor:
    """The eager definition reads its indices on the host, which a capture does not allow."""
    rows, heads, steps, width = update.shape
    index = write_index[:, None] + torch.arange(steps, device=cache.device)
    return cache.scatter(2, index[:, None, :, None].expand(rows, heads, steps, width), update)


def cached_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor, causal: bool
) -> torch.Tensor:
    """The eager definition makes its positions on the host."""
    places = torch.arange(key.shape[2], device=query.device)
    steps = torch.arange(query.shape[2], device=query.device)
    visible = lengths[:, None] + (steps - query.shape[2] + 1 if causal else torch.zeros_like(steps))
    scores = (query @ key.transpose(2, 3)) * query.shape[3] ** -0.5
    mask = places < visible[:, :, None]
    return scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1) @ value


@dataclass
class TorchTensorRt(FakeTensorRt):
    """A module ``tensorrt`` that runs torch."""

    cuda: Any = field(default_factory=lambda: SimpleNamespace(capturing=None))

    def __post_init__(self) -> None:
        super().__post_init__()
        self._modules: dict[tuple[str, Phase], Any] = {}
        modeling.scatter_cache, modeling.cached_attention = scatter_cache, cached_attention
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False

    def module(self, bundle: str, phase: Phase) -> Any:
        key = (bundle, phase)
        if key not in self._modules:
            loaded = Bundle.load(bundle)
            weights = {name: torch.from_numpy(array) for name, array in load_file(loaded.weights).items()}
            self._modules[key] = build_module(loaded.spec, phase, weights).cuda()
            torch.cuda.synchronize()
        return self._modules[key]

    def data_type(self, engine: FakeEngine, name: str) -> DataType:
        if name in _INTEGERS:
            return DataType.INT64
        return DataType.BOOL if name in _FLAGS else DataType.FLOAT

    def new_context(self, engine: FakeEngine) -> FakeContext:
        # Before any capture: a graph's passing tensors are given back to torch, and must not be where weights lie.
        self.module(engine.bundle, engine.phase)
        return TorchContext(engine)


class TorchContext(FakeContext):
    """Queues torch's kernels into the executor's stream."""

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, (name, address)
        assert name not in self.addresses, f"{name} was bound twice"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt, engine = self.engine.trt, self.engine
        external = torch.cuda.ExternalStream(stream)
        with torch.inference_mode(), torch.device("cuda"), torch.cuda.stream(external):
            capturing = torch.cuda.is_current_stream_capturing()
            trt.events.append(("capture" if capturing else "enqueue", engine.name))
            self.enqueued += not capturing
            if capturing and not trt.capturable:
                return False
            inputs = {
                name: self._tensor(name)
                for name, (mode, _, _) in engine.tensors.items()
                if mode is TensorIOMode.INPUT
            }
            keys = [inputs.pop(name) for name in engine.caches if name.startswith("key")]
            values = [inputs.pop(name) for name in engine.caches if name.startswith("value")]
            caches = (keys, values) if engine.caches else ()
            results = trt.module(engine.bundle, engine.phase)(*inputs.values(), *caches)
            outputs = [name for name in engine.tensors if engine.tensors[name][0] is TensorIOMode.OUTPUT]
            for name, value in zip(outputs, results, strict=True):
                self._tensor(name).copy_(value)
        return True

    def _tensor(self, name: str) -> torch.Tensor:
        _, shape, dtype = self.engine.tensors[name]
        interface = {
            "shape": shape,
            "typestr": np.dtype(NUMPY[dtype]).str,
            "data": (self.addresses[name], False),
            "strides": None,
            "version": 3,
        }
        return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")
