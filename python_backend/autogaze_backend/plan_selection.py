"""Which plans of a bundle this machine can run, decided before any request; or why none, and what mends it.

Facts and judgement are apart, as in ``autogaze doctor``: ``Machine.probe`` looks, ``select_plans`` judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autogaze_client._errors import (
    AutoGazeError,
    CheckpointError,
    MissingExtraError,
    NotFoundError,
    PlanMismatchError,
)

from autogaze_backend.bundle import Bundle
from autogaze_backend.plans import EngineKind, PlanSet, PlanTarget, load_plan_sets


class NoGpuError(AutoGazeError):
    """There is no NVIDIA GPU of that number, or no driver that works."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as CUDA sees it.

    Attributes:
        name: such as "NVIDIA L4".
        compute_capability: such as (8, 9).
    """

    name: str
    compute_capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """What plans need to know of a machine.

    Attributes:
        gpus: by CUDA's number.
        gpu_error: why there are none: no driver, no device; "" where there are.
        cuda_missing: why ``cuda-python`` cannot be used; "" where it can.
        libraries: version of each TensorRT that imports.
        library_errors: why each other one does not.
        driver: CUDA version of the driver, such as "13.0"; "" where none answers.
    """

    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""
    cuda_missing: str = ""
    libraries: Mapping[EngineKind, str] = field(default_factory=dict)
    library_errors: Mapping[EngineKind, str] = field(default_factory=dict)
    driver: str = ""

    @classmethod
    def probe(cls) -> Machine:
        """Looks at this machine; imports what is installed of ``cuda-python`` and TensorRT."""
        from autogaze_backend.tensorrt_engine.api import import_tensorrt

        libraries: dict[EngineKind, str] = {}
        errors: dict[EngineKind, str] = {}
        for kind in EngineKind:
            try:
                libraries[kind] = str(import_tensorrt(kind).__version__)
            except MissingExtraError as error:
                errors[kind] = str(error)
        gpus, gpu_error, cuda_missing, driver = _gpus()
        return cls(gpus, gpu_error, cuda_missing, libraries, errors, driver)


def select_plans(
    bundle: Bundle,
    kind: EngineKind,
    machine: Machine,
    *,
    device: int = 0,
    precision: str | None = None,
    verify: bool = True,
) -> PlanSet:
    """The plans of a bundle that run on a machine.

    Args:
        bundle: that the plans lie in.
        kind: of the library.
        machine: to run on.
        device: number of the GPU.
        precision: "exact" or "fast"; None for the bundle's own.
        verify: whether to read the plans and compare their hashes; else only their sizes are compared.

    Returns:
        The set that was built for exactly this GPU and version, before one that is only compatible.

    Raises:
        NotFoundError: the bundle holds no plans of this kind.
        CheckpointError: those that fit otherwise are damaged or truncated.
        MissingExtraError: the library or ``cuda-python`` is not installed.
        NoGpuError: there is no such GPU.
        PlanMismatchError: all were built for another version, compute capability, precision, checkpoint or
            graph, or lack a bucket. The message is about the set that comes nearest.
    """
    wanted = precision or bundle.precision
    found = require_plans(bundle, kind)
    gpu = require_machine(kind, machine, device)
    version = machine.libraries[kind]
    here = PlanTarget(kind, version, gpu.compute_capability, wanted)
    failures: list[tuple[int, AutoGazeError]] = []
    fitting: list[PlanSet] = []
    for folder, plans in found:
        # How far a set comes: the error of the one that comes farthest is the one to mend.
        reached = len(_CHECKS) if folder.name == here.name else 0
        try:
            if not isinstance(plans, PlanSet):
                raise plans
            reached = 0
            for check in _CHECKS:
                check(bundle, plans, here, gpu)
                reached += 1
            fitting.append(PlanSet.load(folder) if verify else plans)
        except AutoGazeError as error:
            failures.append((reached, error))
    if not fitting:
        raise max(failures, key=lambda failure: failure[0])[1]
    return max(fitting, key=lambda plans: plans.target == here)


def require_plans(bundle: Bundle, kind: EngineKind) -> list[tuple[Path, PlanSet | CheckpointError]]:
    """The folders of a library's plans in a bundle, with what each holds or why it cannot be used.

    Raises:
        NotFoundError: there is none.
    """
    found = [item for item in load_plan_sets(bundle.path) if _kind_of(item[0]) is kind]
    if not found:
        raise NotFoundError(
            f"{bundle.path} holds no plans for {kind.value}; build them on the machine that serves with "
            f"`autogaze build CHECKPOINT {bundle.path} --engine {kind.value}`"
        )
    return found


def _kind_of(folder: Path) -> EngineKind:
    rtx = folder.name.startswith(f"{EngineKind.TENSORRT_RTX.value}-")
    return EngineKind.TENSORRT_RTX if rtx else EngineKind.TENSORRT


def _check_runtime(bundle: Bundle, plans: PlanSet, here: PlanTarget, gpu: Gpu) -> None:
    plans.check_runtime(here.engine, here.version, here.compute_capability, gpu.name)


def _check_precision(bundle: Bundle, plans: PlanSet, here: PlanTarget, gpu: Gpu) -> None:
    if plans.target.precision != here.precision:
        raise PlanMismatchError(
            f"the plans in {plans.path} are {plans.target.precision!r}, but {here.precision!r} is asked for; set "
            f"AUTOGAZE_PRECISION={plans.target.precision} to accept them, or build others with "
            f"`{here.build_command(bundle.path)}`"
        )


def _check_bundle(bundle: Bundle, plans: PlanSet, here: PlanTarget, gpu: Gpu) -> None:
    plans.check_bundle(bundle)


def _check_weights(bundle: Bundle, plans: PlanSet, here: PlanTarget, gpu: Gpu) -> None:
    if plans.stripped and bundle.precision != "exact":
        raise PlanMismatchError(
            f"the plans in {plans.path} take their weights from the bundle, whose own are rounded (precision "
            f"{bundle.precision!r}); write it anew with `autogaze build CHECKPOINT {bundle.path}`, which keeps plans"
        )


def _check_buckets(bundle: Bundle, plans: PlanSet, here: PlanTarget, gpu: Gpu) -> None:
    from autogaze_backend.tensorrt_engine.opening import Grid

    Grid.of(plans)


_CHECKS = (_check_runtime, _check_precision, _check_bundle, _check_weights, _check_buckets)


def require_machine(kind: EngineKind, machine: Machine, device: int = 0) -> Gpu:
    """The GPU that a library would run on.

    Raises:
        MissingExtraError: the library or ``cuda-python`` is not installed.
        NoGpuError: there is no such GPU.
    """
    if kind not in machine.libraries:
        reason = machine.library_errors.get(kind) or f"{kind.value} is not installed"
        raise MissingExtraError(reason)
    if machine.cuda_missing:
        raise MissingExtraError(machine.cuda_missing)
    if not machine.gpus:
        raise NoGpuError(
            f"{kind.value} needs an NVIDIA GPU, but CUDA finds none ({machine.gpu_error}); start the container with "
            "`docker run --gpus all`, or install the driver; `nvidia-smi` must list the GPU"
        )
    if device >= len(machine.gpus):
        raise NoGpuError(
            f"device is 'cuda:{device}', but CUDA numbers {len(machine.gpus)} GPUs from 0 on; choose one of "
            "them, or see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        )
    return machine.gpus[device]


def _gpus() -> tuple[tuple[Gpu, ...], str, str, str]:
    """GPUs, why there are none, why ``cuda-python`` cannot be used, and the driver's CUDA version."""
    from autogaze_backend.tensorrt_engine.cuda import import_runtime

    try:
        runtime = import_runtime()
    except MissingExtraError as error:
        return (), str(error), str(error), ""

    def ask(name: str, *arguments: Any) -> Any:
        status, *values = getattr(runtime, name)(*arguments)
        if int(status) != 0:
            _, text = runtime.cudaGetErrorString(status)
            raise NoGpuError(text.decode() if isinstance(text, bytes) else str(text))
        return values[0]

    try:
        driver = int(ask("cudaDriverGetVersion"))
        names = runtime.cudaDeviceAttr
        found = []
        for index in range(ask("cudaGetDeviceCount")):
            major = ask("cudaDeviceGetAttribute", names.cudaDevAttrComputeCapabilityMajor, index)
            minor = ask("cudaDeviceGetAttribute", names.cudaDevAttrComputeCapabilityMinor, index)
            name = ask("cudaGetDeviceProperties", index).name
            found.append(Gpu(name.decode() if isinstance(name, bytes) else str(name), (major, minor)))
    except NoGpuError as error:
        return (), str(error), "", ""
    version = f"{driver // 1000}.{driver % 1000 // 10}"
    return tuple(found), "" if found else "no device", "", version
