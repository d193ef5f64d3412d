"""Bill of materials: ``python -m release.sbom`` writes what a server's container holds, in CycloneDX."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from release.licences import environment
from release.locks import path_of, read_lock
from release.project import NAME, ROOT, version

DIST = ROOT / "dist"

# What is in the container and in no environment of pip; names and versions as release/bundled.toml tells them.
EMBEDDED = {
    "type": "application",
    "name": "tritonserver",
    "version": "2.51.0",
    "description": "NVIDIA Triton Inference Server with its python backend, from the wheel nvidia-pytriton 0.7.0",
    "licenses": [{"license": {"id": "BSD-3-Clause"}}],
    "purl": "pkg:generic/tritonserver@2.51.0",
}
_OPEN_CHECKPOINT = ROOT / "checkpoints" / "open" / "model.safetensors"


def write_sbom(lock: str = "server") -> Path:
    """Writes the bill of an environment made from a lock, plus the embedded server and the open checkpoint.

    Raises:
        CalledProcessError: the environment cannot be made, or the tool fails.
        ValueError: the bill does not hold what the lock names.
    """
    DIST.mkdir(exist_ok=True)
    target = DIST / f"{NAME}-{version()}-{lock}.cdx.json"
    inside = environment(lock, ROOT / "build" / f"sbom-{lock}-env")
    # pip itself is how packages come in, and stays out of a container.
    subprocess.run([inside, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools", "pip"], check=True)
    tool = Path(sys.executable).parent / "cyclonedx-py"
    subprocess.run(
        [
            tool, "environment", inside, "--pyproject", ROOT / "pyproject.toml", "--mc-type", "application",
            "--output-reproducible", "--output-format", "JSON", "--output-file", target,
        ],
        check=True,
    )  # fmt: skip
    bill = json.loads(target.read_text(encoding="utf-8"))
    complete(bill)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if missing := missing_packages(bill, lock, python):
        raise ValueError(f"the bill of {lock} lacks {missing}")
    target.write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
    return target


def complete(bill: dict[str, Any]) -> None:
    """Adds what no environment of pip holds, and leaves out where the building machine found its files."""
    checkpoint = {
        "type": "machine-learning-model",
        "name": "autogaze-open",
        "version": version(),
        "hashes": [{"alg": "SHA-256", "content": sha256(_OPEN_CHECKPOINT.read_bytes()).hexdigest()}],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    bill["components"] += [EMBEDDED, checkpoint]
    for component in bill["components"]:
        references = component.pop("externalReferences", [])
        kept = [part for part in references if part["type"] not in ("distribution", "distribution-intake")]
        if kept:
            component["externalReferences"] = kept


def missing_packages(bill: dict[str, Any], lock: str, python: str) -> list[tuple[str, str]]:
    """Names and versions of a lock's packages that a bill does not hold."""
    inside = {(canonicalize_name(part["name"]), part.get("version")) for part in bill["components"]}
    locked = {(package.name, package.version) for package in read_lock(path_of(lock, python)).values()}
    return sorted(locked - inside)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ["server"]:
        written = write_sbom(chosen)
        components = json.loads(written.read_text(encoding="utf-8"))["components"]
        print(f"wrote {written.relative_to(ROOT)}: {len(components)} components")
