"""A bundle is what lies in its folder: no name, and no link, leads out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from autogaze_backend import GazeModel
from autogaze_backend.bundle import Bundle
from autogaze_client import CheckpointError


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    return shutil.copytree(bundle(), tmp_path / "bundle")


def rename_in_manifest(folder: Path, name: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["weights"]["file"] = name
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("how", ["..", "absolute", "below", "a folder", "nothing"])
def test_a_name_that_leaves_the_folder_is_refused(how, copy):
    outside = shutil.copy(copy / "weights.safetensors", copy.parent / "weights.safetensors")
    (copy / "deep").mkdir()
    shutil.copy(copy / "weights.safetensors", copy / "deep")
    name = {
        "..": "../weights.safetensors",
        "absolute": str(outside),
        "below": "deep/weights.safetensors",
        "a folder": "deep",
        "nothing": "",
    }[how]
    rename_in_manifest(copy, name)
    with pytest.raises(CheckpointError, match=r"outside the bundle|lacks deep|lacks ;|names "):
        Bundle.load(copy)


@pytest.mark.parametrize("target", ["outside", "inside"])
def test_a_link_in_a_bundle_is_refused_even_where_its_content_is_right(target, copy):
    weights = copy / "weights.safetensors"
    moved = copy.parent / "moved" if target == "outside" else copy / "moved"
    weights.rename(moved)
    weights.symlink_to(moved)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors, which is outside the bundle or a link"):
        Bundle.load(copy)


def test_the_folder_itself_may_be_a_link(copy, tmp_path):
    """The operator names it, and may switch between two with a link."""
    link = tmp_path / "current"
    link.symlink_to(copy)
    assert GazeModel.load(link).bundle.path == copy
