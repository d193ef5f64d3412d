"""Reads a checkpoint in the Hugging Face layout, strictly: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend.bundle import file_sha256
from autogaze_backend.spec import ModelSpec
from autogaze_client._errors import CheckpointError, NotFoundError
from numpy.typing import NDArray

from autogaze_export.binding import checkpoint_shapes
from autogaze_export.hub import download

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"

Array = NDArray[Any]


@dataclass(frozen=True)
class Checkpoint:
    """A validated checkpoint.

    Attributes:
        source: the folder or hub id it was named by.
        spec: its architecture and defaults.
        config: ``config.json`` as read.
        preprocessor: ``preprocessor_config.json`` as read, or None where the folder has none.
        tensors: float32, by the names of ``model.safetensors``; F16 and BF16 are converted exactly.
        stored_dtype: what the file held: "F32", "F16" or "BF16" (or a mixture, as "F16+F32").
        sha256: of ``model.safetensors``.
        revision: what was asked for of a hub id: branch, tag, commit, or None.
        commit: the hub's commit that it is of; None for a folder.
    """

    source: str
    spec: ModelSpec
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None
    tensors: Mapping[str, Array]
    stored_dtype: str
    sha256: str
    revision: str | None = None
    commit: str | None = None


# Weights in formats that run code when they are loaded.
_PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_NEVER = (
    f"pickled weights (.bin, .pt) are never read, because loading them runs code: write {WEIGHTS_FILE} with "
    "safetensors.torch.save_file, where you trust the file"
)

# The name of the checkpoint that comes with this package.
OPEN = "open"


def open_checkpoint() -> Path:
    """The folder of the open checkpoint (Apache-2.0): inside the installed package, or of the source checkout.

    Raises:
        NotFoundError: neither has it.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "checkpoints" / OPEN, here.parents[1] / "checkpoints" / OPEN):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise NotFoundError("the open checkpoint is not in this installation; install autogaze-triton again")


def load_checkpoint(
    source: str | Path, *, revision: str | None = None, sha256: str | None = None
) -> Checkpoint:
    """Loads a checkpoint from a folder or, where no such folder exists, from a hub id such as ``nvidia/AutoGaze``.

    Args:
        source: folder, hub id, or "open" for the checkpoint that comes with this package.
        revision: branch, tag or commit of a hub id; a branch or tag is resolved to its commit, which is recorded.
        sha256: what ``model.safetensors`` must have, in hexadecimal; None = anything. A hub's file is compared with
            the hub's own hash in any case.

    Raises:
        NotFoundError: the folder or a file of it does not exist, or the hub cannot be reached or lacks it.
        CheckpointError: the config or the tensors are not what this package supports, a file is not in
            safetensors format, or a hash differs.
        MissingExtraError: a hub id was given and huggingface_hub is not installed.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() and str(source) == OPEN:
        folder = open_checkpoint()
    snapshot = None
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file; pass the folder that holds it with its {CONFIG_FILE}. {_NEVER}"
        )
    if not folder.is_dir():
        snapshot = download(str(source), revision, [CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE])
        folder = snapshot.folder
    elif revision is not None:
        raise CheckpointError(
            f"revision {revision!r} was given, but {folder} is a local folder, which has none"
        )
    config = _read_json(folder / CONFIG_FILE)
    spec = ModelSpec.from_config(config)
    preprocessor = folder / PREPROCESSOR_FILE
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise NotFoundError(f"{folder} has no {WEIGHTS_FILE}{_instead(folder)}; {_NEVER}")
    found = file_sha256(weights)
    if snapshot is not None:
        snapshot.check_hash(WEIGHTS_FILE, found)
    if sha256 is not None and found != sha256.lower():
        raise CheckpointError(
            f"{weights} has SHA-256 {found}, but {sha256} was asked for; it is another file: check the source and its "
            "revision, or correct the hash"
        )
    tensors, dtype = read_tensors(weights, checkpoint_shapes(spec))
    return Checkpoint(
        source=str(source),
        spec=spec,
        config=config,
        preprocessor=_read_json(preprocessor) if preprocessor.is_file() else None,
        tensors=tensors,
        stored_dtype=dtype,
        sha256=found,
        revision=revision,
        commit=snapshot.commit if snapshot else None,
    )


def _instead(folder: Path) -> str:
    """What weights a folder has in its place, for a message."""
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    return f", only {_list(others)}" if others else ""


def read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Array], str]:
    """Reads the tensors named in ``shapes`` as float32; others in the file are ignored.

    Raises:
        CheckpointError: the file is damaged, or a tensor is missing, of another shape, of a type other
            than F32, F16 or BF16, or not finite.
    """
    header, data = _read_safetensors(path)
    missing = [name for name in shapes if name not in header]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of {len(shapes)} tensors: {_list(missing)}; "
            "the file is incomplete or of another architecture than its config.json"
        )
    tensors, dtypes = {}, set()
    for name, shape in shapes.items():
        entry = header[name]
        found = tuple(entry["shape"])
        if found != shape:
            raise CheckpointError(f"{path}: {name} has shape {found}; config.json asks for {shape}")
        if entry["dtype"] not in _DECODERS:
            raise CheckpointError(
                f"{path}: {name} is of type {entry['dtype']}; expected one of {_list(list(_DECODERS))}"
            )
        start, end = entry["data_offsets"]
        tensor = _DECODERS[entry["dtype"]](data[start:end])
        if tensor.size != int(np.prod(shape)):
            raise CheckpointError(
                f"{path}: {name} holds {tensor.size} values; shape {shape} needs {np.prod(shape)}"
            )
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged")
        tensors[name] = tensor.reshape(shape)
        dtypes.add(entry["dtype"])
    return tensors, "+".join(sorted(dtypes))


def _float32(data: memoryview) -> Array:
    return np.frombuffer(data, "<f4").astype(np.float32)


def _float16(data: memoryview) -> Array:
    return np.frombuffer(data, "<f2").astype(np.float32)


def _bfloat16(data: memoryview) -> Array:
    """A bfloat16 is the upper half of a float32, so the conversion is exact."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


_DECODERS = {"F32": _float32, "F16": _float16, "BF16": _bfloat16}


def _read_safetensors(path: Path) -> tuple[dict[str, Any], memoryview]:
    """The header and the data of a safetensors file.

    The library's numpy loader cannot read BF16, so it only validates the file here.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            if file.read(4).startswith((b"\x80", b"PK\x03\x04")):
                raise CheckpointError(f"{path} is a pickle under another name; {_NEVER}") from error
        raise CheckpointError(
            f"{path} is no valid safetensors file ({error}); download or export it again"
        ) from error
    content = memoryview(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header: dict[str, Any] = json.loads(bytes(content[8 : 8 + length]))
    return header, content[8 + length :]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path.parent} has no {path.name}; a checkpoint folder needs it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def _list(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
