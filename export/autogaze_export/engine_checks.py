"""The engines' part of ``autogaze doctor``: which one ``auto`` takes, and why not the others."""

from __future__ import annotations

import re
from collections.abc import Iterator

from autogaze_backend.bundle import Bundle
from autogaze_backend.devices import Device
from autogaze_backend.engines import ENGINES
from autogaze_backend.plan_selection import Machine, require_machine
from autogaze_backend.plans import EngineKind
from autogaze_client._errors import AutoGazeError, CheckpointError

from autogaze_export.findings import Check, Status


def check_engines(bundle: Bundle, machine: Machine) -> Iterator[Check]:
    """A line for each engine: whether it fits the bundle and the machine, and which of them ``auto`` takes."""
    device = Device.parse("auto").on(machine)
    reasons = {name: entry.fits(bundle, device) for name, entry in ENGINES.items()}
    chosen = next((name for name, reason in reasons.items() if reason is None), None)
    for name, reason in reasons.items():
        if reason is not None:
            yield _passed_over(name, reason)
        elif name == chosen:
            yield Check(_title(name), Status.OK, "fits; 'auto' takes it")
        else:
            yield Check(_title(name), Status.OK, f"fits; 'auto' takes {chosen} before it")
    if chosen is None:
        remedy = "follow one of the engines' lines above"
        yield Check("engine auto", Status.FAIL, f"no engine runs {bundle.path} here", remedy)


def check_libraries(machine: Machine) -> Iterator[Check]:
    """A line for each TensorRT, where no bundle is named: whether library and GPU are here."""
    for kind in EngineKind:
        try:
            gpu = require_machine(kind, machine)
        except AutoGazeError as error:
            yield Check(_title(kind.value), Status.ABSENT, str(error))
        else:
            found = f"{machine.libraries[kind]} for {gpu.name}, capability {'{}.{}'.format(*gpu.compute_capability)}"
            yield Check(
                _title(kind.value), Status.OK, f"{found}; --bundle DIR says whether a bundle's plans fit"
            )


def _passed_over(name: str, reason: AutoGazeError) -> Check:
    command = re.search(r"`(autogaze build [^`]+)`", str(reason))
    # Plans that are here and do not fit are worth a warning: somebody built them to be used.
    if isinstance(reason, CheckpointError):
        remedy = command[1] if command else "build the plans again"
        return Check(_title(name), Status.WARN, str(reason), remedy)
    return Check(_title(name), Status.ABSENT, str(reason))


def _title(name: str) -> str:
    return f"engine {name}"
