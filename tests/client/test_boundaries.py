"""What may import what, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import autogaze_client
import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT, BACKEND, EXPORT = "autogaze_client", "autogaze_backend", "autogaze_export"
TREES = {CLIENT: ROOT / "client", BACKEND: ROOT / "python_backend", EXPORT: ROOT / "export"}
FORBIDDEN = [(CLIENT, BACKEND), (CLIENT, EXPORT), (BACKEND, EXPORT)]


def imported_packages(tree: Path) -> dict[str, set[str]]:
    found = {}
    for path in sorted(tree.rglob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
        found[str(path.relative_to(ROOT))] = names
    return found


@pytest.mark.parametrize(("package", "other"), FORBIDDEN)
def test_layers(package, other):
    imports = imported_packages(TREES[package])
    assert imports
    assert [path for path, names in imports.items() if other in names] == []


def test_every_public_name_is_there():
    assert sorted(set(autogaze_client.__all__)) == sorted(autogaze_client.__all__)
    for name in autogaze_client.__all__:
        value = getattr(autogaze_client, name)
        assert getattr(value, "__name__", name) == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = autogaze_client.nothing


@pytest.mark.parametrize("statement", ["import autogaze_client", "from autogaze_client import *"])
def test_importing_the_client_loads_nothing_optional(statement):
    heavy = {"av", "PIL", "rich", "torch", "onnxruntime", "onnx", BACKEND, EXPORT}
    script = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert heavy & set(done.stdout.split()) == set()


def test_the_vocabulary_alone_loads_no_grpc():
    script = "import sys\nfrom autogaze_client import AutoGazeGenerateOutput\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"grpc", "tritonclient"} & set(done.stdout.split())
