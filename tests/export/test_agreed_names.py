"""The names that acceptance checks call (DESIGN): signatures of the exporter, the model and its streams."""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points, metadata

import autogaze_export
import pytest
from autogaze_backend import GazeModel

KEYWORD = inspect.Parameter.KEYWORD_ONLY
BUDGETS = ["gazing_ratio", "task_loss_requirement", "max_gaze_tokens_each_frame"]


def check(function, positional, keywords):
    """Positional parameters in order, and keyword-only ones with their defaults; more may be there."""
    parameters = list(inspect.signature(function).parameters.values())
    assert [item.name for item in parameters if item.kind is not KEYWORD] == positional
    found = {item.name: item.default for item in parameters if item.kind is KEYWORD}
    assert {name: found.get(name, "missing") for name in keywords} == keywords


def test_build():
    check(autogaze_export.build, ["checkpoint", "out_dir"], {"engine": "onnxruntime", "precision": "exact"})


def test_the_model():
    check(GazeModel.load, ["bundle"], {"device": "cpu"})
    knobs = dict.fromkeys([*BUDGETS, "target_scales", "target_patch_size"])
    check(GazeModel.generate, ["self", "video"], knobs)


def test_streams(model):
    with model().open_stream() as stream:
        check(stream.step, ["frame"], dict.fromkeys(BUDGETS))
        assert next(iter(inspect.signature(stream.push).parameters)) == "clip"
        assert inspect.signature(stream.reset).parameters == {}
    check(GazeModel.step_streams, ["self", "items"], dict.fromkeys(BUDGETS))


@pytest.mark.parametrize("command", ["export", "build", "serve", "gaze", "view", "eval", "doctor", "bench"])
def test_commands(command):
    found = {entry.name: entry for entry in entry_points(group="autogaze.commands")}
    assert command in found, "make setup installs new commands"
    assert found[command].load()().help


@pytest.mark.parametrize(
    "extra", ["server", "video", "viz", "view", "cuda", "export", "train", "demo", "dev"]
)
def test_extras(extra):
    assert extra in metadata("autogaze-triton").get_all("Provides-Extra")
