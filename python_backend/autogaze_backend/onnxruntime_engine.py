"""The ONNX Runtime engine: IO binding, with a cache that is a graph's input and output at once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from autogaze_client._errors import CheckpointError, InvalidInputError, ServerUnavailableError
from numpy.typing import NDArray
from safetensors.numpy import load_file

from autogaze_backend.bundle import Bundle
from autogaze_backend.engine import Floats, GroupResult, Integers, Limits
from autogaze_backend.graphs import Phase, cache_names
from autogaze_backend.onnxruntime_cache import DeviceCache, HostCache
from autogaze_backend.rotary import rotary_cos_sin
from autogaze_backend.spec import ModelSpec

Array = NDArray[Any]

# Buffers of finished clips that are kept: fresh memory costs more, in page faults, than it holds.
_SPARES = 2

_CUDA = "CUDAExecutionProvider"

# As the package requires, but onnxruntime-gpu in place of onnxruntime is nothing that pip checks. 1.27 computes the
# attention of these graphs wrongly on a CPU: it chooses other tokens, and says nothing.
_OLDEST = "1.30"

# What the host reads of a call, in the order of binding.
_RECORD = ("ids", "count", "finished", "confidences", "losses", "logits", "new_chosen")


class OnnxRuntimeEngine:
    """Runs a bundle's graphs with ONNX Runtime, on the CPU or on an NVIDIA GPU."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, gpu: int | None = None) -> None:
        """Opens the graphs.

        Args:
            bundle: one that was built for "onnxruntime"; on a GPU its masked graphs run.
            threads: threads an operator may use; None lets ONNX Runtime take the physical cores.
            gpu: the GPU's number; None runs on the CPU.

        Raises:
            InvalidInputError: the bundle is for another engine.
            CheckpointError: it has no masked graphs, or ONNX Runtime cannot load a graph.
            ServerUnavailableError: ONNX Runtime is too old, or cannot use the GPU.
        """
        if _release(ort.__version__) < _release(_OLDEST):
            raise ServerUnavailableError(
                f"ONNX Runtime {ort.__version__} is installed, and {_OLDEST} is the oldest that runs these graphs "
                f"(1.27 chooses other tokens on a CPU): pip install 'onnxruntime>={_OLDEST}', or "
                f"'onnxruntime-gpu>={_OLDEST}' in its place"
            )
        if bundle.engine != "onnxruntime":
            raise InvalidInputError(
                f"{bundle.path} was built for engine {bundle.engine!r}, not 'onnxruntime'"
            )
        self._spec = bundle.spec
        self._gpu = gpu
        # On the CPU the mask costs a tenth of a clip's time.
        graphs = bundle.graphs if gpu is None else bundle.gpu_graphs()
        if gpu is not None:
            if _CUDA not in ort.get_available_providers():
                raise self._no_gpu()
            # CUDA's libraries may be Python packages, which the system's loader does not find.
            ort.preload_dlls()
        # ONNX Runtime refers to these arrays: they must live as long as the sessions.
        self._weights = load_file(bundle.weights)
        self._sessions = {phase: self._open(bundle, graphs[phase], phase, threads) for phase in Phase}
        self._caches = cache_names(bundle.spec)
        types = {item.name: item.type for item in self._sessions[Phase.STEP].get_inputs()}
        self._cache_dtype = np.float16 if types[self._caches[0]] == "tensor(float16)" else np.float32
        self._slots: dict[int, HostCache | DeviceCache] = {}
        self._spares: list[Any] = []

    @property
    def spec(self) -> ModelSpec:
        """The architecture it runs."""
        return self._spec

    @property
    def version(self) -> str:
        """Of ONNX Runtime."""
        return str(ort.__version__)

    @property
    def preferred_rows(self) -> int:
        """One: rows run one after another."""
        return 1

    @property
    def max_slots(self) -> int | None:
        """None: a slot's memory is taken as it fills."""
        return None

    def _open(self, bundle: Bundle, graph: Path, phase: Phase, threads: int | None) -> Any:
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
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._gpu is not None:
            # Float32 stays float32.
            providers.insert(0, (_CUDA, {"device_id": self._gpu, "use_tf32": "0"}))
        try:
            session = ort.InferenceSession(graph.read_bytes(), options, providers=providers)
        except Exception as error:
            # ONNX Runtime's errors share no base of their own.
            raise CheckpointError(
                f"{graph} cannot be loaded by ONNX Runtime {ort.__version__} ({error}); build it again "
                f"with `autogaze build CHECKPOINT {bundle.path}`"
            ) from error
        if self._gpu is not None and session.get_providers()[0] != _CUDA:
            # It would go on without, on the CPU.
            raise self._no_gpu()
        return session

    def _no_gpu(self) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"ONNX Runtime {ort.__version__} cannot use cuda:{self._gpu}: install onnxruntime-gpu in place of "
            "onnxruntime, with the CUDA and cuDNN libraries that it was built for "
            f"(pip install 'onnxruntime-gpu[cuda,cudnn]>={_OLDEST}'), or serve with another engine or device"
        )

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

    def open_slot(self) -> int:
        """See ``Engine.open_slot``."""
        slot = next(index for index in itertools.count() if index not in self._slots)
        self._slots[slot] = self._new_cache(self._spares.pop() if self._spares else None)
        return slot

    def _new_cache(self, spare: Any) -> HostCache | DeviceCache:
        if self._gpu is None:
            return HostCache(self._spec, self._cache_dtype, spare)
        return DeviceCache(self._spec, self._cache_dtype, "cuda", self._gpu, spare)

    def close_slot(self, slot: int) -> None:
        """See ``Engine.close_slot``."""
        cache = self._slots.pop(slot)
        if len(self._spares) < _SPARES:
            self._spares.append(cache.take_buffers())

    def prefill(
        self,
        slots: Integers,
        vision: Floats,
        pending: Integers,
        pending_count: Integers,
        positions: Integers,
        lengths: Integers,
        limits: Limits,
    ) -> GroupResult:
        """See ``Engine.prefill``."""
        results = []
        for row, slot in enumerate(slots):
            leftover = int(pending_count[row])
            tokens = leftover + vision.shape[1]
            slot_of_token = np.arange(tokens)[None]
            cos, sin = rotary_cos_sin(self._spec, positions[row] + slot_of_token)
            feeds: dict[str, Array] = {
                "vision": vision[row : row + 1],
                "pending": pending[row : row + 1, :leftover],
                # Without padding among the tokens their order is their own.
                "order": slot_of_token,
                "last": np.array([tokens - 1]),
                "cos": cos,
                "sin": sin,
            }
            results.append(self._run(Phase.PREFILL, int(slot), feeds, tokens, int(lengths[row]), limits, row))
        return GroupResult.concatenate(results)

    def step(
        self, slots: Integers, group: Integers, positions: Integers, lengths: Integers, limits: Limits
    ) -> GroupResult:
        """See ``Engine.step``."""
        results = []
        for row, slot in enumerate(slots):
            cos, sin = rotary_cos_sin(self._spec, positions[row : row + 1])
            feeds: dict[str, Array] = {
                "group": group[row : row + 1],
                "chosen": self._slots[int(slot)].chosen,
                "cos": cos,
                "sin": sin,
            }
            tokens = group.shape[1]
            results.append(self._run(Phase.STEP, int(slot), feeds, tokens, int(lengths[row]), limits, row))
        return GroupResult.concatenate(results)

    def move(self, slot: int, source: Integers, destination: Integers) -> None:
        """See ``Engine.move``."""
        self._slots[slot].move(source, destination)

    def close(self) -> None:
        """See ``Engine.close``."""
        self._slots.clear()
        self._spares.clear()
        self._sessions.clear()

    def _run(
        self,
        phase: Phase,
        slot: int,
        feeds: dict[str, Array],
        tokens: int,
        length: int,
        limits: Limits,
        row: int,
    ) -> GroupResult:
        """Runs one row: on a CPU, rows batched cost what they cost apart (decision 5), and a GPU has better engines."""
        cache = self._slots[slot]
        cache.reserve(length + tokens)
        binding = self._sessions[phase].io_binding()
        feeds |= {
            "write_index": np.array([length]),
            "budget": limits.budget[row : row + 1],
            "requirement": limits.requirement[row : row + 1],
        }
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


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(part) for part in version.split(".")[:2])
