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
# grows by at least a quarter, so that a clip rearranges its cache every few frames, not at every one.
_BLOCK = 128
_GROWTH = 4

# Buffers of finished clips that are kept: fresh memory costs more, in page faults, than it holds.
_SPARES = 2

# What the host reads of a call, in the order of binding.
_RECORD = ("ids", "count", "finished", "confidences", "losses", "logits", "new_chosen")


class OnnxRuntimeCache:
    """Keys and values as ``[B, heads, capacity, head_dim]`` arrays, two a layer, keys first.

    An array is the head of a flat buffer that may be larger: growing rearranges in place as long as it
    fits, so that memory is not touched anew for every frame.
    """

    def __init__(self, spec: ModelSpec, rows: int, buffers: list[Floats] | None = None) -> None:
        self._heads = rows * spec.num_heads
        self._shape = (rows, spec.num_heads, 0, spec.head_dim)
        self._flat = buffers or [np.zeros(0, np.float32) for _ in range(2 * spec.num_layers)]
        self.values: list[Any] = []
        self.chosen = np.zeros((rows, spec.vocab_size), np.bool_)

    @property
    def rows(self) -> int:
        """Rows that it holds."""
        return self._shape[0]

    @property
    def capacity(self) -> int:
        """Positions that it holds a row."""
        return self._shape[2]

    def take_buffers(self) -> list[Floats]:
        """Gives the buffers away; the cache cannot be used any more. What they hold is finite."""
        buffers, self._flat, self.values = self._flat, [], []
        return buffers

    @property
    def arrays(self) -> list[Floats]:
        """The keys and values, views of the buffers."""
        size = int(np.prod(self._shape))
        return [flat[:size].reshape(self._shape) for flat in self._flat]

    def reserve(self, positions: int) -> None:
        """Grows the arrays to hold ``positions``; what they hold is kept."""
        old = self.capacity
        if positions <= old:
            return
        wanted = max(positions, old + old // _GROWTH)
        capacity = -(-wanted // _BLOCK) * _BLOCK
        width = self._shape[3]
        size = self._heads * capacity * width
        for index, flat in enumerate(self._flat):
            if flat.size < size:
                # What lies beyond a row's length is masked, but must be finite: new memory is zeroed.
                grown = np.zeros(max(size, flat.size * 5 // 4), np.float32)
                grown[: flat.size] = flat
                self._flat[index] = flat = grown
            # Each head's block moves to a higher place: the last first, so that none is overwritten.
            blocks = flat[:size].reshape(self._heads, capacity * width)
            for head in range(self._heads - 1, 0, -1):
                blocks[head, : old * width] = flat[head * old * width : (head + 1) * old * width]
        self._shape = (*self._shape[:2], capacity, width)
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
        self._spares: list[list[Floats]] = []

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
        # Three sessions take turns, each with its own threads: those of a session that has just run must not
        # spin on while the next one works, and a thread that the system delays must not hold up the others.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.dynamic_block_base", "4")
        if threads is not None:
            options.intra_op_num_threads = threads
        prefix = "encoder." if phase is Phase.ENCODER else "decoder."
        names = [name for name in self._weights if name.startswith(prefix)]
        values = [ort.OrtValue.ortvalue_from_numpy(self._weights[name]) for name in names]
        options.add_external_initializers(names, values)
        graph = bundle.graphs[phase].read_bytes()
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    @property
    def encoder_state_shape(self) -> tuple[int, ...]:
        """See ``Engine.encoder_state_shape``."""
        spec = self._spec
        return (
            spec.encoder_depth,
            spec.temporal_kernel - 1,
            spec.hidden_size,
            spec.vision_grid,
            spec.vision_grid,
        )

    def encode(self, frames: Floats, state: Floats | None) -> tuple[Floats, Floats]:
        """See ``Engine.encode``."""
        if state is None:
            state = np.zeros((len(frames), *self.encoder_state_shape), np.float32)
        tokens, new_state = self._sessions[Phase.ENCODER].run(None, {"frames": frames, "state": state})
        return tokens, new_state

    def new_cache(self, rows: int) -> OnnxRuntimeCache:
        """See ``Engine.new_cache``."""
        return OnnxRuntimeCache(self._spec, rows, self._spares.pop() if self._spares else None)

    def release(self, cache: OnnxRuntimeCache) -> None:
        """See ``Engine.release``."""
        if len(self._spares) < _SPARES:
            self._spares.append(cache.take_buffers())

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

    def move(self, cache: OnnxRuntimeCache, row: int, source: Integers, destination: Integers) -> None:
        """See ``Engine.move``."""
        for array in cache.arrays:
            array[row][:, destination] = array[row][:, source]

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
