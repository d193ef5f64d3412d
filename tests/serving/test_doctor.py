from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from autogaze_backend.engines import ENGINES
from autogaze_backend.plan_selection import Gpu, Machine
from autogaze_backend.plans import EngineKind, PlanTarget
from autogaze_backend.serving import HostFacts
from autogaze_export import doctor
from autogaze_export.doctor import Check, Environment, Status, diagnose
from backend.tensorrt_doubles import write_plans
from serving.serving_helpers import run_command

_HOST = HostFacts(
    system="Linux",
    machine="x86_64",
    glibc=(2, 39),
    python=(3, 12),
    implementation="cpython",
    libpython=Path("/usr/lib/libpython3.12.so.1.0"),
    interpreter=Path("/venv/bin/python"),
    stub_interpreter=Path("/venv/bin/python3"),
    same_interpreter=True,
    numpy="1.26.4",
)
_CPU = Environment(
    host=_HOST,
    shm_bytes=2**31,
    packages={"onnxruntime": "1.32.0", "av": "12.0", "rich": "13.0", "pillow": "10.0"},
    onnxruntime_providers=("CPUExecutionProvider",),
    server=Path("/cache/tritonserver-2.51.0"),
)
_MACHINE = Machine(
    (Gpu("NVIDIA H100", (9, 0)),),
    libraries={EngineKind.TENSORRT: "10.15.1.29"},
    library_errors={EngineKind.TENSORRT_RTX: "tensorrt-rtx is not installed"},
)
_GPU = dataclasses.replace(
    _CPU, gpus=("NVIDIA H100 80GB HBM3",), tensorrt="tensorrt 10.14.1", machine=_MACHINE
)


def _check(environment: Environment, name: str, **changes: object) -> Check:
    checks = {check.name: check for check in diagnose(dataclasses.replace(environment, **changes))}
    return checks[name]


def test_a_cpu_machine_without_gpu_parts_has_no_fault() -> None:
    checks = {check.name: check for check in diagnose(_CPU)}
    absent = {name for name, check in checks.items() if check.status is Status.ABSENT}
    assert absent == {"gpu", "tensorrt", "torch", "engine tensorrt", "engine tensorrt-rtx"}
    assert {check.status for name, check in checks.items() if name not in absent} == {Status.OK}
    assert checks["onnxruntime"].found == "1.32.0 with CPUExecutionProvider; it runs on the CPU"


@pytest.mark.parametrize(
    ("change", "name", "remedy"),
    [
        ({"libpython": None}, "libpython", "libpython3.12"),
        ({"glibc": (2, 31)}, "glibc", "Ubuntu 22.04"),
        ({"python": (3, 13)}, "python", "Python 3.11 or 3.12"),
        ({"numpy": "2.2.0"}, "numpy", "autogaze-triton[server]"),
        ({"system": "Darwin"}, "platform", "container"),
        ({"same_interpreter": False}, "interpreter", "virtual environment"),
    ],
)
def test_a_host_fault_fails_its_own_check_alone(change: dict[str, object], name: str, remedy: str) -> None:
    checks = diagnose(dataclasses.replace(_CPU, host=dataclasses.replace(_HOST, **change)))
    failed = [check for check in checks if check.status is Status.FAIL]
    assert [check.name for check in failed] == [name]
    assert remedy in failed[0].remedy


@pytest.mark.parametrize(
    ("size", "status"),
    [(None, "fail"), (64 * 2**20, "fail"), (284 * 2**20, "fail"), (285 * 2**20, "warn"), (2**30, "ok")],
)
def test_shared_memory_must_hold_a_clip(size: int | None, status: str) -> None:
    check = _check(_CPU, "/dev/shm", shm_bytes=size)
    assert check.status.value == status
    if status == "fail" and size:
        assert "284 MiB" in check.found
        assert "--shm-size=1g" in check.remedy


