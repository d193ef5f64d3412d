"""How many processes each model has: an operator's setting, beside the numbers that config.pbtxt ships."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from autogaze_client._errors import InvalidInputError, ServerUnavailableError

from autogaze_backend.serving.installation import cache_directory

__all__ = ["INSTANCE_VARIABLES", "instance_counts", "with_instances"]

INSTANCE_VARIABLES: Mapping[str, str] = {
    "autogaze_generate": "AUTOGAZE_CLIP_INSTANCES",
    "autogaze_stream": "AUTOGAZE_STREAM_INSTANCES",
    "autogaze_ingest": "AUTOGAZE_INGEST_INSTANCES",
}
"""The environment variable of each model that may have several."""

# Such a model hands its requests on and asks for the next ones. A batch would fill one instance while another is idle.
_ONE_AT_A_TIME = frozenset({"autogaze_generate"})

_BATCH = re.compile(r"^max_batch_size: \d+$", re.MULTILINE)
_GROUP = re.compile(r"^instance_group \[ \{ kind: KIND_CPU count: (\d+) \} \]$", re.MULTILINE)


def instance_counts(environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The numbers that the environment names, by model.

    Raises:
        InvalidInputError: one is no whole number of at least 1.
    """
    counts = {}
    for model, variable in INSTANCE_VARIABLES.items():
        text = environ.get(variable)
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and int(text) >= 1):
            raise InvalidInputError(f"{variable} is {text!r}; it must be a whole number of at least 1")
        counts[model] = int(text)
    return counts


def with_instances(repository: Path, counts: Mapping[str, int], folder: Path | None = None) -> Path:
    """A repository whose models have these numbers of instances.

    Triton reads the number from config.pbtxt alone, and the repository may be one that must not be written to. So
    where a number differs, this is a folder of links to the repository, with a config.pbtxt of its own for the models
    in question. It depends on its content alone, so servers share it and it may stay.

    Args:
        repository: with the models; versions that are added to it later are not seen under the new one.
        counts: by model; others keep theirs. A model that is not there is left out.
        folder: where to make it; a folder in ``$AUTOGAZE_CACHE`` by default.

    Returns:
        ``repository`` itself where all numbers are as they should be.

    Raises:
        InvalidInputError: a config.pbtxt has no instance group of the shipped form.
        ServerUnavailableError: the folder cannot be written.
    """
    changed: dict[str, str] = {}
    for model, count in sorted(counts.items()):
        config = repository / model / "config.pbtxt"
        if not config.is_file():
            continue
        text = config.read_text(encoding="utf-8")
        groups = _GROUP.findall(text)
        if len(groups) != 1:
            raise InvalidInputError(
                f"{config} has {len(groups)} lines like 'instance_group [ {{ kind: KIND_CPU count: 1 }} ]'; set the "
                f"number of instances there, and {INSTANCE_VARIABLES.get(model, 'the number')} not at all"
            )
        if int(groups[0]) != count:
            text = _GROUP.sub(f"instance_group [ {{ kind: KIND_CPU count: {count} }} ]", text)
            if count > 1 and model in _ONE_AT_A_TIME:
                text = _BATCH.sub("max_batch_size: 1", text)
            changed[model] = text
    if not changed:
        return repository
    repository = repository.absolute()
    folder = folder or cache_directory() / "repositories"
    made = folder / _name(repository, changed)
    if made.is_dir():
        return made
    unfinished = folder / f".{made.name}.{os.getpid()}"
    try:
        unfinished.mkdir(parents=True)
        for model in sorted(path.name for path in repository.iterdir() if not path.name.startswith(".")):
            _link(repository / model, unfinished / model, changed.get(model))
        unfinished.rename(made)
    except OSError as error:
        if made.is_dir():  # Another server was faster.
            return made
        raise ServerUnavailableError(
            f"cannot write {made} for the numbers of instances: {error}; name another folder in AUTOGAZE_CACHE"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return made


def _link(source: Path, target: Path, config: str | None) -> None:
    if config is None:
        target.symlink_to(source)
        return
    target.mkdir()
    for path in source.iterdir():
        if path.name != "config.pbtxt":
            (target / path.name).symlink_to(path)
    (target / "config.pbtxt").write_text(config, encoding="utf-8")


def _name(repository: Path, changed: Mapping[str, str]) -> str:
    """Of everything that the folder depends on."""
    digest = hashlib.sha256(str(repository).encode())
    for path in sorted([*repository.glob("*"), *(repository / model for model in changed)]):
        digest.update(f"\0{path.name}".encode())
    for model, text in changed.items():
        digest.update(f"\0{model}\0{text}".encode())
        for path in sorted((repository / model).iterdir()):
            digest.update(f"\0{path.name}".encode())
    return digest.hexdigest()[:24]
