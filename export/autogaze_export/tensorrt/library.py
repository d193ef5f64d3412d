"""TensorRT or TensorRT-RTX behind one small adapter: what differs between them is said here and nowhere else."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from autogaze_backend.plans import EngineKind, GraphVariant
from autogaze_client._errors import InvalidInputError, MissingExtraError

from autogaze_export.tensorrt.options import PlanOptions, dotted

_LOG = logging.getLogger("autogaze.tensorrt")

_MODULES = {
    EngineKind.TENSORRT: ("tensorrt",),
    EngineKind.TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_DISTRIBUTIONS = {
    EngineKind.TENSORRT: re.compile(r"tensorrt[-_]cu(\d+)(?!.*rtx)", re.IGNORECASE),
    EngineKind.TENSORRT_RTX: re.compile(r"tensorrt[-_]rtx[-_]cu(\d+)", re.IGNORECASE),
}

# From here on the parser knows TensorScatter, RotaryEmbedding, RMSNormalization and Attention.
_OPSET24_SINCE = (10, 15)


@dataclass(frozen=True)
class LocalGpu:
    """The first GPU of this machine.

    Attributes:
        name: as the driver gives it.
        compute_capability: such as (8, 9).
    """

    name: str
    compute_capability: tuple[int, int]


class TensorRTLibrary:
    """An imported library and its logger."""

    def __init__(self, kind: EngineKind) -> None:
        """Imports it.

        Raises:
            MissingExtraError: it is not installed, or its own libraries are not; the message has the command.
        """
        self.kind = kind
        self.trt: Any = _imported(kind)
        self.version = str(self.trt.__version__)
        self.cuda = _cuda_version(kind)
        self.messages: list[str] = []
        self.logger = _logger(self.trt, self.messages)
        # What builders and parsers are made of needs them alive.
        self._builder: Any = None

    @property
    def builder(self) -> Any:
        """The library's builder; made once.

        Raises:
            MissingExtraError: the library cannot make one on this machine.
        """
        if self._builder is None:
            self._builder = self.trt.Builder(self.logger)
        return self._builder

    @property
    def variant(self) -> GraphVariant:
        """The graphs that its parser takes."""
        if self.kind is EngineKind.TENSORRT_RTX or _numbers(self.version)[:2] >= _OPSET24_SINCE:
            return GraphVariant.OPSET24
        return GraphVariant.PLAIN

    def targets(self, options: PlanOptions) -> tuple[tuple[int, int], ...]:
        """The compute capabilities to build for.

        Raises:
            InvalidInputError: there is no GPU and none was named, or one that the library cannot build for.
        """
        gpu = local_gpu()
        wanted = options.compute_capabilities
        if self.kind is EngineKind.TENSORRT:
            if gpu is None:
                raise InvalidInputError(
                    "TensorRT measures kernels on the GPU that it builds for, and there is none here; build where the "
                    "plans will run, or pass --engine tensorrt-rtx, which builds for RTX GPUs without one"
                )
            if wanted not in ((), (gpu.compute_capability,)):
                raise InvalidInputError(
                    f"--sm is {dotted(wanted)}, but TensorRT builds for the GPU that is here ({gpu.name}, "
                    f"{dotted([gpu.compute_capability])}); leave --sm out, or build on the other machine"
                )
            return (gpu.compute_capability,)
        if not wanted and gpu is None:
            raise InvalidInputError(
                f"there is no GPU here to build for; name one with --sm (known: {dotted(self._known)})"
            )
        chosen = wanted or (gpu.compute_capability,)  # type: ignore[union-attr]
        unknown = [capability for capability in chosen if capability not in self._known]
        if unknown:
            raise InvalidInputError(
                f"compute capability {dotted(unknown)} is none that {self.kind.value} {self.version} builds for "
                f"({dotted(self._known)}); for data-centre GPUs pass --engine tensorrt"
            )
        return chosen

    def check(self, options: PlanOptions) -> None:
        """Refuses options that the library does not have.

        Raises:
            InvalidInputError: naming the option and what to do instead.
        """
        if self.kind is not EngineKind.TENSORRT_RTX:
            return
        if options.version_compatible:
            raise InvalidInputError(
                "--version-compatible needs TensorRT's lean runtime, which the wheels of tensorrt-rtx do not have; "
                "build anew with each version"
            )
        if options.hardware_compatible:
            raise InvalidInputError(
                "tensorrt-rtx has no --hardware-compatible; name every GPU's compute capability with --sm"
            )
        if options.strip_weights and local_gpu() is None:
            raise InvalidInputError(
                "tensorrt-rtx compiles kernels on a GPU to strip weights, and there is none here; leave "
                "--strip-weights out, or build on a machine with an RTX GPU"
            )

    def configuration(self, options: PlanOptions, capability: tuple[int, int], timing: bytes) -> Any:
        """A builder configuration: strong types are the network's matter, so it holds no precision flags."""
        trt = self.trt
        config = self.builder.create_builder_config()
        # exact means float32: no TF32 on the matrix units.
        if (tf32 := getattr(trt.BuilderFlag, "TF32", None)) is not None:
            config.clear_flag(tf32)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.strip_weights:
            # Only what is marked is stripped: the executor has weights, and not the graph's constants.
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        if self.kind is EngineKind.TENSORRT_RTX:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, "SM{}{}".format(*capability)), 0)
        else:
            config.set_timing_cache(config.create_timing_cache(timing), ignore_mismatch=False)
        return config

    def timing(self, config: Any) -> bytes:
        """What the timing cache holds after a build; empty where the library has none."""
        if self.kind is EngineKind.TENSORRT_RTX:
            return b""
        return bytes(memoryview(config.get_timing_cache().serialize()))

    def network(self) -> Any:
        """An empty, strongly typed network."""
        trt = self.trt
        # From 11 on every network is strongly typed, and the flag may be gone.
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return self.builder.create_network(0 if flag is None else 1 << int(flag))

    def said(self) -> str:
        """The newest errors that it logged, for a message."""
        return "; ".join(" ".join(message.split()) for message in self.messages[-3:]) or "it says no reason"

    @property
    def _known(self) -> tuple[tuple[int, int], ...]:
        names = re.findall(r"\bSM(\d+)(\d)\b", " ".join(dir(self.trt.ComputeCapability)))
        return tuple(sorted((int(major), int(minor)) for major, minor in names))


