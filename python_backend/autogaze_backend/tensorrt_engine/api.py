"""TensorRT and TensorRT-RTX behind one small adapter: both have the same Python API."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from autogaze_client._errors import AutoGazeError, MissingExtraError, PlanMismatchError
from numpy.typing import NDArray

from autogaze_backend.plans import EngineKind

_LOG = logging.getLogger("autogaze.tensorrt")

MODULES: Mapping[EngineKind, tuple[str, ...]] = {
    EngineKind.TENSORRT: ("tensorrt",),
    EngineKind.TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Where each library's Python API may lie, the first that imports is taken."""

_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}


class PlanExecutionError(AutoGazeError):
    """TensorRT refused a call; the message holds its own last words."""


@dataclass(frozen=True)
class Binding:
    """A tensor of an engine.

    Attributes:
        name: of ``graphs.signature``.
        is_input: else an output.
        shape: static.
        dtype: of numpy.
        alias: the input whose memory an output must share, None for none.
    """

    name: str
    is_input: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    alias: str | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class TensorRt:
    """One library of the two.

    Args:
        kind: which.
        module: its Python API; None imports it.

    Raises:
        MissingExtraError: it is not installed, or does not import.
    """

    def __init__(self, kind: EngineKind, module: Any = None) -> None:
        self.kind = kind
        self._trt = module or import_tensorrt(kind)
        self._words: list[str] = []
        self._logger = _logger(self._trt, self._words)
        self._runtime: Any = None

    @property
    def version(self) -> str:
        """Such as "10.15.1.29"."""
        return str(self._trt.__version__)

    def deserialize(self, plan: bytes, name: str, remedy: str) -> Any:
        """An engine from a plan.

        Args:
            plan: the file's bytes.
            name: for the message.
            remedy: what to do when it is refused.

        Raises:
            PlanMismatchError: the library refuses it, with its reason.
        """
        if self._runtime is None:
            self._runtime = self._trt.Runtime(self._logger)
        self._words.clear()
        try:
            engine = self._runtime.deserialize_cuda_engine(plan)
        except Exception as error:
            raise PlanMismatchError(f"{self._says(f'refuses {name} ({error})')}; {remedy}") from error
        if engine is None:
            raise PlanMismatchError(f"{self._says(f'refuses {name}')}; {remedy}")
        return engine

    def refit(self, engine: Any, weights: Mapping[str, NDArray[Any]], name: str) -> None:
        """Gives a weight-stripped engine its weights, by the names that the graph gave them.

        Raises:
            PlanMismatchError: it wants a weight that the bundle does not have, or refuses one.
        """
        refitter = self._trt.Refitter(engine, self._logger)
        # The refitter reads them at the end, and keeps no reference of its own.
        kept: list[NDArray[Any]] = []
        for weight in refitter.get_missing_weights():
            if weight not in weights:
                raise PlanMismatchError(f"{name} wants the weight {weight!r}, which the bundle does not hold")
            dtype = _numpy_dtype(refitter.get_weights_prototype(weight).dtype, weight, name)
            array = np.ascontiguousarray(weights[weight], dtype)
            kept.append(array)
            if not refitter.set_named_weights(weight, self._trt.Weights(array)):
                raise PlanMismatchError(self._says(f"refuses the weight {weight!r} of {name}"))
        if not refitter.refit_cuda_engine():
            raise PlanMismatchError(self._says(f"cannot refit {name}"))

    def bindings(self, engine: Any, name: str) -> tuple[Binding, ...]:
        """The tensors of an engine, in its own order.

        Raises:
            PlanMismatchError: a shape is not static, or a type is none that is bound here.
        """
        found = []
        for index in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(tensor) == self._trt.TensorIOMode.INPUT
            shape = tuple(int(size) for size in engine.get_tensor_shape(tensor))
            if any(size < 0 for size in shape):
                raise PlanMismatchError(
                    f"{tensor} of {name} has the shape {list(shape)}, but plans are built with static shapes"
                )
            dtype = _numpy_dtype(engine.get_tensor_dtype(tensor), tensor, name)
            found.append(
                Binding(tensor, is_input, shape, dtype, None if is_input else _alias(engine, tensor))
            )
        return tuple(found)

    def scratch_size(self, engine: Any) -> int:
        """Bytes of scratch memory that a context of the engine needs."""
        return int(getattr(engine, "device_memory_size_v2", None) or engine.device_memory_size)

    def create_context(self, engine: Any, scratch: int, size: int, name: str) -> Any:
        """A context that works in ``size`` bytes at ``scratch``, which contexts that never overlap may share.

        Raises:
            PlanExecutionError: TensorRT gives none.
        """
        self._words.clear()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
        if context is None:
            raise PlanExecutionError(self._says(f"gives no context for {name}"))
        if size:
            context.set_device_memory(scratch, size)
        return context

    def bind(self, context: Any, tensor: str, address: int, name: str) -> None:
        """Tells a context where a tensor lies.

        Raises:
            PlanExecutionError: it refuses.
        """
        self._words.clear()
        if not context.set_tensor_address(tensor, address):
            raise PlanExecutionError(self._says(f"refuses an address for {tensor} of {name}"))

    def enqueue(self, context: Any, stream: Any, name: str) -> None:
        """Puts a run into the stream.

        Raises:
            PlanExecutionError: it refuses.
        """
        self._words.clear()
        if not context.execute_async_v3(int(stream)):
            raise PlanExecutionError(self._says(f"could not enqueue {name}"))

    def close(self) -> None:
        """Gives the runtime up; engines must be gone."""
        self._runtime = None

    def _says(self, what: str) -> str:
        reason = f": {' | '.join(self._words[-3:])}" if self._words else ""
        return f"{self.kind.value} {self.version} {what}{reason}"


def import_tensorrt(kind: EngineKind) -> Any:
    """The Python API of a library.

    Raises:
        MissingExtraError: it is not installed, or its own libraries are missing.
    """
    error: ImportError | None = None
    for name in MODULES[kind]:
        try:
            return import_module(name)
        except ModuleNotFoundError as missing:
            error = error or missing
        except ImportError as broken:
            # Installed, but a library of its own is missing: the better reason.
            error = broken
        except Exception as broken:
            error = ImportError(f"{name} ({broken})")
    assert error is not None
    raise MissingExtraError.for_extra(kind.value, kind.value, error) from error


def _logger(trt: Any, words: list[str]) -> Any:
    """A logger that hands TensorRT's lines to ``logging``, and keeps the errors for messages."""
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.INFO)
            if level == logging.ERROR:
                words.append(" ".join(message.split()))
            _LOG.log(level, "%s", message)

    return Logger()


def _alias(engine: Any, output: str) -> str | None:
    # Before 10.15 no engine has aliased outputs, and nothing to ask.
    ask = getattr(engine, "get_aliased_input_tensor", None)
    return (ask(output) or None) if ask is not None else None


def _numpy_dtype(dtype: Any, tensor: str, name: str) -> np.dtype[Any]:
    try:
        return np.dtype(_DTYPES[dtype.name])
    except KeyError:
        raise PlanMismatchError(
            f"{tensor} of {name} is {dtype.name}; tensors bound here are {', '.join(_DTYPES)}"
        ) from None
