"""What the embedded Triton server needs of the machine and of the Python that serves."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from autogaze_backend.serving.errors import UnsupportedHostError

__all__ = [
    "MINIMUM_GLIBC",
    "SUPPORTED_PYTHONS",
    "HostFacts",
    "HostFault",
    "host_faults",
    "require_supported_host",
]

SUPPORTED_PYTHONS = ((3, 11), (3, 12))
"""CPython versions whose stub the server carries and for which numpy < 2 has wheels."""

MINIMUM_GLIBC = (2, 35)
"""The wheel's platform tag is ``manylinux_2_35_x86_64``."""


@dataclass(frozen=True)
class HostFacts:
    """What is known of this machine; tests build it by hand, everyone else calls :meth:`probe`.

    Attributes:
        system: Operating system as ``platform.system()`` names it.
        machine: Architecture as ``platform.machine()`` names it.
        glibc: Version of the GNU C library, None where the C library is another one.
        python: ``(major, minor)`` of the running Python.
        implementation: ``"cpython"`` or another implementation's name.
        libpython: The shared libpython of this very interpreter, None if it has none.
        interpreter: The running interpreter's path.
        stub_interpreter: The ``python3`` beside it, from which the server's stub takes its site-packages.
        same_interpreter: Whether these two are one program.
        numpy: Installed numpy version, None if there is none.
    """

    system: str
    machine: str
    glibc: tuple[int, int] | None
    python: tuple[int, int]
    implementation: str
    libpython: Path | None
    interpreter: Path
    stub_interpreter: Path
    same_interpreter: bool
    numpy: str | None

    @classmethod
    def probe(cls) -> HostFacts:
        """Looks at the running interpreter and machine; imports nothing and starts nothing."""
        interpreter = Path(sys.executable)
        beside = interpreter.parent / "python3"
        return cls(
            system=platform.system(),
            machine=platform.machine(),
            glibc=_glibc(),
            python=(sys.version_info[0], sys.version_info[1]),
            implementation=sys.implementation.name,
            libpython=find_libpython(),
            interpreter=interpreter,
            stub_interpreter=beside,
            same_interpreter=beside.exists() and beside.resolve() == interpreter.resolve(),
            numpy=_version("numpy"),
        )


@dataclass(frozen=True)
class HostFault:
    """One thing that stops the embedded server here.

    Attributes:
        subject: ``"platform"``, ``"glibc"``, ``"python"``, ``"libpython"``, ``"interpreter"`` or ``"numpy"``.
        found: What was found and the rule that it breaks.
        remedy: What to do about it.
    """

    subject: str
    found: str
    remedy: str

    def __str__(self) -> str:
        """``found: remedy``."""
        return f"{self.found}: {self.remedy}"


def find_libpython(exists: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """The shared library of the running interpreter, or None where Python was linked statically.

    ``LIBDIR`` comes first; relocated builds still carry their build machine's path there, so the library
    folders of the base prefix follow. Other folders are not searched: another build's libpython with the
    same version number must not run this one's extension modules.
    """
    name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    libdir = sysconfig.get_config_var("LIBDIR")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    base = Path(sys.base_prefix)
    folders = [Path(libdir), Path(libdir) / multiarch] if libdir else []
    folders += [base / "lib", base / "lib" / multiarch, base / "lib64"]
    return next((folder / name for folder in folders if exists(folder / name)), None)


def host_faults(facts: HostFacts) -> tuple[HostFault, ...]:
    """Everything that stops the embedded server on such a machine; empty when it can run."""
    container = "run the production container instead (docs/operations.md), or use a remote server"
    supported = " or ".join(f"{major}.{minor}" for major, minor in SUPPORTED_PYTHONS)
    faults = []
    if (facts.system, facts.machine) != ("Linux", "x86_64"):
        found = f"{facts.system} on {facts.machine}, but the embedded server is built for Linux on x86_64"
        faults.append(HostFault("platform", found, container))
    elif facts.glibc is None or facts.glibc < MINIMUM_GLIBC:
        here = "no glibc" if facts.glibc is None else f"glibc {facts.glibc[0]}.{facts.glibc[1]}"
        found = f"{here}, but the embedded server needs glibc {MINIMUM_GLIBC[0]}.{MINIMUM_GLIBC[1]} or newer"
        faults.append(HostFault("glibc", found, f"use Ubuntu 22.04, Debian 12 or newer, or {container}"))
    if facts.implementation != "cpython" or facts.python not in SUPPORTED_PYTHONS:
        here = f"{facts.implementation} {facts.python[0]}.{facts.python[1]}"
        found = f"{here}, but the embedded server has stubs for CPython {supported}"
        faults.append(HostFault("python", found, f"make the virtual environment with Python {supported}"))
    elif facts.libpython is None:
        found = f"Python {facts.python[0]}.{facts.python[1]} at {facts.interpreter} has no shared libpython"
        remedy = (
            f"install the distribution's libpython{facts.python[0]}.{facts.python[1]}, or build Python with "
            "--enable-shared (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared), and remake the environment"
        )
        faults.append(HostFault("libpython", found, remedy))
    if not facts.same_interpreter:
        found = (
            f"{facts.stub_interpreter} is missing or is not {facts.interpreter}, "
            "but the server's stub takes its packages from it"
        )
        faults.append(
            HostFault("interpreter", found, "run from a virtual environment (python3 -m venv .venv)")
        )
    if facts.numpy is None or int(facts.numpy.split(".")[0]) >= 2:
        here = "no numpy" if facts.numpy is None else f"numpy {facts.numpy}"
        found = f"{here}, but the server's stub returns empty tensors with any but numpy 1"
        faults.append(HostFault("numpy", found, "pip install 'autogaze-triton[server]'"))
    return tuple(faults)


def require_supported_host(facts: HostFacts | None = None) -> HostFacts:
    """Returns the facts if the embedded server can run here.

    Raises:
        UnsupportedHostError: It cannot; the message names every reason and its remedy.
    """
    facts = facts or HostFacts.probe()
    if faults := host_faults(facts):
        raise UnsupportedHostError(
            "the embedded Triton server cannot run here: " + "; ".join(map(str, faults))
        )
    return facts


def _glibc() -> tuple[int, int] | None:
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return None
    name, _, number = text.partition(" ")
    parts = number.split(".")
    if name != "glibc" or len(parts) < 2:
        return None
    return int(parts[0]), int(parts[1])


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
