"""A repository of several checkpoints: what is written and refused; tests/server/test_served_versions.py serves it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from autogaze_backend.serving import model_repository_path
from autogaze_backend.serving.versions import current_version, repository_versions, write_repository
from autogaze_client import CheckpointError, InvalidInputError, NotFoundError


@pytest.fixture
def bundles(tmp_path) -> dict[int, Path]:
    """Folders that look like bundles; nothing here loads them."""
    made = {}
    for version in (1, 2, 3):
        made[version] = tmp_path / f"bundle{version}"
        made[version].mkdir()
        (made[version] / "manifest.json").write_text(json.dumps({"checkpoint": version}))
    return made


def policy(repository: Path, model: str) -> list[int]:
    text = (repository / model / "config.pbtxt").read_text()
    match = re.search(r"version_policy \{ specific \{ versions: \[(.*)\] \} \}", text)
    assert match
    return [int(number) for number in match[1].split(",")]


def pinned(repository: Path, ensemble: str) -> int:
    text = (repository / ensemble / "config.pbtxt").read_text()
    assert f'name: "{ensemble}"' in text
    match = re.search(r'model_name: "autogaze_generate"\s+model_version: (-?\d+)', text)
    assert match
    return int(match[1])


def test_two_checkpoints_lie_side_by_side(tmp_path, bundles):
    out = write_repository(tmp_path / "repository", {1: bundles[1], 2: bundles[2]}, current=1)
    assert (repository_versions(out), current_version(out)) == ((1, 2), 1)
    assert [pinned(out, name) for name in ("autogaze", "autogaze_v1", "autogaze_v2")] == [1, 1, 2]
    assert policy(out, "autogaze_generate") == [1, 2]
    assert policy(out, "autogaze_stream") == [1], "version 2 is not current yet"
    for model in ("autogaze_generate", "autogaze_stream"):
        for version in (1, 2):
            manifest = json.loads((out / model / str(version) / "bundle" / "manifest.json").read_text())
            assert manifest == {"checkpoint": version}
            assert (out / model / str(version) / "model.py").is_file()
    assert (out / "autogaze_generate" / "warmup").is_dir()
    shipped = model_repository_path()
    for model in ("autogaze_ingest",):
        assert (out / model / "config.pbtxt").read_text() == (shipped / model / "config.pbtxt").read_text()


def test_promotion_and_rollback_change_two_files(tmp_path, bundles):
    out = write_repository(tmp_path / "repository", {1: bundles[1], 2: bundles[2]}, current=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    write_repository(out, current=2)
    changed = {
        str(path.relative_to(out))
        for path in out.rglob("*")
        if path.is_file() and before.get(path) != path.stat().st_mtime_ns
    }
    assert changed == {"autogaze/config.pbtxt", "autogaze_stream/config.pbtxt"}
    assert (pinned(out, "autogaze"), policy(out, "autogaze_stream")) == (2, [1, 2])
    write_repository(out, current=1)
    assert (pinned(out, "autogaze"), policy(out, "autogaze_stream")) == (1, [1])


def test_what_an_operator_set_stays(tmp_path, bundles):
    out = write_repository(tmp_path / "repository", {1: bundles[1], 2: bundles[2]}, current=1)
    for name in ("autogaze_generate", "autogaze_stream", "autogaze"):
        config = out / name / "config.pbtxt"
        config.write_text(config.read_text() + "\n# ours\n")
    write_repository(out, {3: bundles[3]}, current=2)
    for name in ("autogaze_generate", "autogaze_stream", "autogaze"):
        assert (out / name / "config.pbtxt").read_text().endswith("# ours\n")
    assert (pinned(out, "autogaze"), policy(out, "autogaze_generate")) == (2, [1, 2, 3])


def test_a_version_joins_without_becoming_current_and_another_is_dropped(tmp_path, bundles):
    out = write_repository(tmp_path / "repository", {1: bundles[1], 2: bundles[2]})
    assert current_version(out) == 2, "the highest of a new repository"
    write_repository(out, {3: bundles[3]}, drop=[1])
    assert (repository_versions(out), current_version(out)) == ((2, 3), 2)
    assert policy(out, "autogaze_generate") == [2, 3]
    assert not (out / "autogaze_v1").exists()
    assert not (out / "autogaze_generate" / "1").exists()


def test_what_would_break_a_served_version_is_refused(tmp_path, bundles):
    out = write_repository(tmp_path / "repository", {1: bundles[1], 2: bundles[2]}, current=1)
    before = sorted((path, path.read_bytes()) for path in out.rglob("*") if path.is_file())
    with pytest.raises(InvalidInputError, match="version 2 already: versions do not change"):
        write_repository(out, {2: bundles[3]})
    with pytest.raises(NotFoundError, match=r"version 1 is to be current, but .* has \[2\]"):
        write_repository(out, drop=[1])
    with pytest.raises(NotFoundError, match="version 9 is to be current"):
        write_repository(out, current=9)
    with pytest.raises(NotFoundError, match="no version 7 to drop"):
        write_repository(out, drop=[7])
    with pytest.raises(InvalidInputError, match="counts versions from 1"):
        write_repository(out, {0: bundles[3]})
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        write_repository(out, {4: tmp_path})
    with pytest.raises(InvalidInputError, match="dropped and added"):
        write_repository(out, {2: bundles[3]}, drop=[2])
    assert sorted((path, path.read_bytes()) for path in out.rglob("*") if path.is_file()) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path, bundles):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InvalidInputError, match="holds other files"):
        write_repository(tmp_path / "home", {1: bundles[1]})
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]
    with pytest.raises(NotFoundError, match="version None is to be current"):
        write_repository(tmp_path / "new")


def test_the_command_writes_and_says_what_is_there(tmp_path, bundles, capsys):
    from autogaze_client._cli import main

    out = tmp_path / "repository"
    assert (
        main(
            [
                "repository",
                str(out),
                "--bundle",
                f"1={bundles[1]}",
                "--bundle",
                f"2={bundles[2]}",
                "--current",
                "1",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == f"{out}: versions 1, 2; current 1\n"
    assert main(["repository", str(out), "--current", "2"]) == 0
    assert current_version(out) == 2
    assert main(["repository", str(out), "--bundle", "two"]) == 1
    assert "N=DIR" in capsys.readouterr().err
