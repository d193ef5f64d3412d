"""The ONNX Runtime engine: IO binding, with cache buffers shared between a graph's input and output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from autogaze_client._errors import InvalidInputError
from numpy.typing import NDArray
from safetensors.numpy import load_file

from autogaze_backend.bundle import Bundle
from autogaze_backend.engine import Floats, GroupResult, Integers, Limits
from autogaze_backend.graphs import Phase, cache_names
from autogaze_backend.rotary import rotary_cos_sin
from autogaze_backend.spec import ModelSpec

Array = NDArray[Any]

# Attention costs the whole buffer whatever the length, so the buffer follows the length closely; it
# grows by at least an eighth, so that copying stays a small share.
_BLOCK = 128
_GROWTH = 8

# What the host reads of a call, in the order of binding.
_RECORD = ("ids", "count", "finished", "confidences", "losses", "logits", "new_chosen")


class OnnxRuntimeCache:
    """Keys and values as ``[B, heads, capacity, head_dim]`` arrays, two a layer, keys first."""

    def __init__(self, spec: ModelSpec, rows: int) -> None:
        self._shape = (rows, spec.num_heads, 0, spec.head_dim)
        self.arrays: list[Floats] = [np.zeros(self._shape, np.float32) for _ in range(2 * spec.num_layers)]
        self.values: list[Any] = []
        self.chosen = np.zeros((rows, spec.vocab_size), np.bool_)

    @property
    def rows(self) -> int:
        """Rows that it holds."""
        return self._shape[0]

    @property
    def capacity(self) -> int:
        """Positions that it holds a row."""
        return self.arrays[0].shape[2]

    def reserve(self, positions: int) -> None:
        """Grows the buffers to hold ``positions``; what they hold is kept."""
        if positions <= self.capacity:
            return
        wanted = max(positions, self.capacity + self.capacity // _GROWTH)
        capacity = -(-wanted // _BLOCK) * _BLOCK
        rows, heads, old, width = self.arrays[0].shape
        for index, array in enumerate(self.arrays):
            grown = np.empty((rows, heads, capacity, width), np.float32)
            grown[:, :, :old] = array
            grown[:, :, old:] = 0.0  # what lies beyond a row's length is masked, but must be finite
            self.arrays[index] = grown
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self.arrays]


class OnnxRuntimeEngine:
    """Runs a bundle's graphs with ONNX Runtime on the CPU."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        """Opens the graphs.

        Args:
            bundle: one that was built for "onnxruntime".
            threads: threads an operator may use; None lets ONNX Runtime take the physical cores.

        Raises:
            InvalidInputError: the bundle is for another engine.
        """
        if bundle.engine != "onnxruntime":
            raise InvalidInputError(
                f"{bundle.path} was built for engine {bundle.engine!r}, not 'onnxruntime'"
            )
        self._spec = bundle.spec
        # ONNX Runtime refers to these arrays: they must live as long as the sessions.
        self._weights = load_file(bundle.weights)
        self._sessions = {phase: self._open(bundle, phase, threads) for phase in Phase}
        self._caches = cache_names(bundle.spec)

    @property
    def spec(self) -> ModelSpec:
        """The architecture it runs."""
        return self._spec

    @property
    def preferred_rows(self) -> int:
        """One: on a CPU, rows batched cost what they cost apart, and finished rows cost nothing apart."""
        return 1

    def _open(self, bundle: Bundle, phase: Phase, threads: int | None) -> Any:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        prefix = "encoder." if phase is Phase.ENCODER else "decoder."
        names = [name for name in self._weights if name.startswith(prefix)]
        values = [ort.OrtValue.ortvalue_from_numpy(self._weights[name]) for name in names]
        options.add_external_initializers(names, values)
        graph = bundle.graphs[phase].read_bytes()
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def encode(self, frames: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        """See ``Engine.encode``."""
        spec = self._spec
        if state is None:
            grid = spec.vision_grid
            shape = (len(frames), spec.encoder_depth, spec.temporal_kernel - 1, spec.hidden_size, grid, grid)
            state = np.zeros(shape, np.float32)
        tokens, new_state = self._sessions[Phase.ENCODER].run(None, {"frames": frames, "state": state})
        return tokens, new_state

    def new_cache(self, rows: int) -> OnnxRuntimeCache:
        """See ``Engine.new_cache``."""
        return OnnxRuntimeCache(self._spec, rows)

    def prefill(
        self,
        cache: OnnxRuntimeCache,
        vision: Floats,
        pending: Integers,
        pending_count: Integers,
        positions: Integers,
        lengths: Integers,
        limits: Limits,
    ) -> GroupResult:
        """See ``Engine.prefill``."""
        leftover, tokens = pending.shape[1], pending.shape[1] + vision.shape[1]
        # Real leftovers, then vision, then padding: padding must lie beyond the row's length.
        slot = np.arange(tokens)
        padding = (slot < leftover) & (slot >= pending_count[:, None])
        order = np.argsort(padding, axis=1, kind="stable")
        cos, sin = rotary_cos_sin(self._spec, positions[:, None] + slot)
        feeds: dict[str, Array] = {
            "vision": vision,
            "pending": pending,
            "order": order,
            "last": pending_count + (vision.shape[1] - 1),
            "cos": cos,
            "sin": sin,
        }
        return self._run(Phase.PREFILL, cache, feeds, tokens, lengths, limits)

    def step(
        self, cache: OnnxRuntimeCache, group: Integers, positions: Integers, lengths: Integers, limits: Limits
    ) -> GroupResult:
        """See ``Engine.step``."""
        cos, sin = rotary_cos_sin(self._spec, positions)
        feeds: dict[str, Array] = {"group": group, "chosen": cache.chosen, "cos": cos, "sin": sin}
        return self._run(Phase.STEP, cache, feeds, group.shape[1], lengths, limits)

    def _run(
        self,
        phase: Phase,
        cache: OnnxRuntimeCache,
        feeds: dict[str, Array],
        tokens: int,
        lengths: Integers,
        limits: Limits,
    ) -> GroupResult:
        cache.reserve(int(lengths.max()) + tokens)
        binding = self._sessions[phase].io_binding()
        feeds |= {"write_index": lengths, "budget": limits.budget, "requirement": limits.requirement}
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in _RECORD:
            binding.bind_output(name, "cpu")
        for name, value in zip(self._caches, cache.values, strict=True):
            # The same buffer in and out: ONNX Runtime then writes the new positions in place.
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"new_{name}", value)
        self._sessions[phase].run_with_iobinding(binding)
        record = binding.get_outputs()[: len(_RECORD)]
        ids, count, finished, confidences, losses, logits, chosen = (value.numpy() for value in record)
        cache.chosen = chosen
        return GroupResult(ids, count, finished, confidences, losses, logits)
