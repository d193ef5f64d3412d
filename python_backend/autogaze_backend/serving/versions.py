"""A model repository that serves several checkpoints: one is current, the others are there under their number.

Triton picks versions within a model; an ensemble always runs the steps of its one configuration. So every
version gets an ensemble of its own, ``autogaze_v<N>``, whose generation step names the version, and ``autogaze``
is the one of the current version. To roll back is to write two small files.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from autogaze_client._errors import AutoGazeError, InvalidInputError, NotFoundError

from autogaze_backend.serving.repository import model_repository_path, require_bundle

__all__ = ["current_version", "repository_versions", "write_repository"]

_GENERATE, _STREAM, _ENSEMBLE = "autogaze_generate", "autogaze_stream", "autogaze"
_SHARED = ("autogaze_ingest",)
_POLICY = re.compile(r"^version_policy \{.*\}$", re.MULTILINE)
_PINNED = re.compile(rf'(model_name: "{_GENERATE}"\s+model_version: )(-?\d+)')
_NAME = re.compile(r'^name: ".*"$', re.MULTILINE)


def write_repository(
    out: Path,
    bundles: Mapping[int, Path] | None = None,
    *,
    current: int | None = None,
    drop: Iterable[int] = (),
    source: Path | None = None,
) -> Path:
    """Writes or changes a repository of several checkpoints; what was edited in its files stays.

    Clips reach the current version as ``autogaze`` and each version as ``autogaze_v<N>``. Streams without a
    version reach the highest of ``autogaze_stream``, which is the current one: newer versions are served to
    streams only once they are current.

    Args:
        out: the repository; made where it does not exist.
        bundles: checkpoints to add, by their version; their files are copied.
        current: the version of clips and streams that name none; None keeps it, or takes the highest of a new
            repository.
        drop: versions to remove.
        source: the repository to take models from; the shipped one by default.

    Returns:
        ``out``.

    Raises:
        InvalidInputError: a version below 1 or one that is there already, or dropping the current one.
        NotFoundError: a bundle or version does not exist.
        CheckpointError: a folder is no bundle.
    """
    source = source or model_repository_path()
    bundles = dict(bundles or {})
    present = repository_versions(out) if out.exists() else ()
    _check(out, present, bundles, tuple(drop))
    found = {version: require_bundle(path) for version, path in bundles.items()}
    versions = sorted({*present, *found} - set(drop))
    before = current_version(out) if present else None
    chosen = current if current is not None else before if before is not None else max(versions, default=None)
    if chosen not in versions:
        raise NotFoundError(
            f"version {chosen} is to be current, but {out} has {versions}: add its bundle or name another one"
        )
    for model in _SHARED:
        if not (out / model).exists():
            shutil.copytree(source / model, out / model, ignore=_IGNORED)
    for version, bundle in found.items():
        for model in (_GENERATE, _STREAM):
            _add_version(source / model, out / model, version, bundle)
    for version in versions:
        _ensemble(source, out / f"{_ENSEMBLE}_v{version}", version)
    _models(source, out, versions, chosen)
    _ensemble(source, out / _ENSEMBLE, chosen)
    for version in set(present) & set(drop):
        shutil.rmtree(out / f"{_ENSEMBLE}_v{version}")
        for model in (_GENERATE, _STREAM):
            shutil.rmtree(out / model / str(version))
    return out


def repository_versions(repository: Path) -> tuple[int, ...]:
    """The versions that ``write_repository`` put there, ascending.

    Raises:
        InvalidInputError: it did not write this folder.
    """
    if not (repository / _GENERATE / "config.pbtxt").is_file():
        if any(repository.iterdir()):
            raise InvalidInputError(
                f"{repository} holds other files: name a new folder, or one that 'autogaze repository' wrote"
            )
        return ()
    folders = (repository / _GENERATE).glob("*/bundle")
    return tuple(sorted(int(path.parent.name) for path in folders if path.parent.name.isdigit()))


def current_version(repository: Path) -> int:
    """The version that ``autogaze`` runs.

    Raises:
        NotFoundError: the repository names none, so ``write_repository`` did not write it.
    """
    config = repository / _ENSEMBLE / "config.pbtxt"
    match = _PINNED.search(config.read_text()) if config.is_file() else None
    if match is None or int(match[2]) < 1:
        raise NotFoundError(f"{config} names no version of {_GENERATE}: write it with 'autogaze repository'")
    return int(match[2])


_IGNORED = shutil.ignore_patterns("__pycache__", "bundle")


def _check(out: Path, present: tuple[int, ...], bundles: Mapping[int, Path], drop: tuple[int, ...]) -> None:
    error: AutoGazeError | None = None
    for version in bundles:
        if version < 1:
            error = InvalidInputError(f"version is {version}; Triton counts versions from 1")
        elif version in present and version not in drop:
            error = InvalidInputError(
                f"{out} has version {version} already: versions do not change, so add the bundle under another "
                "number, and drop this one when nobody asks for it any more"
            )
    for version in drop:
        if version not in present:
            error = NotFoundError(f"{out} has no version {version} to drop; it has {list(present)}")
        elif version in bundles:
            error = InvalidInputError(f"version {version} is to be dropped and added; take another number")
    if error is not None:
        raise error


def _add_version(source: Path, model: Path, version: int, bundle: Path) -> None:
    """Puts a version together beside its place and moves it there, so that a server never sees half of one."""
    model.mkdir(parents=True, exist_ok=True)
    if (source / "warmup").is_dir() and not (model / "warmup").exists():
        shutil.copytree(source / "warmup", model / "warmup")
    unfinished = model / f".{version}.{os.getpid()}"
    try:
        shutil.copytree(source / "1", unfinished, ignore=_IGNORED)
        shutil.copytree(bundle, unfinished / "bundle")
        unfinished.rename(model / str(version))
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _models(source: Path, out: Path, versions: list[int], current: int) -> None:
    """The version policies: clips may ask for every version, streams for none that is newer than the current."""
    served = {_GENERATE: versions, _STREAM: [version for version in versions if version <= current]}
    for model, numbers in served.items():
        policy = f"version_policy {{ specific {{ versions: {numbers} }} }}"
        own = out / model / "config.pbtxt"
        _replace(own, _once(_POLICY, policy, own if own.is_file() else source / model / "config.pbtxt"))


def _ensemble(source: Path, folder: Path, version: int) -> None:
    (folder / "1").mkdir(parents=True, exist_ok=True)
    own = folder / "config.pbtxt"
    text = _once(_PINNED, rf"\g<1>{version}", own if own.is_file() else source / _ENSEMBLE / "config.pbtxt")
    _replace(own, _NAME.sub(f'name: "{folder.name}"', text, count=1))


def _once(pattern: re.Pattern[str], replacement: str, path: Path) -> str:
    text, count = pattern.subn(replacement, path.read_text())
    if count != 1:
        raise InvalidInputError(
            f"{path} has {count} places like {pattern.pattern!r}; take the shipped file, or one that keeps its form"
        )
    return text


def _replace(path: Path, text: str) -> None:
    """Writes a file whole; one that is the same keeps its time, so that a server does not reload its model."""
    if path.is_file() and path.read_text() == text:
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)
