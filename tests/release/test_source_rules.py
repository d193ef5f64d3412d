"""What our source does not do: start a shell, unpickle, evaluate text. Read from the syntax tree, not by searching."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "client",
    "python_backend",
    "export",
    "model_repository",
    "release",
    "training",
    "benchmarks",
    "examples",
)

CALLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "pty.spawn",
    "asyncio.create_subprocess_shell",
    "eval",
    "exec",
    "yaml.load",
}
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def sources() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(found) > 150
    return found


def name_of(node: ast.AST) -> str:
    """``a.b.c`` of an attribute or name, the alias of numpy spelled out."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    parts.append({"np": "numpy"}.get(node.id, node.id))
    return ".".join(reversed(parts))


def offences(source: str) -> list[str]:
    """What a module does that none of ours may, with the line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported = [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A call by its bare name would slip through below.
            imported = [f"{node.module}.{item.name}" for item in node.names]
        else:
            imported = []
        for name in imported:
            if name in CALLS or name.split(".")[0] in MODULES:
                found.append(f"{node.lineno}: imports {name}")
        if isinstance(node, ast.Call):
            given = {
                item.arg: item.value.value for item in node.keywords if isinstance(item.value, ast.Constant)
            }
            name = name_of(node.func)
            if name in CALLS or (name == "torch.load" and given.get("weights_only") is not True):
                found.append(f"{node.lineno}: calls {name}")
            for keyword in node.keywords:
                if keyword.arg in ("shell", "allow_pickle") and given.get(keyword.arg) is not False:
                    found.append(f"{node.lineno}: {keyword.arg} is not False")
    return found


@pytest.mark.parametrize(
    "bad",
    [
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nflag = 1\nsubprocess.run('ls', shell=flag)",
        "from os import system",
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('model.pt')",
        "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
        "eval('1')",
    ],
)
def test_the_rule_sees_what_it_forbids(bad):
    assert len(offences(bad)) == 1


def test_no_module_of_ours_starts_a_shell_unpickles_or_evaluates():
    found = {str(path.relative_to(ROOT)): offences(path.read_text(encoding="utf-8")) for path in sources()}
    assert {path: what for path, what in found.items() if what} == {}
