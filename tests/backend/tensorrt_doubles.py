"""TensorRT and the CUDA runtime without a GPU: device memory is the host's, plans are run by ONNX Runtime.

Both doubles record what they are told, and hold the executor to the rules that a GPU would enforce: a stream runs its
work when it is waited for and not before, a capture runs nothing and takes no synchronous call, addresses must lie in
memory that was allocated, and a context must have run once before it can be captured.
"""

from __future__ import annotations

import ctypes
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
from autogaze_backend.bundle import Bundle, file_sha256
from autogaze_backend.graphs import Phase, cache_names, signature
from autogaze_backend.plans import Bucket, EngineKind, GraphVariant, Plan, PlanSet, PlanTarget
from autogaze_backend.spec import ModelSpec
from safetensors.numpy import load_file

VERSION = "10.15.1.29"
CAPABILITY = (9, 0)
# Calls that a capture in progress does not survive.
_FORBIDDEN = {"cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost", "cudaStreamSynchronize"}


class FakeCuda:
    """``cuda.bindings.runtime`` with one device whose memory is the host's; structures are the real ones."""

    def __init__(self) -> None:
        import cuda.bindings.runtime as runtime

        self._real = runtime
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.pinned: set[int] = set()
        self.queue: list[Callable[[], None]] = []
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.alive: set[str] = set()
        self.fail: dict[str, Any] = {}
        self._next = 1000

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        answer = getattr(type(self), f"do_{name}", None)
        if answer is None:
            if name.startswith("cuda") and callable(real) and not inspect.isclass(real):
                raise AssertionError(f"the double does not know {name}")
            return real

        def call(*arguments: Any) -> tuple[Any, ...]:
            inspect.signature(real).bind(*arguments)
            self.calls.append((name, arguments))
            if name in self.fail:
                return (self.fail[name], None)
            if self.capturing is not None and name in _FORBIDDEN:
                return (self._real.cudaError_t.cudaErrorStreamCaptureUnsupported, None)
            return (self._real.cudaError_t.cudaSuccess, *answer(self, *arguments))

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def put(self, work: Callable[[], None]) -> None:
        """Queues work, or records it."""
        (self.queue if self.capturing is None else self.capturing).append(work)

    def check(self, address: int, size: int) -> None:
        """Fails for memory that is not allocated."""
        for start, block in self.memory.items():
            if start <= address and address + size <= start + len(block):
                return
        raise AssertionError(f"{size} bytes at {address} are not allocated")

    def _handle(self, kind: str) -> int:
        self._next += 1
        self.alive.add(f"{kind}{self._next}")
        return self._next

    def do_cudaGetErrorString(self, error):  # noqa: N802
        return self._real.cudaGetErrorString(error)[1:]

    def do_cudaSetDevice(self, device):  # noqa: N802
        assert device == 0
        return ()

    def do_cudaGetLastError(self):  # noqa: N802
        return ()

    def do_cudaStreamCreate(self):  # noqa: N802
        return (self._real.cudaStream_t(self._handle("stream")),)

    def do_cudaStreamDestroy(self, stream):  # noqa: N802
        self.alive.remove(f"stream{int(stream)}")
        return ()

    def do_cudaMalloc(self, size):  # noqa: N802
        assert size > 0
        block = (ctypes.c_char * (size + 256))()
        # Like CUDA's, addresses are multiples of 256; what is in the memory is not zero.
        address = -(-ctypes.addressof(block) // 256) * 256
        ctypes.memset(address, 0xFF, size)
        whole = (ctypes.c_char * size).from_address(address)
        whole._keep = block
        self.memory[address] = whole
        return (address,)

    def do_cudaMallocHost(self, size):  # noqa: N802
        (address,) = self.do_cudaMalloc(size)
        self.pinned.add(address)
        return (address,)

    def do_cudaFree(self, address):  # noqa: N802
        assert address not in self.pinned
        del self.memory[address]
        return ()

    def do_cudaFreeHost(self, address):  # noqa: N802
        self.pinned.remove(address)
        del self.memory[address]
        return ()

    def do_cudaMemsetAsync(self, address, value, size, stream):  # noqa: N802
        self.check(address, size)
        self.put(lambda: ctypes.memset(address, value, size))
        return ()

    def do_cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        kinds = self._real.cudaMemcpyKind
        self.check(target, size)
        self.check(source, size)
        assert any(start <= source < start + len(self.memory[start]) for start in self.pinned) == (
            kind == kinds.cudaMemcpyHostToDevice
        )
        assert any(start <= target < start + len(self.memory[start]) for start in self.pinned) == (
            kind == kinds.cudaMemcpyDeviceToHost
        )
        self.put(lambda: ctypes.memmove(target, source, size))
        return ()

    def do_cudaMemcpy3DAsync(self, parameters, stream):  # noqa: N802
        extent = parameters.extent
        source, target = parameters.srcPtr, parameters.dstPtr
        shape = (extent.width, extent.height, extent.depth)
        sides = [(int(side.ptr), side.pitch, side.ysize) for side in (source, target)]

        def start(side: int, block: int, row: int) -> int:
            address, pitch, rows = sides[side]
            return address + (block * rows + row) * pitch

        for side in (0, 1):
            assert shape[1] <= sides[side][2]
            self.check(sides[side][0], start(side, shape[2] - 1, shape[1] - 1) + shape[0] - sides[side][0])

        def run() -> None:
            for block in range(shape[2]):
                for row in range(shape[1]):
                    ctypes.memmove(start(1, block, row), start(0, block, row), shape[0])

        self.put(run)
        return ()

    def do_cudaStreamSynchronize(self, stream):  # noqa: N802
        while self.queue:
            self.queue.pop(0)()
        return ()

    def do_cudaStreamBeginCapture(self, stream, mode):  # noqa: N802
        assert self.capturing is None
        self.capturing = []
        return ()

    def do_cudaStreamEndCapture(self, stream):  # noqa: N802
        handle = self._handle("graph")
        assert self.capturing is not None
        self.graphs[handle], self.capturing = self.capturing, None
        return (handle,)

    def do_cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        executable = self._handle("executable")
        self.graphs[executable] = self.graphs[graph]
        return (executable,)

    def do_cudaGraphDestroy(self, graph):  # noqa: N802
        self.alive.remove(f"graph{graph}")
        return ()

    def do_cudaGraphExecDestroy(self, executable):  # noqa: N802
        self.alive.remove(f"executable{executable}")
        return ()

    def do_cudaGraphLaunch(self, executable, stream):  # noqa: N802
        for work in self.graphs[executable]:
            self.put(work)
        return ()


# Names of the real library's, so that the double cannot drift from it where it is installed.
class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    BOOL = 4
    INT64 = 8


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        pass


_ONNX = {
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(int64)": DataType.INT64,
    "tensor(bool)": DataType.BOOL,
}
NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT64: np.int64,
    DataType.BOOL: np.bool_,
}


