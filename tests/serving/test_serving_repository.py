from __future__ import annotations

from pathlib import Path

import pytest
from autogaze_backend.serving import model_repository_path, repository, require_bundle, require_bundles
from autogaze_client._errors import CheckpointError, NotFoundError


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository whose generating models have no bundle of their own."""
    root = tmp_path / "models"
    for model in ("autogaze_ingest", "autogaze_generate", "autogaze_stream"):
        (root / model / "1").mkdir(parents=True)
        (root / model / "1" / "model.py").write_text("")
    return root


def test_a_checkout_serves_the_repository_at_its_root() -> None:
    assert model_repository_path() == Path(__file__).resolve().parents[2] / "model_repository"


def test_an_installed_package_serves_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "autogaze_backend"
    monkeypatch.setattr(repository, "__file__", str(package / "serving" / "repository.py"))
    with pytest.raises(NotFoundError, match=r"no model repository at .*--model-repository"):
        model_repository_path()
    (package / "model_repository").mkdir(parents=True)
    assert model_repository_path() == package / "model_repository"


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json.*autogaze build"):
        require_bundle(tmp_path)
    with pytest.raises(NotFoundError, match=r"no bundle folder at .*autogaze build"):
        require_bundle(tmp_path / "nothing")


def test_the_named_bundle_wins_and_is_made_absolute(
    blank_bundle: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = require_bundles(models, Path("bundle"), {"AUTOGAZE_BUNDLE": "/elsewhere"})
    assert found == {"AUTOGAZE_BUNDLE": str(blank_bundle)}


def test_the_environment_names_the_bundle_and_is_checked(blank_bundle: Path, models: Path) -> None:
    assert require_bundles(models, None, {"AUTOGAZE_BUNDLE": str(blank_bundle)}) == {
        "AUTOGAZE_BUNDLE": str(blank_bundle)
    }
    with pytest.raises(NotFoundError, match="/elsewhere"):
        require_bundles(models, None, {"AUTOGAZE_BUNDLE": "/elsewhere"})


def test_without_either_every_generating_model_needs_its_own(blank_bundle: Path, models: Path) -> None:
    with pytest.raises(
        NotFoundError, match=r"autogaze_generate has no bundle: pass --bundle DIR.*autogaze build"
    ):
        require_bundles(models, None, {})
    blank_bundle.rename(models / "autogaze_generate" / "1" / "bundle")
    with pytest.raises(NotFoundError, match="autogaze_stream has no bundle"):
        require_bundles(models, None, {})
    own = models / "autogaze_stream" / "1" / "bundle"
    own.mkdir()
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        require_bundles(models, None, {})
    (own / "manifest.json").write_text("{}")
    assert require_bundles(models, None, {}) == {}


def test_a_repository_of_other_models_needs_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "echo" / "1").mkdir(parents=True)
    assert require_bundles(tmp_path, None, {}) == {}