@pytest.mark.parametrize(
    ("changes", "name", "status", "found"),
    [
        ({"packages": {}, "tensorrt": None}, "onnxruntime", "fail", "not installed"),
        ({"packages": {"torch": "2.9.0"}}, "onnxruntime", "fail", "the engine of the CPU"),
        ({"packages": {"onnxruntime": "1.29.1"}}, "onnxruntime", "fail", "1.29.1.*1.30"),
        (
            {"import_errors": {"onnxruntime": "libgomp.so.1"}},
            "onnxruntime",
            "fail",
            "does not import: libgomp",
        ),
        ({}, "onnxruntime", "ok", "runs on the CPU"),
        ({}, "tensorrt", "ok", "tensorrt 10.14.1"),
        ({"tensorrt": "tensorrt_rtx 1.7.1"}, "tensorrt", "ok", "1.7.1"),
        ({"tensorrt": None, "import_errors": {"tensorrt": "libnvinfer"}}, "tensorrt", "warn", "libnvinfer"),
        (
            {"tensorrt": None, "import_errors": {"tensorrt": "libnvinfer"}, "gpus": ()},
            "tensorrt",
            "absent",
            "libnvinfer",
        ),
        ({"tensorrt": None}, "tensorrt", "absent", "not installed"),
        ({}, "engine tensorrt", "ok", "10.15.1.29 for NVIDIA H100, capability 9.0; --bundle DIR"),
        ({}, "engine tensorrt-rtx", "absent", "tensorrt-rtx is not installed"),
        ({"machine": Machine()}, "engine tensorrt", "absent", "not installed"),
        ({"packages": {"torch": "2.9.0"}, "torch_cuda": "12.8"}, "torch", "ok", "CUDA 12.8"),
        ({"packages": {"torch": "2.9.0+cpu"}}, "torch", "ok", "without CUDA"),
        ({"gpu_error": "driver/library version mismatch"}, "gpu", "warn", "version mismatch"),
        (
            {"server": None, "server_cache": Path("/cache")},
            "embedded server",
            "absent",
            "autogaze serve.*/cache",
        ),
        ({"busy_ports": (8001,)}, "ports", "warn", "^8001 in use"),
        ({"busy_ports": (8003,)}, "ports", "warn", "^8003 in use"),
        ({"packages": {"onnxruntime": "1.32.0"}}, "av", "absent", "not installed"),
    ],
)
def test_each_finding_on_a_gpu_machine(
    changes: dict[str, object], name: str, status: str, found: str
) -> None:
    check = _check(_GPU, name, **changes)
    assert check.status.value == status
    assert re.search(found, check.found)
    # ABSENT and OK may need nothing; a fault always has a way out.
    assert check.remedy or status in ("ok", "absent")


def _named(name: str, checks: tuple[Check, ...]) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_folder_without_weights_fails_with_the_loaders_own_message(tmp_path: Path) -> None:
    check = _named("checkpoint", diagnose(_CPU, checkpoint=str(tmp_path)))
    assert check.status is Status.FAIL
    assert str(tmp_path) in check.found
    assert "model.safetensors" in check.remedy


def test_remedies_name_only_what_there_is() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(
        re.findall(r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1], re.MULTILINE)
    )
    broken = dict.fromkeys(("onnxruntime", "tensorrt"), "broken")
    for gpus in ((), _GPU.gpus):
        for packages in ({}, _CPU.packages, {"torch": "2.9.0+cpu"}):
            for tensorrt in (None, "tensorrt 8.6.1"):
                for errors in ({}, broken):
                    environment = dataclasses.replace(
                        _CPU, gpus=gpus, packages=packages, tensorrt=tensorrt, import_errors=errors
                    )
                    for check in diagnose(environment):
                        assert set(re.findall(r"autogaze-triton\[(\w+)\]", check.remedy)) <= extras
                        assert "--engine" not in check.remedy


def _rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda bundle: (bundle / "manifest.json").unlink(), r"manifest\.json is missing"),
        (lambda bundle: (bundle / "manifest.json").write_text("{"), "no valid JSON"),
        (lambda bundle: (bundle / "manifest.json").write_text("[]"), "format None"),
        (lambda bundle: _rewrite(bundle, lambda manifest: manifest.pop("spec")), "damaged"),
        (lambda bundle: (bundle / "step.onnx").unlink(), r"lacks step\.onnx"),
        (lambda bundle: (bundle / "step.onnx").write_bytes(b"other"), r"step\.onnx has SHA-256"),
    ],
)
def test_a_damaged_bundle_fails_with_the_loaders_own_message(
    bundle: Callable[[], Path], tmp_path: Path, damage: Callable[[Path], object], found: str
) -> None:
    copy = shutil.copytree(bundle(), tmp_path / "bundle")
    damage(copy)
    check = _named("bundle", diagnose(_CPU, bundle=copy))
    assert check.status is Status.FAIL
    assert re.search(found, check.found)
    assert "autogaze build" in check.remedy


