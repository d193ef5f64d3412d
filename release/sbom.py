"""Bill of materials: ``python -m release.sbom`` writes what a server's container holds, in CycloneDX."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomllib
from packaging.utils import canonicalize_name

from release.licences import BUNDLED, environment
from release.locks import path_of, read_lock
from release.project import NAME, ROOT, version

DIST = ROOT / "dist"

# What is in the container and in no environment of pip; names and versions as release/bundled.toml tells them.
_EMBEDDED = {
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
    _add_own(bill)
    _check(bill, lock)
    target.write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
    return target


def _add_own(bill: dict[str, Any]) -> None:
    from hashlib import sha256

    digest = sha256(_OPEN_CHECKPOINT.read_bytes()).hexdigest()
    checkpoint = {
        "type": "machine-learning-model",
        "name": "autogaze-open",
        "version": version(),
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    bill["components"] += [_EMBEDDED, checkpoint]
    # Which index a file came from says more of the building machine than of the file.
    for component in bill["components"]:
        component["externalReferences"] = [
            reference
            for reference in component.get("externalReferences", [])
            if reference["type"] not in ("distribution", "distribution-intake")
        ]


def _check(bill: dict[str, Any], lock: str) -> None:
    inside = {(canonicalize_name(part["name"]), part.get("version")) for part in bill["components"]}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    missing = {
        (package.name, package.version) for package in read_lock(path_of(lock, python)).values()
    } - inside
    if missing:
        raise ValueError(f"the bill of {lock} lacks {sorted(missing)}")
    server = tomllib.loads(BUNDLED.read_text(encoding="utf-8"))["component"]
    if not any(str(_EMBEDDED["version"]) in item["what"] for item in server):
        raise ValueError(f"{BUNDLED.name} names another tritonserver than {_EMBEDDED['version']}")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ["server"]:
        written = write_sbom(chosen)
        components = json.loads(written.read_text(encoding="utf-8"))["components"]
        print(f"wrote {written.relative_to(ROOT)}: {len(components)} components")
