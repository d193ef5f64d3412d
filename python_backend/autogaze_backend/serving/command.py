"""The command line and environment of ``tritonserver``."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from autogaze_backend.serving.config import ModelControlMode, TritonServerConfig
from autogaze_backend.serving.host import HostFacts
from autogaze_backend.serving.installation import TritonInstallation
from autogaze_backend.serving.ports import ServerPorts
from autogaze_backend.serving.security import PROTOCOLS, RestrictedProtocols

__all__ = ["PROBE_HEADER", "local_probe", "server_command", "server_environment"]

PROBE_HEADER = "autogaze-probe"


def server_command(
    config: TritonServerConfig,
    installation: TritonInstallation,
    ports: ServerPorts,
    name: str,
    secret: str = "",
) -> list[str]:
    """The arguments that start the server.

    Args:
        config: how it is to run.
        installation: what is run.
        ports: that it listens on.
        name: its id, which also prefixes its shared memory regions.
        secret: opens what HTTP does not tell everyone, under TLS; unused otherwise.
    """
    command = [
        str(installation.binary),
        f"--id={name}",
        f"--model-repository={config.model_repository}",
        f"--backend-directory={installation.backends()}",
        f"--cache-directory={installation.caches}",
        f"--http-address={config.http_host}",
        f"--http-port={ports.http}",
        f"--grpc-address={config.host}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={config.host}",
        f"--metrics-port={ports.metrics}",
        f"--log-verbose={config.log_verbose}",
        f"--exit-timeout-secs={math.ceil(config.exit_timeout)}",
        f"--model-control-mode={config.model_control_mode.value}",
        # Regions of its own: two servers on a machine must not remove each other's.
        f"--backend-config=python,shm-region-prefix-name={name}",
    ]
    if config.model_control_mode is ModelControlMode.EXPLICIT:
        command += [f"--load-model={model}" for model in config.load_models]
    elif _is_configured(config.model_repository):
        command.append("--disable-auto-complete-config")
    command += [restriction.grpc_flag() for restriction in config.restricted]
    if config.tls is None:
        command += [restriction.http_flag() for restriction in config.restricted]
    else:
        command += [*config.tls.flags(), local_probe(secret).http_flag()]
    return command + list(config.extra_args)


def local_probe(secret: str) -> RestrictedProtocols:
    """Under TLS: everything of the plain HTTP service but health is for the process that started the server."""
    closed = tuple(name for name in PROTOCOLS if name != "health")
    return RestrictedProtocols(closed, PROBE_HEADER, secret)


def server_environment(
    config: TritonServerConfig,
    installation: TritonInstallation,
    facts: HostFacts,
    inherited: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The variables that the server and its stubs run with.

    The stub is an embedded Python: it finds its library through ``LD_LIBRARY_PATH`` and its site-packages
    through the first ``python3`` on ``PATH``.
    """
    environment = {name: value for name, value in inherited.items() if name != "PYTHONHOME"}
    environment.update(config.environment)
    libraries = [str(installation.libraries)]
    if facts.libpython is not None:
        libraries.append(str(facts.libpython.parent))
    _prepend(environment, "LD_LIBRARY_PATH", libraries)
    _prepend(environment, "PATH", [str(facts.stub_interpreter.parent)])
    # Frames pass between the models in fresh memory of many megabytes: huge pages spare most of its page faults
    # (docs/operations.md). A kernel without them takes no notice.
    tunables = environment.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" not in tunables:
        environment["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    if sys.prefix != sys.base_prefix:
        environment["VIRTUAL_ENV"] = str(Path(sys.prefix))
    return environment


def _is_configured(repository: Path) -> bool:
    """Whether no model leaves a part of its configuration to its own code.

    Triton runs a process of its own for each python model to ask; without, a server is there in half the time.
    """
    models = [folder for folder in repository.iterdir() if folder.is_dir()]
    sources = [path.read_text(encoding="utf-8", errors="replace") for path in repository.glob("*/*/model.py")]
    return all((model / "config.pbtxt").is_file() for model in models) and not any(
        "def auto_complete_config" in source for source in sources
    )


def _prepend(environment: dict[str, str], name: str, folders: list[str]) -> None:
    present = environment.get(name)
    environment[name] = os.pathsep.join([*folders, present] if present else folders)
