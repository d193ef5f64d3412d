"""What a wheel and a source distribution hold, and must not hold."""

from __future__ import annotations

import re
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from release.project import NAME, requirements, version

PACKAGES = ("autogaze_client", "autogaze_backend", "autogaze_export")
_MODELS = ("autogaze", "autogaze_generate", "autogaze_ingest", "autogaze_stream")
_CHECKPOINT = ("config.json", "model.safetensors", "preprocessor_config.json", "MODEL_CARD.md")
_GRAPHS = ("encoder", "prefill", "prefill.masked", "step", "step.masked")

# Never in what is published, whatever the working tree holds.
_UNWANTED = re.compile(
    r"(^|/)(tests?|__pycache__|\.pytest_cache|\.mypy_cache|\.ruff_cache|\.hypothesis|\.venv|build|dist|\.git)(/|$)"
    r"|\.(pyc|pyo|plan|engine|log|lock)$|(^|/)bundle/|(^|/)\.env"
)
_WHEEL_ROOTS = {*PACKAGES, f"{NAME.replace('-', '_')}-{version()}.dist-info"}
_MAX_WHEEL = 16 * 2**20


def wheel_problems(path: Path) -> list[str]:
    """What is wrong with a wheel; nothing where it is fine."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        info = f"{NAME.replace('-', '_')}-{version()}.dist-info"
        metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    found = [f"it holds {name}" for name in names if _UNWANTED.search(name)]
    found += [
        f"it holds {name}, outside the packages" for name in names if name.split("/")[0] not in _WHEEL_ROOTS
    ]
    found += [f"it lacks {name}" for name in sorted(_wanted(info) - set(names))]
    if not any(PurePosixPath(name).match("autogaze_export/shipped_graphs/*/encoder.onnx") for name in names):
        found.append("it lacks the shipped graphs")
    for name in names:
        if name.endswith("/encoder.onnx"):
            folder = name.removesuffix("/encoder.onnx")
            found += [f"it lacks {folder}/{g}.onnx" for g in _GRAPHS if f"{folder}/{g}.onnx" not in names]
    if path.stat().st_size > _MAX_WHEEL:
        found.append(f"it has {path.stat().st_size} bytes, over {_MAX_WHEEL}: something large slipped in")
    if metadata["Version"] != version() or metadata["License-Expression"] != "Apache-2.0":
        found.append(f"its metadata says {metadata['Version']}, {metadata['License-Expression']}")
    base = {str(r).split(";")[0] for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r}
    wanted = {str(requirement) for requirement in requirements()}
    if base != wanted:
        found.append(f"its base dependencies are {sorted(base)}, not {sorted(wanted)}")
    if "autogaze = autogaze_client._cli:main" not in entry_points:
        found.append("it lacks the command autogaze")
    return found


def _wanted(info: str) -> set[str]:
    wanted = {f"{package}/{file}" for package in PACKAGES for file in ("__init__.py", "py.typed")}
    wanted |= {f"autogaze_backend/model_repository/{model}/config.pbtxt" for model in _MODELS}
    wanted |= {
        f"autogaze_backend/model_repository/{model}/1/model.py" for model in _MODELS if model != "autogaze"
    }
    wanted |= {f"autogaze_export/checkpoints/open/{file}" for file in _CHECKPOINT}
    wanted |= {"autogaze_client/viewer/static/index.html", f"{info}/licenses/LICENSE"}
    return wanted


def sdist_problems(path: Path) -> list[str]:
    """What is wrong with a source distribution, which may hold tests; nothing where it is fine."""
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO"}
    found = [f"it lacks {name}" for name in sorted(wanted - names)]
    unwanted = re.compile(_UNWANTED.pattern.replace("(tests?|", "("))
    return found + [f"it holds {name}" for name in sorted(names) if unwanted.search(name)]
