"""The processes of a running server, from ``/proc``: who the stubs are, and whether they live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ServerProcess", "children_of", "stubs_of"]

_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class ServerProcess:
    """One process.

    Attributes:
        pid: its number, which the kernel gives away again after its end,
        started: its start in clock ticks since the boot, which tells it from a later one of the same number.
        model: of a stub the ``model.py`` that it runs; empty for others.
        instance: of a stub the name of its model instance, such as ``autogaze_generate_0_0``.
    """

    pid: int
    started: int
    model: str = ""
    instance: str = ""

    @property
    def role(self) -> tuple[str, str]:
        """What a stub is there for; when a model is loaded anew, its new stub has the role of the old one."""
        return self.model, self.instance

    def is_alive(self) -> bool:
        """Whether it runs; what was killed and waits for its parent to notice does not."""
        fields = _stat(self.pid)
        return fields is not None and fields[0] not in "ZX" and int(fields[19]) == self.started


def children_of(pid: int) -> list[ServerProcess]:
    """Living processes whose parent is ``pid``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields is None or int(fields[1]) != pid or fields[0] in "ZX":
            continue
        model, instance = _about_stub(folder)
        found.append(ServerProcess(int(folder.name), int(fields[19]), model, instance))
    return found


def stubs_of(server: int) -> frozenset[ServerProcess]:
    """The living python stubs of the ``tritonserver`` with this pid.

    Those that it only asks for a model's configuration, and ends then, are left out: they bear the model's own name.
    """
    return frozenset(
        child
        for child in children_of(server)
        if child.instance and child.instance != Path(child.model).parents[1].name
    )


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, from the state on; None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name in brackets may hold anything.
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) > 19 else None


def _about_stub(folder: Path) -> tuple[str, str]:
    try:
        arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "", ""
    # STUB MODEL.PY REGION SIZE GROWTH PARENT BACKEND IPC-OFFSET INSTANCE RUNTIME
    if Path(arguments[0]).name != _STUB or len(arguments) < 9:
        return "", ""
    return arguments[1], arguments[8]