def test_a_whole_bundle_is_fine(bundle: Callable[[], Path]) -> None:
    check = _named("bundle", diagnose(_CPU, bundle=bundle()))
    assert check.status is Status.OK
    assert "engine onnxruntime, precision exact" in check.found


def _engines(bundle: Path, environment: Environment) -> dict[str, Check]:
    found = {check.name.removeprefix("engine "): check for check in diagnose(environment, bundle=bundle)}
    return {name: found[name] for name in ENGINES}


def test_engines_are_listed_with_what_auto_takes_and_why_not_the_others(
    bundle: Callable[[], Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle(), tmp_path / "bundle"))
    few: dict[str, Any] = {"rows": (1,), "lengths": (256,), "frames": (1,)}

    def states() -> dict[str, str]:
        return {name: check.status.value for name, check in _engines(copy, _GPU).items()}

    assert states()["tensorrt"] == "absent", "nobody built plans, which is no fault"
    assert f"autogaze build CHECKPOINT {copy} --engine tensorrt" in _engines(copy, _GPU)["tensorrt"].found
    write_plans(
        copy, copy / "plans", target=PlanTarget(EngineKind.TENSORRT, "10.14.1", (9, 0), "exact"), **few
    )
    misfit = _engines(copy, _GPU)["tensorrt"]
    assert misfit.status is Status.WARN
    assert "10.14.1, but 10.15.1.29 is installed" in misfit.found
    assert misfit.remedy.startswith(f"autogaze build CHECKPOINT {copy} --engine tensorrt")
    write_plans(copy, copy / "plans", **few)
    engines = _engines(copy, _GPU)
    assert (engines["tensorrt"].status, engines["tensorrt"].found) == (Status.OK, "fits; 'auto' takes it")
    assert engines["onnxruntime"].found == "fits; 'auto' takes tensorrt before it"
    without = _engines(copy, dataclasses.replace(_GPU, machine=dataclasses.replace(_MACHINE, gpus=())))
    assert "finds none" in without["tensorrt"].found


@pytest.mark.parametrize("port", [8002, 8003])
def test_the_probe_agrees_with_this_machine(port: int) -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", port))
            taken.listen()
        except OSError:
            pass
        environment = Environment.probe()
    assert port in environment.busy_ports
    assert environment.host == HostFacts.probe()
    assert "CPUExecutionProvider" in environment.onnxruntime_providers
    assert environment.packages["tritonclient"]


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(code: int, out: str, err: str) -> None:
        outcome = subprocess.CompletedProcess([], code, out, err)
        monkeypatch.setattr(subprocess, "run", lambda *arguments, **settings: outcome)

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    answer(0, "NVIDIA L4, 23034 MiB, 550.54, 8.9\nNVIDIA L4, 23034 MiB, 550.54, 8.9\n", "")
    assert doctor._gpus() == (("NVIDIA L4, 23034 MiB, 550.54, 8.9",) * 2, "")
    answer(9, "NVIDIA-SMI has failed\n because\n", "")
    assert doctor._gpus() == ((), "NVIDIA-SMI has failed because")


def test_the_command_reports_json_and_fails_with_a_fault(tmp_path: Path) -> None:
    process = run_command("doctor", "--json", "--bundle", str(tmp_path))
    report = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == 1
    assert report["ok"] is False
    bundle = next(check for check in report["checks"] if check["name"] == "bundle")
    assert bundle["status"] == "fail"
    assert "autogaze build" in bundle["remedy"]


def test_the_command_prints_a_table_and_passes_here() -> None:
    process = run_command("doctor")
    table = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert "libpython" in table
    assert "onnxruntime" in table
