"""Looks for what would stop AutoGaze on this machine, and says what to do about it.

Facts and judgement are apart: :meth:`Environment.probe` looks, :func:`diagnose` judges. A test, or a report
from another machine, hands :func:`diagnose` an :class:`Environment` of its own.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autogaze_backend.bundle import Bundle
from autogaze_backend.plan_selection import Machine
from autogaze_backend.serving import HostFacts, cache_directory, find_installation
from autogaze_backend.serving.host import host_faults
from autogaze_backend.serving.ports import is_port_free
from autogaze_client._errors import AutoGazeError

from autogaze_export.engine_checks import check_engines, check_libraries
from autogaze_export.findings import Check, Status

__all__ = ["Check", "Environment", "Status", "diagnose"]

MINIMUM_ONNXRUNTIME = (1, 30)
"""The graphs use opset 24, which ONNX Runtime runs completely from here on."""

DEFAULT_PORTS = (8000, 8001, 8002, 8003)
"""HTTP, gRPC, metrics, and the supervision of ``autogaze serve``."""

_MIB = 2**20
_REFERENCE_CLIP = 16 * 1080 * 1920 * 3
# Triton's python backend keeps each tensor that a python model reads or writes in /dev/shm (191 MiB measured
# for an echo of this clip): read by autogaze_ingest, written by it, read by autogaze_generate.
SHM_NEED = 3 * _REFERENCE_CLIP
"""Bytes of ``/dev/shm`` that one clip of 16 RGB frames of 1920x1080 takes while it is served."""

SHM_COMFORT = 1024 * _MIB
"""What the deployment files ask for: several clips at once; the regions grow and do not shrink."""

_OPTIONAL = {"av": "video", "rich": "video", "pillow": "viz"}
_DISTRIBUTIONS = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "tritonclient", *_OPTIONAL)
_TENSORRT_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


@dataclass(frozen=True)
class Environment:
    """The facts that :func:`diagnose` judges.

    Attributes:
        host: Machine and Python.
        shm_bytes: Size of ``/dev/shm``, None where there is none.
        gpus: One description a GPU; empty on a CPU machine.
        gpu_error: What ``nvidia-smi`` complained of, if it is here and failed.
        packages: Installed distributions of interest and their versions.
        onnxruntime_providers: Execution providers that ONNX Runtime offers.
        tensorrt: TensorRT module and version, None if none imports.
        torch_cuda: CUDA version that torch was built for; None for a CPU build or no torch.
        import_errors: Modules that are installed and do not import, with the reason.
        server: Folder of the fetched embedded server, None before it was fetched.
        server_cache: Where it would be fetched to.
        busy_ports: Those of the default ports that something listens on.
        machine: What engines on a GPU ask for: GPUs as CUDA sees them, versions of TensorRT.
    """

    host: HostFacts
    shm_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    gpu_error: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    onnxruntime_providers: tuple[str, ...] = ()
    tensorrt: str | None = None
    torch_cuda: str | None = None
    import_errors: Mapping[str, str] = field(default_factory=dict)
    server: Path | None = None
    server_cache: Path = Path()
    busy_ports: tuple[int, ...] = ()
    machine: Machine = field(default_factory=Machine)

    @classmethod
    def probe(cls) -> Environment:
        """Looks at this machine. Torch is not imported; ONNX Runtime and TensorRT are, if installed."""
        errors: dict[str, str] = {}
        installation = find_installation()
        gpus, gpu_error = _gpus()
        return cls(
            host=HostFacts.probe(),
            shm_bytes=_shm_bytes(),
            gpus=gpus,
            gpu_error=gpu_error,
            packages=_packages(),
            onnxruntime_providers=_onnxruntime_providers(errors),
            tensorrt=_tensorrt(errors),
            torch_cuda=_torch_cuda(),
            import_errors=errors,
            server=installation.root if installation else None,
            server_cache=cache_directory(),
            busy_ports=tuple(port for port in DEFAULT_PORTS if not is_port_free("127.0.0.1", port)),
            machine=Machine.probe(),
        )


def diagnose(
    environment: Environment, *, checkpoint: str | None = None, bundle: Path | None = None
) -> tuple[Check, ...]:
    """Judges the facts, and the checkpoint and bundle if they are named.

    Args:
        environment: What is known of the machine.
        checkpoint: Folder or hub id of a checkpoint; it is loaded (and downloaded, for a hub id).
        bundle: Folder that ``autogaze build`` wrote.
    """
    checks = [
        *_check_host(environment.host),
        _check_shm(environment.shm_bytes),
        _check_gpu(environment),
        _check_onnxruntime(environment),
        _check_tensorrt(environment),
        _check_torch(environment),
        *(_check_optional(environment, name, extra) for name, extra in _OPTIONAL.items()),
        _check_server(environment),
        _check_ports(environment.busy_ports),
    ]
    if checkpoint is not None:
        checks.append(_check_checkpoint(checkpoint))
    if bundle is None:
        checks += check_libraries(environment.machine)
    else:
        checks += _check_bundle(bundle, environment.machine)
    return tuple(checks)


def _check_host(host: HostFacts) -> list[Check]:
    fine = {
        "platform": f"{host.system} on {host.machine}",
        "glibc": ".".join(map(str, host.glibc)) if host.glibc else "none",
        "python": f"{host.implementation} {'.'.join(map(str, host.python))}",
        "libpython": str(host.libpython or "not looked for"),
        "interpreter": str(host.interpreter),
        "numpy": str(host.numpy),
    }
    faults = {fault.subject: fault for fault in host_faults(host)}
    unknown = {"glibc"} if "platform" in faults else set()
    if "python" in faults:
        unknown.add("libpython")
    checks = []
    for subject, found in fine.items():
        if fault := faults.get(subject):
            checks.append(Check(subject, Status.FAIL, fault.found, fault.remedy))
        elif subject in unknown:
            checks.append(Check(subject, Status.ABSENT, "not judged: see above"))
        else:
            checks.append(Check(subject, Status.OK, found))
    return checks


def _check_shm(size: int | None) -> Check:
    need = f"one clip of 16 frames of 1920x1080 takes {SHM_NEED // _MIB} MiB there"
    remedy = (
        "give the container more: docker run --shm-size=1g, shm_size: 1gb in compose, or a memory emptyDir"
    )
    if size is None:
        return Check("/dev/shm", Status.FAIL, f"not mounted, and {need}", "mount a tmpfs at /dev/shm")
    found = f"{size // _MIB} MiB"
    if size < SHM_NEED:
        return Check("/dev/shm", Status.FAIL, f"{found}, but {need}", remedy)
    if size < SHM_COMFORT:
        return Check("/dev/shm", Status.WARN, f"{found}: {need}, so few clips fit at once", remedy)
    return Check("/dev/shm", Status.OK, found)


def _check_gpu(environment: Environment) -> Check:
    if environment.gpu_error:
        return Check(
            "gpu",
            Status.WARN,
            f"nvidia-smi failed: {environment.gpu_error}",
            "install the driver that matches the kernel module, or start the container with --gpus all",
        )
    if not environment.gpus:
        return Check("gpu", Status.ABSENT, "no NVIDIA GPU: engines run on the CPU")
    return Check("gpu", Status.OK, "; ".join(environment.gpus))


def _check_onnxruntime(environment: Environment) -> Check:
    name, install = "onnxruntime", "pip install 'autogaze-triton[server]'"
    version = environment.packages.get("onnxruntime-gpu") or environment.packages.get("onnxruntime")
    if version is None:
        return Check(name, Status.FAIL, "not installed, and it is the engine of the CPU", install)
    if name in environment.import_errors:
        return Check(
            name, Status.FAIL, f"{version} does not import: {environment.import_errors[name]}", install
        )
    if _numbers(version)[:2] < MINIMUM_ONNXRUNTIME:
        rule = f"{version}, but the graphs need {'.'.join(map(str, MINIMUM_ONNXRUNTIME))} or newer (opset 24)"
        return Check(name, Status.FAIL, rule, install)
    providers = ", ".join(environment.onnxruntime_providers) or "no execution provider"
    return Check(name, Status.OK, f"{version} with {providers}; it runs on the CPU")


def _check_tensorrt(environment: Environment) -> Check:
    if environment.tensorrt is not None:
        return Check("tensorrt", Status.OK, environment.tensorrt)
    broken = [name for name in _TENSORRT_MODULES if name in environment.import_errors]
    if broken:
        reason = f"{broken[0]} does not import: {environment.import_errors[broken[0]]}"
        if environment.gpus:
            remedy = (
                "install the libraries that it misses, or leave TensorRT out: other engines do not need it"
            )
            return Check("tensorrt", Status.WARN, reason, remedy)
        return Check("tensorrt", Status.ABSENT, reason)
    return Check("tensorrt", Status.ABSENT, "not installed: plans for GPUs can be neither built nor run")


def _check_torch(environment: Environment) -> Check:
    version = environment.packages.get("torch")
    if version is None:
        return Check(
            "torch", Status.ABSENT, "not installed: the engine torch and re-tracing the graphs need it"
        )
    built = f"built for CUDA {environment.torch_cuda}" if environment.torch_cuda else "built without CUDA"
    return Check(
        "torch", Status.OK, f"{version}, {built}; for the engine torch and for re-tracing the graphs"
    )


def _check_optional(environment: Environment, name: str, extra: str) -> Check:
    version = environment.packages.get(name)
    if version is None:
        return Check(name, Status.ABSENT, "not installed", f"pip install 'autogaze-triton[{extra}]'")
    return Check(name, Status.OK, version)


def _check_server(environment: Environment) -> Check:
    if environment.server is None:
        found = f"not fetched yet; 'autogaze serve' downloads it (55 MB, once) to {environment.server_cache}"
        return Check("embedded server", Status.ABSENT, found)
    return Check("embedded server", Status.OK, str(environment.server))


def _check_ports(busy: tuple[int, ...]) -> Check:
    if not busy:
        return Check("ports", Status.OK, f"{', '.join(map(str, DEFAULT_PORTS))} are free")
    found = f"{', '.join(map(str, busy))} in use"
    remedy = "stop what listens there, or choose others: --http-port, --grpc-port, --metrics-port, --supervisor-port"
    return Check("ports", Status.WARN, found, remedy)


def _check_checkpoint(source: str) -> Check:
    remedy = "name a folder with config.json and model.safetensors, or a hub id such as owner/name"
    try:
        loaded: Any = importlib.import_module("autogaze_export.checkpoint").load_checkpoint(source)
    except AutoGazeError as error:
        return Check("checkpoint", Status.FAIL, str(error), remedy)
    except Exception as error:
        return Check("checkpoint", Status.FAIL, f"{source}: {type(error).__name__}: {error}", remedy)
    kind = getattr(loaded, "stored_dtype", "")
    return Check("checkpoint", Status.OK, f"{source} loads" + (f", stored as {kind}" if kind else ""))


def _check_bundle(bundle: Path, machine: Machine) -> list[Check]:
    remedy = f"write it again with 'autogaze build CHECKPOINT {bundle}'"
    try:
        loaded = Bundle.load(bundle)
    except AutoGazeError as error:
        return [Check("bundle", Status.FAIL, str(error), remedy)]
    except Exception as error:
        return [Check("bundle", Status.FAIL, f"{bundle}: {type(error).__name__}: {error}", remedy)]
    found = f"{bundle}, engine {loaded.engine}, precision {loaded.precision}, every file as its manifest says"
    return [Check("bundle", Status.OK, found), *check_engines(loaded, machine)]


def _shm_bytes() -> int | None:
    try:
        stats = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return None
    return stats.f_frsize * stats.f_blocks


def _gpus() -> tuple[tuple[str, ...], str]:
    if tool := shutil.which("nvidia-smi"):
        query = [tool, "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"]
        try:
            outcome = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return (), str(error)
        lines = tuple(line.strip() for line in outcome.stdout.splitlines() if line.strip())
        if outcome.returncode != 0:
            return (), " ".join((outcome.stderr or outcome.stdout).split()) or f"status {outcome.returncode}"
        return lines, ""
    models = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", information.read_text(errors="replace"), re.MULTILINE)
        models.append(match[1] if match else "NVIDIA GPU")
    return tuple(models), ""


def _packages() -> dict[str, str]:
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _import(module: str, errors: dict[str, str]) -> Any:
    """The module, or None if it is not installed; one that is and fails leaves its reason in ``errors``."""
    if find_spec(module) is None:
        return None
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken native library may raise anything
        errors[module] = " ".join(str(error).split()) or type(error).__name__
        return None


def _onnxruntime_providers(errors: dict[str, str]) -> tuple[str, ...]:
    module = _import("onnxruntime", errors)
    return tuple(module.get_available_providers()) if module else ()


def _tensorrt(errors: dict[str, str]) -> str | None:
    for name in _TENSORRT_MODULES:
        if module := _import(name, errors):
            return f"{name} {getattr(module, '__version__', 'of unknown version')}"
    return None


def _torch_cuda() -> str | None:
    # Importing torch takes seconds; the file that names its CUDA version can be read.
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))
