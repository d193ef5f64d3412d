from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import autogaze_backend
import pytest
import tritonclient.grpc
from autogaze_backend.serving import (
    ModelControlMode,
    ServerStartError,
    TritonInstallation,
    TritonServer,
    TritonServerConfig,
)
from autogaze_client._errors import DeadlineExceededError, InvalidInputError
from serving.serving_helpers import double, free_ports, server_processes, wait_for, write_model

pytestmark = pytest.mark.server


def test_a_ready_server_answers_through_grpc(echo_server: TritonServer) -> None:
    assert double(echo_server.url, [0.0, 1.5, -3.0]) == [0.0, 3.0, -6.0]


def test_the_stub_imports_the_packages_of_this_environment(echo_server: TritonServer) -> None:
    line = next(line for line in echo_server.log_lines if "echo: prefix=" in line)
    assert f"prefix={sys.prefix} " in line
    assert f"backend={autogaze_backend.__file__}" in line


def test_http_and_metrics_are_where_the_urls_say(echo_server: TritonServer) -> None:
    with urllib.request.urlopen(f"http://{echo_server.http_url}/v2/health/ready") as answer:
        assert answer.status == 200
    with urllib.request.urlopen(echo_server.metrics_url) as page:
        assert "nv_inference_request_success" in page.read().decode()


def test_only_this_machine_reaches_it(echo_server: TritonServer) -> None:
    ports = echo_server.ports
    listening = {
        address
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        for address, state in [(line.split()[1], line.split()[3])]
        if state == "0A" and int(address.rpartition(":")[2], 16) in (ports.http, ports.grpc, ports.metrics)
    }
    assert len(listening) == 3
    # 127.0.0.1 in the kernel's byte order, alone or mapped into IPv6.
    assert all(address.rpartition(":")[0].endswith("0100007F") for address in listening)


def test_the_response_cache_is_off(echo_server: TritonServer) -> None:
    row = next(line for line in echo_server.log_lines if "cache_enabled" in line)
    assert row.split("|")[2].strip() == "0"


def test_stop_ends_every_process_and_removes_the_shared_memory(
    installation: TritonInstallation, echo_repository: Path
) -> None:
    before = set(server_processes(os.getpid()))
    with TritonServer(free_ports(echo_repository), installation=installation) as server:
        server.wait_until_ready(60)
        started = {pid: name for pid, name in server_processes(os.getpid()).items() if pid not in before}
        regions = set(os.listdir("/dev/shm"))
        assert {"tritonserver", "triton_python_backend_stub"} <= set(started.values())
        url = server.url
    assert not set(started) & set(server_processes(os.getpid()))
    gone = regions - set(os.listdir("/dev/shm"))
    assert any(name.startswith(f"autogaze-{os.getpid()}-") for name in gone)
    with pytest.raises(tritonclient.grpc.InferenceServerException):
        double(url, [1.0])
    server.stop()


def test_every_log_line_reaches_the_callback_and_environment_reaches_the_model(
    installation: TritonInstallation, echo_repository: Path
) -> None:
    lines: list[str] = []
    config = free_ports(echo_repository, environment={"AUTOGAZE_BUNDLE": "/bundles/seeded"})
    with TritonServer(config, on_log=lines.append, installation=installation) as server:
        server.wait_until_ready(60)
    assert any("echo: bundle=/bundles/seeded" in line for line in lines)
    assert any("successfully unloaded 'echo'" in line for line in lines)
    assert server.log_lines == tuple(lines[-500:])


def test_the_default_log_has_the_level_of_each_line(
    installation: TritonInstallation, echo_repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "autogaze_backend.serving.tritonserver")
    with TritonServer(free_ports(echo_repository), installation=installation) as server:
        server.wait_until_ready(60)
    levels = {record.getMessage(): record.levelno for record in caplog.records}
    assert levels["echo: bundle=None"] == logging.WARNING
    assert levels["loading: echo:1"] == logging.INFO


def test_two_servers_run_at_once_on_free_ports(
    echo_server: TritonServer, installation: TritonInstallation, echo_repository: Path
) -> None:
    with TritonServer(free_ports(echo_repository), installation=installation) as second:
        second.wait_until_ready(60)
        assert double(second.url, [2.0]) == [4.0]
        assert double(echo_server.url, [3.0]) == [6.0]
    assert double(echo_server.url, [4.0]) == [8.0]


def test_explicit_mode_loads_the_named_models_alone(installation: TritonInstallation, tmp_path: Path) -> None:
    source = "class TritonPythonModel:\n    def execute(self, requests): return []\n"
    write_model(write_model(tmp_path, "wanted", source), "other", source)
    config = free_ports(tmp_path, model_control_mode=ModelControlMode.EXPLICIT, load_models=("wanted",))
    with TritonServer(config, installation=installation) as server:
        server.wait_until_ready(60)
        with tritonclient.grpc.InferenceServerClient(server.url) as client:
            assert client.is_model_ready("wanted")
            assert not client.is_model_ready("other")


