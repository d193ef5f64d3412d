"""The fast part of ``make release-check``: locks, licences, changelog, and what a wheel holds."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from autogaze_backend.serving.installation import SERVER_VERSION

if sys.version_info < (3, 11):
    pytest.skip("the release tools read pyproject.toml with Python 3.11's tomllib", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from release import changelog, check, distribution, licences, locks, project, sbom  # noqa: E402

LOCK_FILES = [(lock, python) for lock in locks.LOCKS for python in project.PYTHONS]


@pytest.mark.parametrize(("lock", "python"), LOCK_FILES)
def test_a_lock_is_whole(lock, python):
    path = locks.path_of(lock, python)
    packages = locks.read_lock(path)
    assert check.lock_problems(packages, locks.LOCKS[lock], python) == []
    for package in packages.values():
        assert package.hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in package.hashes)
    # The lock says what is installed, not where from.
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:", path.read_text())


def test_the_locks_agree_with_each_other():
    """What the tests ran with is what a container gets."""
    for python in project.PYTHONS:
        tested = locks.read_lock(locks.path_of("dev", python))
        for lock in ("server", "bulk"):
            held = locks.read_lock(locks.path_of(lock, python))
            assert {name: package.version for name, package in held.items()} == {
                name: tested[name].version for name in held
            }


@pytest.mark.parametrize(
    "line",
    [
        "numpy>=1.26 --hash=sha256:00",
        "numpy==1.26.4",
        "numpy @ https://example.org/numpy.whl --hash=sha256:00",
        "--extra-index-url https://example.org/simple",
        "-e .",
    ],
)
def test_a_lock_with_an_open_end_is_refused(tmp_path, line):
    (tmp_path / "lock.txt").write_text(f"# made by hand\n{line}\n")
    with pytest.raises(ValueError, match="no pinned package with hashes"):
        locks.read_lock(tmp_path / "lock.txt")


def test_a_lock_that_fell_behind_is_told():
    packages = locks.read_lock(locks.path_of("server", "3.11"))
    del packages["safetensors"]
    packages["numpy"] = locks.Locked("numpy", "2.0.0", ())
    assert check.lock_problems(packages, ("server",), "3.11") == [
        "safetensors is missing; make lock",
        "numpy is 2.0.0, not <2,>=1.26; make lock",
    ]


def test_the_licences_cover_the_locked_packages():
    text = licences.PAGE.read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| (\d[^|]*) \| [^|]+ \| [a-z, ]+ \|$", text, re.MULTILINE))
    expected = {
        name: ", ".join(sorted(entry["versions"])) for name, entry in licences.locked_packages().items()
    }
    assert listed == expected
    assert "UNKNOWN" not in text
    for needed in (
        f"Triton Inference Server {SERVER_VERSION}",
        "CUDA",
        "open checkpoint",
        "Big Buck Bunny",
        "x264",
    ):
        assert needed in text


def test_a_package_that_states_no_licence_stops_the_page():
    stated = dict.fromkeys(licences.locked_packages(), "MIT")
    assert {row.licence for row in licences.packages(stated)} == {"MIT"}
    with pytest.raises(ValueError, match="numpy states no licence"):
        licences.packages({**stated, "numpy": "UNKNOWN"})
    del stated["numpy"]
    with pytest.raises(KeyError):
        licences.packages(stated)


def test_a_bill_of_materials_holds_the_lock_the_server_and_the_checkpoint():
    packages = locks.read_lock(locks.path_of("server", "3.11")).values()
    index = {"type": "distribution", "url": "https://index.example/simple"}
    parts = [
        {"name": package.name, "version": package.version, "externalReferences": [index]}
        for package in packages
    ]
    bill = {"components": parts}
    sbom.complete(bill)
    assert sbom.missing_packages(bill, "server", "3.11") == []
    assert "index.example" not in str(bill)
    found = {part["name"]: part for part in bill["components"]}
    assert found["tritonserver"]["version"] == SERVER_VERSION
    weights = ROOT / "checkpoints" / "open" / "model.safetensors"
    assert found["autogaze-open"]["hashes"][0]["content"] == sha256(weights.read_bytes()).hexdigest()
    bill["components"] = [part for part in bill["components"] if part["name"] != "numpy"]
    assert sbom.missing_packages(bill, "server", "3.11") == [("numpy", "1.26.4")]


def test_the_changelog_and_the_version_agree():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog.problems(text, project.version()) == []
    assert project.is_release(project.version())
    import importlib.metadata

    assert importlib.metadata.version(project.NAME) == project.version()


RELEASED = (
    "# Changelog\n\n## Unreleased\n\n{changes}"
    "## 0.2.0 - 2026-12-01\n\n### Added\n\n* A.\n\n## 0.1.0 - 2026-11-30\n"
)


@pytest.mark.parametrize(
    ("text", "version", "problem"),
    [
        ("# Changelog\n\n## 0.1.0 - 2026-11-30\n", "0.1.0", "must be 'Unreleased'"),
        ("# Changelog\n\n## Unreleased\n", "0.1.0", "Unreleased is empty"),
        (RELEASED.format(changes=""), "0.1.0", "below the newest release"),
        (RELEASED.format(changes=""), "0.3.0", "Unreleased is empty"),
        (RELEASED.format(changes="* B.\n\n"), "0.2.0", "raise the version"),
        (RELEASED.format(changes="### New\n\n* B.\n\n"), "0.3.0", "'New' is none of"),
        (RELEASED.replace("2026-12-01", "1 December").format(changes=""), "0.2.0", "X.Y.Z - YYYY-MM-DD"),
        (RELEASED.replace("0.2.0 -", "0.0.9 -").format(changes=""), "0.1.0", "newest release comes first"),
    ],
)
def test_what_a_changelog_may_not_be(text, version, problem):
    assert any(problem in found for found in changelog.problems(text, version))


def test_what_a_changelog_may_be():
    assert changelog.problems(RELEASED.format(changes=""), "0.2.0") == []
    assert changelog.problems(RELEASED.format(changes="### Fixed\n\n* B.\n\n"), "0.3.0") == []
    assert changelog.unreleased(RELEASED.format(changes="### Fixed\n\n* B.\n\n")) == ["B."]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built in place: what a release builds, without its environments."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling (extra dev)")
    (path,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    return Path(path)


def test_a_wheel_holds_what_it_must_and_nothing_else(wheel):
    assert distribution.wheel_problems(wheel) == []


def changed(wheel: Path, folder: Path, change) -> Path:
    """A copy of a wheel whose files went through ``change(name, content)``; None leaves one out."""
    target = folder / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            content = change(name, source.read(name))
            if content is not None:
                copy.writestr(name, content)
    return target


@pytest.mark.parametrize(
    ("without", "problem"),
    [
        ("autogaze_client/py.typed", "lacks autogaze_client/py.typed"),
        ("LICENSE", "licenses/LICENSE"),
        ("autogaze_generate/config.pbtxt", "model_repository/autogaze_generate/config.pbtxt"),
        ("open/model.safetensors", "open/model.safetensors"),
        ("prefill.onnx", "prefill.onnx"),
        ("step.masked.onnx", "step.masked.onnx"),
    ],
)
def test_a_wheel_that_lacks_something(wheel, tmp_path, without, problem):
    broken = changed(wheel, tmp_path, lambda name, content: None if name.endswith(without) else content)
    assert any(problem in found for found in distribution.wheel_problems(broken))


def test_a_wheel_that_holds_too_much(wheel, tmp_path):
    target = tmp_path / wheel.name
    shutil.copy(wheel, target)
    extra = ("autogaze_client/__pycache__/a.pyc", "tests/test_a.py", "autogaze_backend/bundle/step.plan")
    with zipfile.ZipFile(target, "a") as archive:
        for name in extra:
            archive.writestr(name, "")
    found = distribution.wheel_problems(target)
    assert all(any(name in problem for problem in found) for name in extra)


def test_a_wheel_with_another_base_dependency(wheel, tmp_path):
    def heavier(name, content):
        return (
            content.replace(
                b"Requires-Dist: safetensors", b"Requires-Dist: torch\nRequires-Dist: safetensors"
            )
            if (name.endswith("METADATA"))
            else content
        )

    assert any(
        "torch" in problem for problem in distribution.wheel_problems(changed(wheel, tmp_path, heavier))
    )


def test_the_bare_check_is_the_suites_own():
    compile(check.bare_script(), "bare.py", "exec")
    assert "bare install works" in check.bare_script()
