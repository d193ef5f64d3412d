"""Which engine runs a bundle: chosen by name, or the best that bundle and device allow."""

from __future__ import annotations

import logging
from collections.abc import Callable

from autogaze_client._errors import InvalidInputError, MissingExtraError

from autogaze_backend.bundle import Bundle
from autogaze_backend.engine import Engine

_LOG = logging.getLogger("autogaze")

AUTO = "auto"


def open_engine(
    bundle: Bundle, *, device: str = "cpu", engine: str = AUTO, threads: int | None = None
) -> Engine:
    """Opens the engine of a bundle and logs which it is.

    Args:
        bundle: what to run.
        device: "cpu", or "auto" for the best that is here.
        engine: a name of ``ENGINES``, or "auto".
        threads: threads of a CPU engine; None for all physical cores.

    Raises:
        InvalidInputError: an unknown engine or device, or a bundle that was built for another engine.
        MissingExtraError: the engine's packages are not installed.
    """
    name = bundle.engine if engine == AUTO else engine
    if name == "onnxruntime" and device not in ("cpu", AUTO):
        if engine != AUTO:
            raise InvalidInputError(f"device is {device!r}; the ONNX Runtime engine runs on 'cpu'")
        name = "torch"
    if name not in ENGINES:
        raise InvalidInputError(f"engine is {name!r}; known engines are {', '.join(ENGINES)}, or 'auto'")
    opened = ENGINES[name](bundle, device, threads)
    _LOG.info("engine %s (%s) on %s, bundle %s", name, bundle.precision, device, bundle.path)
    return opened


def _onnxruntime(bundle: Bundle, device: str, threads: int | None) -> Engine:
    try:
        from autogaze_backend.onnxruntime_engine import OnnxRuntimeEngine
    except ImportError as error:
        raise MissingExtraError.for_extra("the ONNX Runtime engine", "server", error) from error
    return OnnxRuntimeEngine(bundle, threads=threads)


def _torch(bundle: Bundle, device: str, threads: int | None) -> Engine:
    try:
        from autogaze_backend.torch_engine.engine import TorchEngine
    except ImportError as error:
        raise MissingExtraError.for_extra("the torch engine", "torch", error) from error
    return TorchEngine(bundle, device="cpu" if device == AUTO else device)


# In order of preference; each module is imported when its engine is opened.
ENGINES: dict[str, Callable[[Bundle, str, int | None], Engine]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
}