def test_a_model_that_fails_to_load_ends_the_wait_with_its_reason(
    installation: TritonInstallation, broken_repository: Path
) -> None:
    server = TritonServer(free_ports(broken_repository), installation=installation)
    with server, pytest.raises(ServerStartError) as caught:
        server.wait_until_ready(60)
    message = str(caught.value)
    assert "exit status 1" in message
    assert message.count("the bundle is for compute capability 8.9, this GPU has 9.0") == 1
    assert "'broken'" in message
    assert "NVML" not in message


def test_a_server_that_is_not_ready_in_time_shows_its_log(
    installation: TritonInstallation, tmp_path: Path
) -> None:
    slow = """
        import time
        class TritonPythonModel:
            def initialize(self, args):
                time.sleep(60)
    """
    config = free_ports(write_model(tmp_path, "slow", slow), exit_timeout=1.0)
    said: list[str] = []
    server = TritonServer(config, installation=installation, on_log=said.append)
    with server:
        assert wait_for(lambda: any("slow" in line for line in said), 60)
        with pytest.raises(DeadlineExceededError, match=r"(?s)still not ready.*slow"):
            server.wait_until_ready(1)
    assert not server_processes_of(server)


def server_processes_of(server: TritonServer) -> dict[int, str]:
    return {
        pid: name for pid, name in server_processes(os.getpid()).items() if server.name in _arguments(pid)
    }


def _arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_a_taken_port_is_named_with_its_option(echo_repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = TritonServer(
            TritonServerConfig(echo_repository, http_port=0, grpc_port=port, metrics_port=0)
        )
        with pytest.raises(ServerStartError, match=rf"grpc port {port} .*--grpc-port"):
            server.start()


def test_a_free_port_lost_to_another_process_is_replaced(
    installation: TritonInstallation, echo_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autogaze_backend.serving import server as module

    choose, calls = module.choose_ports, []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def lose_the_first(config: TritonServerConfig) -> object:
            ports = choose(config)
            calls.append(ports)
            return (
                type(ports)(ports.http, taken.getsockname()[1], ports.metrics) if len(calls) == 1 else ports
            )

        monkeypatch.setattr(module, "choose_ports", lose_the_first)
        with TritonServer(free_ports(echo_repository), installation=installation) as server:
            server.wait_until_ready(60)
            assert double(server.url, [5.0]) == [10.0]
    assert len(calls) == 2


def test_a_killed_owner_leaves_no_process_and_no_shared_memory(
    installation: TritonInstallation, echo_repository: Path
) -> None:
    owner = _own_a_server(echo_repository)
    running = server_processes(owner.pid)
    assert {"tritonserver", "triton_python_backend_stub"} <= set(running.values())
    owner.kill()
    owner.wait()
    assert wait_for(lambda: not server_processes(owner.pid)), server_processes(owner.pid)
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(f"autogaze-{owner.pid}-")]


def test_a_killed_server_is_noticed_and_its_stubs_end(
    installation: TritonInstallation, echo_repository: Path
) -> None:
    with TritonServer(free_ports(echo_repository), installation=installation) as server:
        server.wait_until_ready(60)
        pid = next(pid for pid, name in server_processes_of(server).items() if name == "tritonserver")
        os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: server.poll() is not None)
        assert server.poll() == 128 + signal.SIGKILL
        assert "exit status 137" in str(server.exit_error())
        assert not server_processes_of(server)


def test_a_killed_guard_takes_the_server_with_it(
    installation: TritonInstallation, echo_repository: Path
) -> None:
    owner = _own_a_server(echo_repository)
    try:
        guard = next(pid for pid, name in server_processes(owner.pid).items() if name.startswith("python"))
        os.kill(guard, signal.SIGKILL)
        assert wait_for(lambda: "tritonserver" not in server_processes(owner.pid).values())
        # A stub asks now and then whether its server is alive.
        assert wait_for(lambda: not server_processes(owner.pid)), server_processes(owner.pid)
    finally:
        owner.kill()
        owner.wait()


def test_starting_twice_and_asking_before_the_start_are_errors(
    installation: TritonInstallation, echo_repository: Path
) -> None:
    server = TritonServer(free_ports(echo_repository), installation=installation)
    with pytest.raises(ServerStartError, match=r"start\(\)"):
        _ = server.url
    with pytest.raises(ServerStartError, match=r"start\(\)"):
        server.poll()
    with server, pytest.raises(ServerStartError, match="running already"):
        server.start()
    with pytest.raises(InvalidInputError, match="timeout is 0"):
        server.wait_until_ready(0)


def _own_a_server(repository: Path) -> subprocess.Popen[str]:
    """A process that runs a ready server and waits."""
    code = f"""
        import time
        from pathlib import Path
        from autogaze_backend.serving import TritonServer, TritonServerConfig

        with TritonServer(TritonServerConfig(Path({str(repository)!r}), 0, 0, 0)) as server:
            server.wait_until_ready(60)
            print("ready", flush=True)
            time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    return owner
