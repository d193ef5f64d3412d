"""A supervised server: what is noticed, what is replaced, when it is given up, and what the page says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
from autogaze_backend.serving import (
    ModelControlMode,
    ServerStartError,
    SupervisedServer,
    SupervisionConfig,
    SupervisionState,
    SupervisionStatus,
)
from autogaze_backend.serving.processes import ServerProcess, children_of
from autogaze_backend.serving.status_page import StatusPage
from autogaze_client import InvalidInputError
from serving.serving_helpers import double, free_ports, server_processes, wait_for, write_model

LONG = 120.0
READY = SupervisionState.READY


def probe(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def kill_stub(server: SupervisedServer, instance: str = "echo_0_0", number: int = signal.SIGKILL) -> int:
    (stub,) = [stub for stub in server.server.stubs() if stub.instance == instance]
    os.kill(stub.pid, number)
    return stub.pid


class Changes:
    """The statuses in order."""

    def __init__(self) -> None:
        self.seen: list[SupervisionStatus] = []
        self._changed = threading.Condition()

    def __call__(self, status: SupervisionStatus) -> None:
        with self._changed:
            self.seen.append(status)
            self._changed.notify_all()

    def wait(self, state: SupervisionState, times: int = 1) -> SupervisionStatus:
        with self._changed:
            assert self._changed.wait_for(lambda: self.states().count(state) >= times, LONG), self.seen
            return [status for status in self.seen if status.state is state][times - 1]

    def states(self) -> list[SupervisionState]:
        return [status.state for status in self.seen]


@pytest.fixture
def changes() -> Changes:
    return Changes()


# --- without a server --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 70000}, "port is 70000"),
        ({"canary_failures": 0}, "canary_failures is 0"),
        ({"max_restarts": -1}, "max_restarts is -1"),
        ({"canary_interval": 0.0}, "canary_interval is 0"),
        ({"backoff": float("nan")}, "backoff is nan"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        SupervisionConfig(**settings)


@pytest.fixture
def page() -> Iterator[tuple[StatusPage, list[SupervisionStatus]]]:
    status = [SupervisionStatus(SupervisionState.STARTING)]
    running = StatusPage("127.0.0.1", 0, lambda: status[0])
    yield running, status
    running.close()


@pytest.mark.parametrize(
    ("state", "ready", "live"),
    [
        (SupervisionState.STARTING, 503, 200),
        (SupervisionState.READY, 200, 200),
        (SupervisionState.FAILING, 503, 200),
        (SupervisionState.RESTARTING, 503, 200),
        (SupervisionState.STOPPED, 503, 503),
        (SupervisionState.GIVEN_UP, 503, 503),
    ],
)
def test_the_page_tells_ready_from_live(page, state, ready, live):
    served, status = page
    status[0] = SupervisionStatus(state, "a reason", 3, 2.5)
    base = f"http://127.0.0.1:{served.port}"
    for path, code in (("/ready", ready), ("/live?verbose", live)):
        found, text = probe(base + path)
        assert found == code
        assert json.loads(text) == {
            "state": state.value,
            "reason": "a reason",
            "restarts": 3,
            "last_restart_seconds": 2.5,
        }
    assert probe(base + "/")[0] == 404
    request = urllib.request.Request(base + "/live", method="HEAD")
    if live == 200:
        with urllib.request.urlopen(request) as answer:
            assert answer.read() == b""
    code, metrics = probe(base + "/metrics")
    assert code == 200
    assert f"autogaze_supervisor_ready {int(ready == 200)}\n" in metrics
    assert "autogaze_supervisor_restarts_total 3\n" in metrics
    assert "autogaze_supervisor_last_restart_seconds 2.5\n" in metrics


def test_a_probe_that_says_nothing_holds_no_other_up(page):
    served, status = page
    status[0] = SupervisionStatus(SupervisionState.READY)
    with socket.create_connection(("127.0.0.1", served.port)):
        assert probe(f"http://127.0.0.1:{served.port}/ready")[0] == 200


def test_a_taken_page_port_is_named_with_its_option(page):
    served, _ = page
    with pytest.raises(ServerStartError, match=rf"supervisor port {served.port} .*--supervisor-port"):
        StatusPage("127.0.0.1", served.port, lambda: SupervisionStatus(SupervisionState.READY))


def test_a_killed_process_is_dead_before_its_parent_notices():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        (found,) = [process for process in children_of(os.getpid()) if process.pid == child.pid]
        assert found.is_alive()
        assert not ServerProcess(child.pid, found.started + 1).is_alive(), "another one of that number"
        child.kill()
        # Nobody has waited for it yet.
        assert wait_for(lambda: not found.is_alive())
        assert child.pid not in {process.pid for process in children_of(os.getpid())}
    finally:
        child.kill()
        child.wait()
    assert not found.is_alive()


# --- with one ------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_killed_stub_brings_another_server_on_the_same_ports(installation, echo_repository, changes):
    config = free_ports(echo_repository)
    supervision = SupervisionConfig(port=0)
    with SupervisedServer(config, supervision, installation=installation, on_change=changes) as server:
        assert probe(f"{server.status_url}/ready")[0] == 503
        server.wait_until_ready(LONG)
        assert probe(f"{server.status_url}/ready")[0] == 200
        url, first = server.url, server.server.name
        assert double(url, [1.0]) == [2.0]
        pid = kill_stub(server)
        fault = changes.wait(SupervisionState.RESTARTING)
        assert fault.reason == f"the process {pid} of echo_0_0 has died"
        assert not fault.is_ready
        assert fault.is_live
        again = changes.wait(READY, 2)
        assert again.restarts == 1
        assert again.last_restart_seconds > 0
        assert server.url == url
        assert server.server.name != first
        assert double(url, [4.0]) == [8.0]
        assert probe(f"{server.status_url}/ready")[0] == 200
        assert not server.wait(0.01)
        # And the processes and regions of the old one are gone.
        assert not [name for name in os.listdir("/dev/shm") if name.startswith(first)]
        status_url = server.status_url
    assert server.wait(0)
    assert changes.states()[-1] is SupervisionState.STOPPED
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{status_url}/live", timeout=5)


@pytest.mark.server
@pytest.mark.parametrize("victim", ["server", "guard"])
def test_a_killed_server_is_replaced(installation, echo_repository, changes, victim):
    with SupervisedServer(
        free_ports(echo_repository), installation=installation, on_change=changes
    ) as server:
        server.wait_until_ready(LONG)
        name = server.server.name
        pid = server.server.process().pid
        if victim == "guard":
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(pid, signal.SIGKILL)
        assert "ended with exit status" in changes.wait(SupervisionState.RESTARTING).reason
        changes.wait(READY, 2)
        assert double(server.url, [1.0]) == [2.0]
        assert not [region for region in os.listdir("/dev/shm") if region.startswith(name)]


@pytest.mark.server
def test_a_server_that_cannot_come_back_is_given_up_with_the_reason(installation, tmp_path, changes):
    repository = write_model(
        tmp_path, "echo", "class TritonPythonModel:\n    def execute(self, requests): return []\n"
    )
    supervision = SupervisionConfig(port=0, max_restarts=2, backoff=0.1)
    with SupervisedServer(
        free_ports(repository), supervision, installation=installation, on_change=changes
    ) as server:
        server.wait_until_ready(LONG)
        (repository / "echo" / "1" / "model.py").write_text("raise RuntimeError('the disk is gone')\n")
        kill_stub(server)
        with pytest.raises(
            ServerStartError, match=r"(?s)the disk is gone.*gave up after 2 restarts within 600 s"
        ):
            server.wait(LONG)
        assert server.status.state is SupervisionState.GIVEN_UP
        assert probe(f"{server.status_url}/live")[0] == 503
        assert changes.states().count(SupervisionState.RESTARTING) == 3
        assert not server.server.stubs()


@pytest.mark.server
def test_restarts_wait_longer_and_longer(installation, echo_repository, changes, caplog):
    supervision = SupervisionConfig(max_restarts=2, backoff=0.2)
    with SupervisedServer(
        free_ports(echo_repository), supervision, installation=installation, on_change=changes
    ) as server:
        server.wait_until_ready(LONG)
        for times in (2, 3):
            kill_stub(server)
            changes.wait(READY, times)
        kill_stub(server)
        with pytest.raises(ServerStartError, match="gave up after 2 restarts"):
            server.wait(LONG)
    said = [record.getMessage() for record in caplog.records if record.name == "autogaze.supervisor"]
    restarts = [line.partition(":")[0] for line in said if line.startswith("restarting")]
    assert restarts == ["restarting the server", "restarting the server in 0.2 s"]


@pytest.mark.server
@pytest.mark.parametrize("moment", ["waiting", "loading"])
def test_a_stop_during_a_restart_leaves_nothing(installation, tmp_path, changes, moment):
    source = """
        import pathlib, time
        class TritonPythonModel:
            def initialize(self, args):
                flag = pathlib.Path(args["model_repository"]) / "slow"
                if flag.exists():
                    (flag.parent / "loading").touch()
                    time.sleep(600)
            def execute(self, requests):
                return []
    """
    repository = write_model(tmp_path / "repository", "echo", source)
    before = set(server_processes(os.getpid()))
    supervision = SupervisionConfig(backoff=600 if moment == "waiting" else 1.0, max_backoff=600)
    with SupervisedServer(
        free_ports(repository, exit_timeout=1.0), supervision, installation=installation, on_change=changes
    ) as server:
        server.wait_until_ready(LONG)
        if moment == "waiting":
            kill_stub(server)
            changes.wait(READY, 2)
            kill_stub(server)
            changes.wait(SupervisionState.RESTARTING, 2)
        else:
            (repository / "echo" / "slow").touch()
            kill_stub(server)
            assert wait_for((repository / "echo" / "loading").exists, LONG)
    assert changes.states()[-1] is SupervisionState.STOPPED
    assert not set(server_processes(os.getpid())) - before
    assert server.wait(0)


@pytest.mark.server
def test_in_explicit_mode_an_unload_is_no_fault_and_a_death_is(installation, tmp_path, changes):
    source = "class TritonPythonModel:\n    def execute(self, requests): return []\n"
    write_model(write_model(tmp_path, "kept", source), "other", source)
    config = free_ports(tmp_path, model_control_mode=ModelControlMode.EXPLICIT, load_models=("kept", "other"))
    with SupervisedServer(config, installation=installation, on_change=changes) as server:
        server.wait_until_ready(LONG)
        with tritonclient.grpc.InferenceServerClient(server.url) as client:
            client.unload_model("other")
            assert wait_for(lambda: {stub.instance for stub in server.server.stubs()} == {"kept_0_0"})
            (tmp_path / "kept" / "1" / "model.py").touch()
            (old,) = server.server.stubs()
            client.load_model("kept")
            assert wait_for(lambda: not old.is_alive()), "it was not loaded anew"
            time.sleep(2.5)  # both looks of the watch
        assert changes.states() == [READY]
        kill_stub(server, "kept_0_0")
        changes.wait(READY, 2)


@pytest.mark.server
def test_a_first_start_that_fails_is_not_repeated(installation, broken_repository, changes):
    with (
        SupervisedServer(
            free_ports(broken_repository), installation=installation, on_change=changes
        ) as server,
        pytest.raises(ServerStartError, match=r"compute capability 8\.9"),
    ):
        server.wait_until_ready(LONG)
    assert SupervisionState.RESTARTING not in changes.states()


@pytest.mark.server
def test_it_starts_once(installation, echo_repository):
    with SupervisedServer(free_ports(echo_repository), installation=installation) as server:
        with pytest.raises(ServerStartError, match="running already"):
            server.start()
        server.wait_until_ready(LONG)
        with pytest.raises(InvalidInputError, match="for the start"):
            server.wait_until_ready(LONG)
    with pytest.raises(ServerStartError, match="started before"):
        server.start()