@dataclass
class FakeTensorRt:
    """A module ``tensorrt`` whose plans are JSON: the bundle, a phase and its static shape.

    Attributes:
        aliased: whether engines share memory between a cache's input and output, as TensorRT from 10.15 does.
        capturable: whether runs can be captured.
        stripped: whether engines want their weights from a refitter.
        extra_input: an input that no graph has.
        events: what was called, in order.
    """

    cuda: FakeCuda
    aliased: bool = True
    capturable: bool = True
    stripped: bool = False
    extra_input: str = ""
    events: list[tuple[str, str]] = field(default_factory=list)
    contexts: list[FakeContext] = field(default_factory=list)
    __version__: str = VERSION

    ILogger = ILogger
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    def __post_init__(self) -> None:
        self._sessions: dict[tuple[str, Phase], tuple[Any, Any]] = {}

    def session(self, bundle: str, phase: Phase) -> Any:
        """The bundle's own graph, opened once."""
        import onnxruntime as ort

        key = (bundle, phase)
        if key not in self._sessions:
            loaded = Bundle.load(bundle)
            weights = load_file(loaded.weights)
            prefix = "encoder." if phase is Phase.ENCODER else "decoder."
            weights = {name: array for name, array in weights.items() if name.startswith(prefix)}
            options = ort.SessionOptions()
            options.log_severity_level = 3
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
            options.add_external_initializers(list(weights), values)
            graph = loaded.graphs[phase].read_bytes()
            opened = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            self._sessions[key] = (opened, weights)
        return self._sessions[key][0]

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        def deserialize_cuda_engine(plan: bytes) -> FakeEngine | None:
            try:
                described = json.loads(plan)
            except ValueError:
                logger.log(Severity.ERROR, "Serialization assertion magicTag == kEXPECTED_MAGIC_TAG failed")
                return None
            self.events.append(("deserialize", described["name"]))
            return FakeEngine(self, described)

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)

    def new_context(self, engine: FakeEngine) -> FakeContext:
        return FakeContext(engine)

    def data_type(self, engine: FakeEngine, name: str) -> DataType:
        """Of a tensor, as ONNX Runtime says."""
        session = self.session(engine.bundle, engine.phase)
        (found,) = [
            item.type for item in (*session.get_inputs(), *session.get_outputs()) if item.name == name
        ]
        return _ONNX[found]

    def Weights(self, array: np.ndarray) -> np.ndarray:  # noqa: N802
        return array

    def Refitter(self, engine: FakeEngine, logger: Any) -> Any:  # noqa: N802
        wanted = ["decoder.embed"] if engine.phase is not Phase.ENCODER else ["encoder.patch.weight"]
        given: dict[str, np.ndarray] = {}

        def set_named_weights(name: str, weights: np.ndarray) -> bool:
            given[name] = weights
            return True

        def refit_cuda_engine() -> bool:
            engine.weights = given
            self.events.append(("refit", engine.name))
            return set(given) == set(wanted)

        return SimpleNamespace(
            get_missing_weights=lambda: wanted,
            get_weights_prototype=lambda name: SimpleNamespace(dtype=DataType.FLOAT),
            set_named_weights=set_named_weights,
            refit_cuda_engine=refit_cuda_engine,
        )


