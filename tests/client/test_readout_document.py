"""The guide's blocks run, its tables name every function, and so do the examples of the docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import autogaze_client
import numpy as np
import pytest
from autogaze_client import readout

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "readout.md").read_text(encoding="utf-8")
VOCABULARY = [f"autogaze_client.{name}" for name in ("_points", "fixations", "geometry", "layouts")]
MODULES = [f"autogaze_client.readout.{module.name}" for module in pkgutil.iter_modules(readout.__path__)]


def test_the_blocks_run_in_order():
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/readout.md", "exec"), namespace)


def test_every_public_function_is_named():
    public = {name for module in MODULES for name in getattr(importlib.import_module(module), "__all__", ())}
    functions = {name for name in public & set(autogaze_client.__all__) if name[0].islower()}
    assert len(functions) > 45
    assert {name for name in functions if not re.search(rf"\b{name}\b", TEXT)} == set()


@pytest.mark.parametrize("name", [*VOCABULARY, *MODULES])
def test_docstring_examples(name):
    module = importlib.import_module(name)
    names = {"np": np, **{public: getattr(autogaze_client, public) for public in autogaze_client.__all__}}
    assert doctest.testmod(module, extraglobs=names).failed == 0
