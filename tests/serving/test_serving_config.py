from __future__ import annotations

from pathlib import Path

import pytest
from autogaze_backend.serving import HostFacts, ModelControlMode, TritonInstallation, TritonServerConfig
from autogaze_backend.serving.command import server_command, server_environment
from autogaze_backend.serving.logs import explain_failure
from autogaze_backend.serving.ports import ServerPorts
from autogaze_client._errors import InvalidInputError, NotFoundError

_INSTALLATION = TritonInstallation(Path("/cache/tritonserver"))
_PORTS = ServerPorts(http=1, grpc=2, metrics=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"http_port": 65536}, "http_port is 65536"),
        ({"grpc_port": -1}, "grpc_port is -1"),
        ({"http_port": 9000, "metrics_port": 9000}, "must differ"),
        ({"host": "example.org"}, "host is 'example.org'.*127.0.0.1"),
        ({"host": "::1"}, "IPv4"),
        ({"log_verbose": -1}, "log_verbose is -1"),
        ({"exit_timeout": 0.0}, "exit_timeout is 0.0"),
        ({"exit_timeout": float("nan")}, "exit_timeout is nan"),
        ({"load_models": ("a",)}, "EXPLICIT"),
        ({"environment": {"A=B": "1"}}, "'A=B'"),
        ({"extra_args": ("--cache-config=local,size=1048576",)}, "response cache stays off"),
        ({"extra_args": ("--grpc-address=0.0.0.0",)}, "--grpc-address=0.0.0.0.*remove it"),
    ],
)
def test_a_value_outside_its_rule_is_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        TritonServerConfig(tmp_path, **settings)


def test_a_missing_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing-here"):
        TritonServerConfig(tmp_path / "nothing-here")


def test_the_command_binds_every_service_to_the_host(tmp_path: Path) -> None:
    command = server_command(TritonServerConfig(tmp_path), _INSTALLATION, _PORTS, "autogaze-1-ab")
    assert {flag for flag in command if "-address=" in flag} == {
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
    }
    assert {"--http-port=1", "--grpc-port=2", "--metrics-port=3"} <= set(command)
    assert not [flag for flag in command if flag.startswith("--cache-config")]


def test_explicit_models_and_extra_flags_are_passed(tmp_path: Path) -> None:
    config = TritonServerConfig(
        tmp_path,
        host="localhost",
        model_control_mode=ModelControlMode.EXPLICIT,
        load_models=("a", "b"),
        extra_args=("--metrics-config=summary_latencies=true",),
    )
    command = server_command(config, _INSTALLATION, _PORTS, "autogaze-1-ab")
    assert [flag for flag in command if flag.startswith("--load-model")] == [
        "--load-model=a",
        "--load-model=b",
    ]
    assert "--model-control-mode=explicit" in command
    assert command[-1] == "--metrics-config=summary_latencies=true"
    assert "--grpc-address=127.0.0.1" in command


def test_the_environment_finds_libpython_and_the_packages_of_this_python(tmp_path: Path) -> None:
    facts = HostFacts(
        system="Linux",
        machine="x86_64",
        glibc=(2, 36),
        python=(3, 11),
        implementation="cpython",
        libpython=Path("/opt/python/lib/libpython3.11.so.1.0"),
        interpreter=Path("/venv/bin/python"),
        stub_interpreter=Path("/venv/bin/python3"),
        same_interpreter=True,
        numpy="1.26.4",
    )
    inherited = {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/cuda", "PYTHONHOME": "/elsewhere", "HOME": "/root"}
    config = TritonServerConfig(tmp_path, environment={"AUTOGAZE_BUNDLE": "/bundle"})
    environment = server_environment(config, _INSTALLATION, facts, inherited)
    assert environment["PATH"] == "/venv/bin:/usr/bin"
    assert environment["LD_LIBRARY_PATH"] == "/cache/tritonserver/nvidia_pytriton.libs:/opt/python/lib:/cuda"
    assert environment["AUTOGAZE_BUNDLE"] == "/bundle"
    assert environment["HOME"] == "/root"
    assert "PYTHONHOME" not in environment
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    for present, wanted in {
        "glibc.cpu.x86_shstk=on": "glibc.cpu.x86_shstk=on:glibc.malloc.hugetlb=1",
        "glibc.malloc.hugetlb=0": "glibc.malloc.hugetlb=0",
    }.items():
        environment = server_environment(config, _INSTALLATION, facts, {"GLIBC_TUNABLES": present})
        assert environment["GLIBC_TUNABLES"] == wanted


def test_a_failure_is_explained_once_and_without_the_noise_of_a_machine_without_gpu() -> None:
    log = r"""
E1123 03:10:53.950230 4443 server.cc:241] "CudaDriverHelper has not been initialized."
I1123 03:10:53.951862 4443 model_lifecycle.cc:472] "loading: echo:1"
E1123 03:10:55.593289 4443 backend_model.cc:692] "ERROR: Failed to create instance: no \"x\"\nAt: line 3\n"
E1123 03:10:55.593488 4443 model_lifecycle.cc:642] "failed to load 'echo': no \"x\"\nAt: line 3\n"
Error: Failed to initialize NVML
error: creating server: Internal - failed to load all models"""
    assert explain_failure(log.splitlines()).splitlines() == [
        "failed to load 'echo': no \"x\"",
        "At: line 3",
        "error: creating server: Internal - failed to load all models",
    ]


def test_without_an_error_the_end_of_the_log_explains() -> None:
    assert explain_failure([f"line {number}" for number in range(50)], limit=2) == "line 48\nline 49"