class FakeEngine:
    """One plan: ONNX Runtime's graph with the shape of a bucket."""

    device_memory_size_v2 = 4096

    def __init__(self, trt: FakeTensorRt, described: dict[str, Any]) -> None:
        self.trt, self.name = trt, described["name"]
        self.phase = Phase(described["phase"])
        self.bundle = described["bundle"]
        self.weights: dict[str, np.ndarray] = {}
        self.spec = Bundle.load(self.bundle).spec
        self.caches = () if self.phase is Phase.ENCODER else cache_names(self.spec)
        shapes = tensor_shapes(self.spec, self.phase, described["rows"], described["length"])
        names = signature(self.spec, self.phase)
        self.tensors: dict[str, tuple[TensorIOMode, tuple[int, ...], DataType]] = {
            name: (TensorIOMode.INPUT, shapes[name], trt.data_type(self, name)) for name in names.inputs
        }
        if trt.extra_input:
            self.tensors[trt.extra_input] = (TensorIOMode.INPUT, (1,), DataType.FLOAT)
        for name in names.outputs:
            self.tensors[name] = (TensorIOMode.OUTPUT, shapes[name], trt.data_type(self, name))

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name][2]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        source = name.removeprefix("new_")
        return source if self.trt.aliased and source in self.caches and source != name else None

    def create_execution_context(self, strategy: int) -> FakeContext:
        assert strategy == 2
        self.trt.events.append(("context", self.name))
        context = self.trt.new_context(self)
        self.trt.contexts.append(context)
        return context


class FakeContext:
    """Runs the graph on what lies at the addresses it was told."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.runs = 0
        self.enqueued = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        self.engine.trt.cuda.check(address, size)
        self.scratch = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        trt, (_, shape, dtype) = self.engine.trt, self.engine.tensors[name]
        assert address % 256 == 0, (name, address)
        assert name not in self.addresses, f"{name} was bound twice"
        trt.cuda.check(address, int(np.prod(shape)) * np.dtype(NUMPY[dtype]).itemsize)
        self.addresses[name] = address
        trt.events.append(("bind", self.engine.name))
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt = self.engine.trt
        assert isinstance(stream, int)
        assert set(self.addresses) == set(self.engine.tensors)
        assert self.scratch is not None
        if trt.stripped:
            assert self.engine.weights, "a plan without weights was run"
        capturing = trt.cuda.capturing is not None
        trt.events.append(("capture" if capturing else "enqueue", self.engine.name))
        if capturing:
            assert self.runs, "captured before it had run"
            if not trt.capturable:
                return False
        self.enqueued += not capturing
        trt.cuda.put(self._run)
        return True

    def _array(self, name: str) -> np.ndarray:
        _, shape, dtype = self.engine.tensors[name]
        size = int(np.prod(shape)) * np.dtype(NUMPY[dtype]).itemsize
        self.engine.trt.cuda.check(self.addresses[name], size)
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.addresses[name]))
        return raw.view(NUMPY[dtype]).reshape(shape)

    def _run(self) -> None:
        self.runs += 1
        names = [name for name, (mode, _, _) in self.engine.tensors.items() if mode is TensorIOMode.INPUT]
        inputs = {name: self._array(name).copy() for name in names if name != self.engine.trt.extra_input}
        self.check_rules(inputs)
        outputs = [name for name in self.engine.tensors if name not in names]
        values = self.compute(outputs, inputs)
        for name, value in zip(outputs, values, strict=True):
            assert self._array(name).dtype == value.dtype, name
            self._array(name)[...] = value

    def compute(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Runs the graph itself."""
        session = self.engine.trt.session(self.engine.bundle, self.engine.phase)
        values: list[np.ndarray] = session.run(outputs, inputs)
        return values

    def check_rules(self, inputs: dict[str, np.ndarray]) -> None:
        """What no layer of TensorRT checks: writes out of bounds are ignored silently there."""
        if self.engine.phase is Phase.ENCODER:
            return
        for name in self.engine.caches:
            assert np.isfinite(inputs[name]).all(), f"{name} of {self.engine.name} holds memory never written"
            end = inputs["write_index"] + inputs["cos"].shape[1]
            assert (end <= inputs[name].shape[2]).all(), "written beyond the cache"


