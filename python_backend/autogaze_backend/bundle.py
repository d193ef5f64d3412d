"""A bundle on disk: everything serving needs, described by one JSON manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autogaze_client._errors import CheckpointError, NotFoundError

from autogaze_backend.graphs import MASKED_PHASES, Phase
from autogaze_backend.preprocessing import PreprocessingConfig
from autogaze_backend.spec import ModelSpec

MANIFEST_FILE = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: its folder.
        engine: the engine that its graphs are for, such as "onnxruntime".
        precision: "exact" or "fast".
        spec: architecture and defaults.
        preprocessing: what turns frames into model input.
        graphs: the file of each phase.
        masked_graphs: the second form of those with attention, for GPUs; empty in a bundle of before there were any.
        weights: the safetensors file of the graphs' initialisers.
        manifest: the manifest as read.
    """

    path: Path
    engine: str
    precision: str
    spec: ModelSpec
    preprocessing: PreprocessingConfig
    graphs: Mapping[Phase, Path]
    masked_graphs: Mapping[Phase, Path]
    weights: Path
    manifest: Mapping[str, Any]

    @property
    def traced_graphs(self) -> Mapping[Phase, str]:
        """SHA-256 of the traced graph that each phase's graph is, or was rewritten from."""
        traced: Mapping[str, str] | None = self.manifest.get("traced")
        if traced is None:
            traced = {name: entry["sha256"] for name, entry in self.manifest["graphs"].items()}
        return {Phase(name): sha256 for name, sha256 in traced.items()}

    def gpu_graphs(self) -> Mapping[Phase, Path]:
        """The file of each phase that ONNX Runtime takes on a GPU.

        Raises:
            CheckpointError: the bundle has no masked graphs.
        """
        if set(self.masked_graphs) != set(MASKED_PHASES):
            raise CheckpointError(
                f"{self.path} has no masked graphs, and ONNX Runtime's attention on a GPU takes a mask, not the key "
                f"lengths of its other graphs; {_rebuild(self.path)}, or run it on the CPU"
            )
        return {**self.graphs, **self.masked_graphs}

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Reads the manifest and checks every file against its hash.

        Raises:
            NotFoundError: there is no bundle at ``path``.
            CheckpointError: the manifest is of another format, or a file is missing or was changed.
        """
        folder = Path(path).expanduser().resolve()
        try:
            manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{folder} holds no bundle ({MANIFEST_FILE} is missing); write one with "
                f"`autogaze build CHECKPOINT {folder}`"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{folder / MANIFEST_FILE} is no valid JSON ({error}); {_rebuild(folder)}"
            ) from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else None
            raise CheckpointError(
                f"{folder} is a bundle of format {found}; this version reads {FORMAT}; {_rebuild(folder)}"
            )
        try:
            graphs, masked_graphs = (
                {Phase(name): _verified(folder, entry) for name, entry in entries.items()}
                for entries in (manifest["graphs"], manifest.get("masked_graphs", {}))
            )
            return cls(
                path=folder,
                engine=manifest["engine"],
                precision=manifest["precision"],
                spec=ModelSpec.from_dict(manifest["spec"]),
                preprocessing=PreprocessingConfig(**manifest["preprocessing"]),
                graphs=graphs,
                masked_graphs=masked_graphs,
                weights=_verified(folder, manifest["weights"]),
                manifest=manifest,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{folder / MANIFEST_FILE} is damaged ({error!r}); {_rebuild(folder)}"
            ) from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _verified(folder: Path, entry: Mapping[str, str]) -> Path:
    path = folder / entry["file"]
    # A link may point anywhere; what is served lies in the bundle itself.
    if path.parent != folder or path.is_symlink() or path.resolve().parent != folder:
        raise CheckpointError(
            f"{folder / MANIFEST_FILE} names {entry['file']}, which is outside the bundle or a link; {_rebuild(folder)}"
        )
    if not path.is_file():
        raise CheckpointError(f"{folder} lacks {entry['file']}; {_rebuild(folder)}")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); let the server's user read the bundle"
        ) from error
    if found != entry["sha256"]:
        raise CheckpointError(
            f"{path} has SHA-256 {found[:12]}…, but its manifest says {entry['sha256'][:12]}…; {_rebuild(folder)}"
        )
    return path


def _rebuild(folder: Path) -> str:
    return f"build it again with `autogaze build CHECKPOINT {folder}`"
