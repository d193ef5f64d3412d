"""Which engine runs a bundle: chosen by name, or the best that bundle and device allow."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

from autogaze_client._errors import AutoGazeError, InvalidInputError, MissingExtraError

from autogaze_backend.bundle import Bundle
from autogaze_backend.devices import Device
from autogaze_backend.engine import Engine
from autogaze_backend.plan_selection import require_plans, select_plans
from autogaze_backend.plans import EngineKind, PlanSet

_LOG = logging.getLogger("autogaze")

AUTO = "auto"


@dataclass(frozen=True)
class EngineInfo:
    """What runs a model, as its metric says.

    Attributes:
        engine: a name of ``ENGINES``.
        precision: "exact" or "fast".
        engine_version: of the library.
        device: "cpu" or "cuda:<number>".
    """

    engine: str
    precision: str
    engine_version: str
    device: str

    @property
    def labels(self) -> dict[str, str]:
        """The labels of ``autogaze_engine_info``."""
        return asdict(self)


@dataclass(frozen=True)
class Opened:
    """An engine that is ready, and what it is."""

    engine: Engine
    info: EngineInfo


class EngineEntry(Protocol):
    """A kind of engine; its module is imported when it is opened."""

    def fits(self, bundle: Bundle, device: Device) -> AutoGazeError | None:
        """Why it cannot run the bundle on the device; None where it can. Opens nothing."""

    def open(self, bundle: Bundle, device: Device, threads: int | None) -> Opened:
        """Opens it."""


# Distributions that bring the module ``onnxruntime``.
_ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


class OnnxRuntimeEntry:
    """ONNX Runtime on the CPU, or on a GPU that is named."""

    def fits(self, bundle: Bundle, device: Device) -> AutoGazeError | None:
        """See ``EngineEntry.fits``."""
        if bundle.engine != "onnxruntime":
            return InvalidInputError(
                f"{bundle.path} was built for engine {bundle.engine!r} and holds no graphs"
            )
        if not device.allows_cpu:
            try:
                bundle.gpu_graphs()
            except AutoGazeError as error:
                return error
        installed = [name for name in _ONNX_RUNTIMES if _is_installed(name)]
        if not installed:
            missing = ImportError("onnxruntime", name="onnxruntime")
            return MissingExtraError.for_extra("the ONNX Runtime engine", "server", missing)
        if not device.allows_cpu and "onnxruntime-gpu" not in installed:
            return InvalidInputError(
                f"device is {device.name!r}, but the installed onnxruntime runs on the CPU only; pass 'cpu' or 'auto', "
                "or install onnxruntime-gpu in its place"
            )
        return None

    def open(self, bundle: Bundle, device: Device, threads: int | None) -> Opened:
        """See ``EngineEntry.open``."""
        try:
            from autogaze_backend.onnxruntime_engine import OnnxRuntimeEngine
        except ImportError as error:
            raise MissingExtraError.for_extra("the ONNX Runtime engine", "server", error) from error
        gpu = None if device.allows_cpu else device.index
        opened = OnnxRuntimeEngine(bundle, threads=threads, gpu=gpu)
        where = "cpu" if gpu is None else device.gpu
        return Opened(opened, EngineInfo("onnxruntime", bundle.precision, opened.version, where))


class TensorRtEntry:
    """TensorRT or TensorRT-RTX, where plans fit."""

    def __init__(self, kind: EngineKind) -> None:
        self._kind = kind

    def fits(self, bundle: Bundle, device: Device) -> AutoGazeError | None:
        """See ``EngineEntry.fits``."""
        if device.index is None:
            return InvalidInputError(
                f"device is {device.name!r}, but {self._kind.value} needs a GPU; pass 'cuda' or 'auto'"
            )
        try:
            self._select(bundle, device, verify=False)
        except AutoGazeError as error:
            return error
        return None

    def open(self, bundle: Bundle, device: Device, threads: int | None) -> Opened:
        """See ``EngineEntry.open``."""
        from safetensors.numpy import load_file

        from autogaze_backend.tensorrt_engine import TensorRtEngine
        from autogaze_backend.tensorrt_engine.api import TensorRt
        from autogaze_backend.tensorrt_engine.cuda import Cuda

        plans = self._select(bundle, device, verify=True)
        api, cuda = TensorRt(self._kind), Cuda(device.index or 0)
        engine = TensorRtEngine(
            bundle.spec,
            plans,
            api,
            cuda,
            max_rows=_max_rows(),
            weights=load_file(bundle.weights) if plans.stripped else None,
        )
        return Opened(engine, EngineInfo(self._kind.value, plans.target.precision, api.version, device.gpu))

    def _select(self, bundle: Bundle, device: Device, *, verify: bool) -> PlanSet:
        # First what costs nothing: without plans nobody looks for GPUs and libraries.
        require_plans(bundle, self._kind)
        return select_plans(
            bundle,
            self._kind,
            device.machine,
            device=device.index or 0,
            precision=os.environ.get("AUTOGAZE_PRECISION"),
            verify=verify,
        )


class TorchEntry:
    """PyTorch with our kernels on CUDA; on a CPU only where it is asked for, since it is slow there."""

    def fits(self, bundle: Bundle, device: Device) -> AutoGazeError | None:
        """See ``EngineEntry.fits``."""
        if importlib.util.find_spec("torch") is None:
            return MissingExtraError.for_extra(
                "the torch engine", "torch", ImportError("torch", name="torch")
            )
        if device.name == "cpu":
            return None
        # torch takes seconds to import: not where there is no GPU to find.
        if not any(Path(node).exists() for node in _GPU_NODES):
            return InvalidInputError(
                f"device is {device.name!r}, but torch needs an NVIDIA GPU, and this machine shows none; pass 'cpu'"
            )
        if importlib.util.find_spec("triton") is None:
            missing = ImportError("triton", name="triton")
            return MissingExtraError.for_extra("the torch engine's kernels", "torch", missing)
        from autogaze_backend.torch_engine.opening import open_device
        from autogaze_backend.torch_engine.tilings import check_architecture

        try:
            check_architecture(bundle.spec)
            open_device(device.gpu)
        except AutoGazeError as error:
            return error
        return None

    def open(self, bundle: Bundle, device: Device, threads: int | None) -> Opened:
        """See ``EngineEntry.open``."""
        from autogaze_backend.torch_engine.engine import TorchEngine

        where = "cpu" if device.name == "cpu" else device.gpu
        engine = TorchEngine(bundle, device=where)
        return Opened(engine, EngineInfo("torch", bundle.precision, metadata.version("torch"), where))


# What NVIDIA's driver, or WSL's, puts into a machine or container that may use a GPU.
_GPU_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")

ENGINES: dict[str, EngineEntry] = {
    EngineKind.TENSORRT.value: TensorRtEntry(EngineKind.TENSORRT),
    EngineKind.TENSORRT_RTX.value: TensorRtEntry(EngineKind.TENSORRT_RTX),
    "torch": TorchEntry(),
    "onnxruntime": OnnxRuntimeEntry(),
}
"""In order of preference."""


@dataclass(frozen=True)
class Choice:
    """The engine for a bundle and a device.

    Attributes:
        name: of ``ENGINES``.
        passed_over: those before it, and why each does not fit.
    """

    name: str
    passed_over: Mapping[str, AutoGazeError]


def require_engine(name: str) -> str:
    """The name, if it is one of ``ENGINES`` or "auto".

    Raises:
        InvalidInputError: it is not.
    """
    if name != AUTO and name not in ENGINES:
        raise InvalidInputError(f"engine is {name!r}; known engines are {', '.join(ENGINES)}, or 'auto'")
    return name


def choose_engine(bundle: Bundle, device: Device, engine: str = AUTO) -> Choice:
    """The engine of a name, or the first of ``ENGINES`` that fits.

    Args:
        bundle: what to run.
        device: where.
        engine: a name of ``ENGINES``, or "auto".

    Raises:
        InvalidInputError: an unknown name, or none fits; the message has each one's reason.
        AutoGazeError: the engine that was named does not fit; its own reason.
    """
    if engine != AUTO:
        if reason := ENGINES[require_engine(engine)].fits(bundle, device):
            raise reason
        return Choice(engine, {})
    passed_over: dict[str, AutoGazeError] = {}
    for name, entry in ENGINES.items():
        reason = entry.fits(bundle, device)
        if reason is None and name == "torch" and device.index is None:
            reason = InvalidInputError("device is 'cpu', where torch is the slow oracle; name it to run it")
        if reason is None:
            return Choice(name, passed_over)
        passed_over[name] = reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise InvalidInputError(f"no engine runs {bundle.path} on device {device.name!r}: {reasons}")


def open_engine(
    bundle: Bundle,
    *,
    device: str = "cpu",
    engine: str = AUTO,
    threads: int | None = None,
) -> Opened:
    """Chooses and opens the engine of a bundle, and logs which it is and why not the ones before it.

    A fitting engine that then cannot be opened is an error, also with "auto": a server that silently fell back to
    a slower one would be found out by its callers.

    Args:
        bundle: what to run.
        device: "cpu", "cuda", "cuda:<number>", or "auto" for the best that is here.
        engine: a name of ``ENGINES``, or "auto".
        threads: threads of a CPU engine; None for all physical cores.

    Raises:
        InvalidInputError: an unknown engine or device, or nothing fits.
        AutoGazeError: the engine does not fit or cannot be opened; see ``plan_selection``.
    """
    where = Device.parse(device)
    choice = choose_engine(bundle, where, engine)
    for name, reason in choice.passed_over.items():
        _LOG.info("engine %s passed over: %s", name, reason)
    opened = ENGINES[choice.name].open(bundle, where, threads)
    info = opened.info
    _LOG.info(
        "engine %s %s (%s) on %s, bundle %s",
        info.engine,
        info.engine_version,
        info.precision,
        info.device,
        bundle.path,
    )
    return opened


def served_engine(parameters: Mapping[str, str]) -> dict[str, str]:
    """``engine`` and ``device`` of a served model.

    The environment's AUTOGAZE_ENGINE and AUTOGAZE_DEVICE come first, then the model's parameters, then "auto".

    Args:
        parameters: of its config.pbtxt.
    """
    return {
        name: os.environ.get(f"AUTOGAZE_{name.upper()}") or parameters.get(name) or AUTO
        for name in ("engine", "device")
    }


def _max_rows() -> int | None:
    text = os.environ.get("AUTOGAZE_MAX_ROWS")
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise InvalidInputError(f"AUTOGAZE_MAX_ROWS is {text!r}; it must be an integer of at least 1")
    return int(text)


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
