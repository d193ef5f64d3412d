from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from autogaze_backend.serving import HostFacts, UnsupportedHostError, require_supported_host
from autogaze_backend.serving.host import find_libpython

GOOD = HostFacts(
    system="Linux",
    machine="x86_64",
    glibc=(2, 35),
    python=(3, 12),
    implementation="cpython",
    libpython=Path("/usr/lib/libpython3.12.so.1.0"),
    interpreter=Path("/venv/bin/python"),
    stub_interpreter=Path("/venv/bin/python3"),
    same_interpreter=True,
    numpy="1.26.4",
)


def test_a_good_host_is_returned_as_it_is() -> None:
    assert require_supported_host(GOOD) is GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "Darwin", "machine": "arm64"}, "Darwin on arm64.*Linux on x86_64.*container"),
        ({"machine": "aarch64"}, "Linux on aarch64"),
        ({"glibc": (2, 31)}, r"glibc 2\.31.*2\.35 or newer.*Ubuntu 22\.04"),
        ({"glibc": None}, "no glibc"),
        ({"python": (3, 13)}, r"cpython 3\.13.*3\.11 or 3\.12"),
        ({"implementation": "pypy"}, r"pypy 3\.12"),
        ({"libpython": None}, r"no shared libpython.*libpython3\.12.*--enable-shared"),
        ({"same_interpreter": False}, "/venv/bin/python3 is missing or is not.*venv"),
        ({"numpy": "2.1.0"}, r"numpy 2\.1\.0.*empty tensors.*\[server\]"),
        ({"numpy": None}, "no numpy"),
    ],
)
def test_each_fault_names_what_was_found_and_the_remedy(change: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedHostError, match=message):
        require_supported_host(dataclasses.replace(GOOD, **change))


def test_every_fault_is_told_at_once() -> None:
    bad = dataclasses.replace(GOOD, glibc=(2, 31), libpython=None, numpy="2.0.0")
    with pytest.raises(UnsupportedHostError, match=r"(?=.*glibc)(?=.*libpython)(?=.*numpy)"):
        require_supported_host(bad)


def test_a_relocated_python_is_searched_in_its_base_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    monkeypatch.setattr("sysconfig.get_config_var", {"LIBDIR": "/install/lib"}.get)
    expected = Path(sys.base_prefix) / "lib" / name
    assert find_libpython(exists=lambda path: path == expected) == expected
    assert find_libpython(exists=lambda path: False) is None
