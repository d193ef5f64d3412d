"""The model repository that ships with the package, and the bundles that its models load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from autogaze_client._errors import CheckpointError, NotFoundError

__all__ = ["BUNDLE_VARIABLE", "model_repository_path", "require_bundle", "require_bundles"]

BUNDLE_VARIABLE = "AUTOGAZE_BUNDLE"
"""Environment variable in which the backend finds its bundle."""

_BUNDLED_MODELS = ("autogaze_generate", "autogaze_stream")


def model_repository_path() -> Path:
    """The shipped repository: inside the installed package, or at the root of a source checkout.

    Raises:
        NotFoundError: Neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "model_repository", package.parent.parent / "model_repository")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise NotFoundError(
        f"no model repository at {candidates[0]} or {candidates[1]}: reinstall autogaze-triton, "
        "or name your own with --model-repository"
    )


def require_bundle(bundle: Path) -> Path:
    """The absolute path of ``bundle``, a folder that ``autogaze build`` wrote.

    Raises:
        NotFoundError: There is no such folder.
        CheckpointError: It has no manifest.
    """
    path = bundle.expanduser().resolve()
    if not path.is_dir():
        raise NotFoundError(
            f"no bundle folder at {path}: write one with 'autogaze build CHECKPOINT {bundle}'"
        )
    if not (path / "manifest.json").is_file():
        raise CheckpointError(
            f"{path} has no manifest.json, so it is not a bundle (or its build did not finish): "
            f"write one with 'autogaze build CHECKPOINT {bundle}'"
        )
    return path


def require_bundles(
    repository: Path, bundle: Path | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment variables that let the models of ``repository`` find their bundle.

    ``bundle`` wins over ``AUTOGAZE_BUNDLE`` in ``environ``. With neither, each version folder of the models
    that generate must hold a ``bundle`` folder of its own, and nothing needs to be said.

    Raises:
        NotFoundError: A bundle is needed and none is named, or the named one does not exist.
        CheckpointError: A bundle has no manifest.
    """
    named = bundle or (Path(environ[BUNDLE_VARIABLE]) if environ.get(BUNDLE_VARIABLE) else None)
    if named is not None:
        return {BUNDLE_VARIABLE: str(require_bundle(named))}
    for model in _BUNDLED_MODELS:
        for source in sorted((repository / model).glob("*/model.py")):
            own = source.parent / "bundle"
            if not own.is_dir():
                raise NotFoundError(
                    f"{model} has no bundle: pass --bundle DIR, set {BUNDLE_VARIABLE}, or put one at {own}: "
                    "'autogaze build CHECKPOINT DIR' writes it"
                )
            require_bundle(own)
    return {}