def tensor_shapes(spec: ModelSpec, phase: Phase, rows: int, length: int) -> dict[str, tuple[int, ...]]:
    """The static shapes of a plan's tensors, as ``autogaze_export.modeling`` describes them."""
    grid, width, size = spec.vision_grid, spec.hidden_size, spec.group_size
    if phase is Phase.ENCODER:
        state = (rows, spec.encoder_depth, spec.temporal_kernel - 1, width, grid, grid)
        frames = (rows, length, 3, spec.input_size, spec.input_size)
        tokens = (rows, length, spec.vision_tokens, width)
        return {"frames": frames, "state": state, "tokens": tokens, "new_state": state}
    fed = size + spec.vision_tokens if phase is Phase.PREFILL else size
    cache = (rows, spec.num_heads, length, spec.head_dim)
    names = cache_names(spec)
    return {
        "vision": (rows, spec.vision_tokens, width),
        "pending": (rows, size),
        "order": (rows, fed),
        "last": (rows,),
        "group": (rows, size),
        "chosen": (rows, spec.vocab_size),
        "cos": (rows, fed, spec.head_dim // 2),
        "sin": (rows, fed, spec.head_dim // 2),
        "write_index": (rows,),
        "budget": (rows,),
        "requirement": (rows,),
        "ids": (rows, size),
        "count": (rows,),
        "finished": (rows,),
        "confidences": (rows, size),
        "losses": (rows, size),
        "new_chosen": (rows, spec.vocab_size),
        "logits": (rows, size, spec.vocab_size),
        **dict.fromkeys(names, cache),
        **{f"new_{name}": cache for name in names},
    }


def write_plans(
    bundle_path: Any,
    folder: Any,
    *,
    rows: tuple[int, ...] = (1, 2, 4),
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096),
    frames: tuple[int, ...] = (1, 4),
    target: PlanTarget | None = None,
    **changes: Any,
) -> PlanSet:
    """A set of plans for the double, as a build would leave it."""
    bundle = Bundle.load(bundle_path)
    target = target or PlanTarget(EngineKind.TENSORRT, VERSION, CAPABILITY, "exact")
    path = folder / target.name
    path.mkdir(parents=True)
    buckets = [Bucket(Phase.ENCODER, r, f) for r in rows for f in frames]
    buckets += [Bucket(p, r, length) for p in (Phase.PREFILL, Phase.STEP) for r in rows for length in lengths]
    plans = {}
    for bucket in buckets:
        described = {
            "name": bucket.file,
            "bundle": str(bundle.path),
            "phase": bucket.phase.value,
            "rows": bucket.rows,
            "length": bucket.length,
        }
        file = path / bucket.file
        file.write_text(json.dumps(described))
        plans[bucket] = Plan(bucket, bucket.file, file_sha256(file), file.stat().st_size, 0.1, ())
    made = PlanSet(
        path=path,
        target=target,
        cuda="13.1",
        variant=GraphVariant.OPSET24,
        checkpoint=bundle.manifest["checkpoint"]["sha256"],
        graphs={phase: file_sha256(file) for phase, file in bundle.graphs.items()},
        inputs="0" * 64,
        version_compatible=False,
        hardware_compatible=False,
        stripped=False,
        plans=plans,
    )
    made = replace(made, **changes)
    made.write()
    return made