def local_gpu() -> LocalGpu | None:
    """This machine's first GPU, by ``cuda-python``; None where there is no GPU, driver or package."""
    try:
        driver = import_module("cuda.bindings.driver")
    except ImportError:
        return None
    try:
        if int(driver.cuInit(0)[0]) != 0:
            return None
        error, device = driver.cuDeviceGet(0)
        if int(error) != 0:
            return None
        attribute = driver.CUdevice_attribute
        name = driver.cuDeviceGetName(128, device)[1].split(b"\0")[0].decode()
        major = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)[1]
        minor = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)[1]
    except RuntimeError:
        # cuda-python's word for a machine without libcuda.
        return None
    return LocalGpu(name, (int(major), int(minor)))


def _imported(kind: EngineKind) -> Any:
    first: Exception | None = None
    for name in _MODULES[kind]:
        try:
            module = import_module(name)
        except Exception as error:
            # tensorrt's wheels raise what they like where a library of theirs is missing.
            absent = isinstance(error, ModuleNotFoundError) and error.name == name
            first = error if first is None or not absent else first
            continue
        if hasattr(module, "Builder"):
            return module
        first = first or ImportError(f"the module {name} has no Builder")
    extra = kind.value
    index = (
        " (its libraries come from NVIDIA's own index, so that index must be reachable)"
        if kind is EngineKind.TENSORRT
        else ""
    )
    raise MissingExtraError(
        f"--engine {kind.value} needs TensorRT ({first}): pip install 'autogaze-triton[{extra}]'{index}"
    ) from first


def _cuda_version(kind: EngineKind) -> str:
    """The CUDA that the wheel's name tells; the NGC container has it in the environment."""
    for distribution in metadata.distributions():
        match = _DISTRIBUTIONS[kind].match(distribution.metadata["Name"] or "")
        if match:
            return match[1]
    return os.environ.get("CUDA_VERSION", "")


def _logger(trt: Any, messages: list[str]) -> Any:
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.INFO,
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                messages.append(message)
            # Errors reach the caller as an exception; here they are for whoever debugs.
            _LOG.log(min(level, logging.INFO), "%s", message)

    return Logger()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
