"""The output folder: one Parquet file a video, written whole or not at all, and what it was made with."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from autogaze_client._errors import InvalidInputError

from autogaze_backend.bulk.inputs import VideoFile
from autogaze_backend.bulk.settings import RunIdentity, differences
from autogaze_backend.bulk.table import SCHEMA

METADATA_KEY = b"autogaze"
"""Of the JSON in each file's footer."""

# Small tables make many row groups, whose description a file keeps to its end.
_ROWS_A_GROUP = 1 << 17


@dataclass(frozen=True)
class OutputFolder:
    """Where a run writes.

    ``gaze/`` holds ``<video>.parquet`` for each video, ``settings.json`` what all of them were made with,
    ``errors.parquet`` and ``summary.json`` the report, ``.parts/`` files in the making.
    """

    path: Path

    @property
    def gaze(self) -> Path:
        """The folder of the results: a Parquet data set."""
        return self.path / "gaze"

    @property
    def errors(self) -> Path:
        """The videos that were skipped, with the reason."""
        return self.path / "errors.parquet"

    @property
    def summary(self) -> Path:
        """The counts of the last run."""
        return self.path / "summary.json"

    @property
    def settings(self) -> Path:
        """What the results depend on."""
        return self.path / "settings.json"

    @property
    def parts(self) -> Path:
        """Files in the making."""
        return self.path / ".parts"

    def result(self, name: str) -> Path:
        """The result of a video."""
        return self.gaze / f"{name}.parquet"

    @contextmanager
    def locked(self, identity: RunIdentity) -> Iterator[None]:
        """Claims the folder for a run, and removes what an interrupted one left half-written.

        Raises:
            InvalidInputError: another run holds it, it belongs to other settings or another checkpoint, or it
                holds something else.
        """
        self._check_ours()
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidInputError(
                    f"another run writes to {self.path}; wait for it, or pass another folder"
                ) from error
            self.check(identity, missing_is_new=True)
            shutil.rmtree(self.parts, ignore_errors=True)
            self.parts.mkdir()
            self.gaze.mkdir(exist_ok=True)
            try:
                yield
            finally:
                shutil.rmtree(self.parts, ignore_errors=True)

    def check(self, identity: RunIdentity, *, missing_is_new: bool = False) -> None:
        """Checks that the folder belongs to this identity.

        Args:
            identity: of the run.
            missing_is_new: whether a folder without settings becomes this identity's.

        Raises:
            InvalidInputError: it does not.
        """
        now = identity.to_dict()
        try:
            there = json.loads(self.settings.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if not missing_is_new:
                raise InvalidInputError(
                    f"{self.path} holds no {self.settings.name} on this machine; every machine of the cluster must see "
                    "the same output folder under the same path"
                ) from error
            write_atomically(self.settings, json.dumps(now, indent=2) + "\n")
            return
        except ValueError as error:
            raise InvalidInputError(
                f"{self.settings} is no valid JSON ({error}); pass another output folder"
            ) from error
        if there != now:
            found = "; ".join(differences(there, now))
            raise InvalidInputError(
                f"{self.path} holds results of other settings ({found}); pass another output folder, or the settings "
                f"of {self.settings}"
            )

    def finished(self, video: VideoFile, identity: RunIdentity) -> Mapping[str, Any] | None:
        """What the footer of a video's result says; None where it is missing, damaged, or of another file or run."""
        try:
            metadata = pq.read_metadata(self.result(video.name)).metadata or {}
            found: dict[str, Any] = json.loads(metadata[METADATA_KEY])
            same = found["run"] == identity.digest and found["video"]["size"] == video.size
            return found if same and found["video"]["mtime_ns"] == video.mtime_ns else None
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return None

    def attempts(self, name: str) -> int:
        """How many writers of this run were left open for a video: their process died."""
        return len(list(self.parts.glob(f"{_part_prefix(name)}.*")))

    def remove(self, name: str) -> None:
        """Removes a video's result, where there is one: its file has changed since, and now cannot be read."""
        with suppress(FileNotFoundError):
            self.result(name).unlink()

    def _check_ours(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InvalidInputError(f"{self.path} is a file; pass a folder")
        if self.path.is_dir() and not self.settings.exists():
            others = [entry.name for entry in os.scandir(self.path) if entry.name != ".lock"]
            if others:
                raise InvalidInputError(
                    f"{self.path} holds {others[0]!r} and no {self.settings.name}, so it is no output of this command; "
                    "pass a new folder"
                )


class ResultWriter:
    """Writes one video's result; a context manager. The file appears under its name with ``finish``.

    A writer that is left without ``finish`` removes its part. One whose process dies leaves the part behind,
    which ``OutputFolder.attempts`` counts.

    Args:
        folder: of the run.
        video: whose result it is.
    """

    def __init__(self, folder: OutputFolder, video: VideoFile) -> None:
        self._folder, self._video = folder, video
        self._part = folder.parts / f"{_part_prefix(video.name)}.{uuid.uuid4().hex}"
        self._writer = pq.ParquetWriter(self._part, SCHEMA, compression="zstd")
        self._tables: list[pa.Table] = []
        self._buffered = 0
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Appends rows, held back until they fill a row group."""
        self._tables.append(table)
        self._buffered += len(table)
        self.rows += len(table)
        if self._buffered >= _ROWS_A_GROUP:
            self._flush()

    def finish(self, identity: RunIdentity, facts: Mapping[str, Any]) -> None:
        """Completes the file and moves it to its place.

        Args:
            identity: of the run.
            facts: of the video and how it was read, for the footer.
        """
        self._flush()
        footer = {
            "run": identity.digest,
            **identity.to_dict(),
            "video": {
                "name": self._video.name,
                "size": self._video.size,
                "mtime_ns": self._video.mtime_ns,
                **facts,
            },
        }
        self._writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(footer)})
        self._writer.close()
        target = self._folder.result(self._video.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync(self._part)
        os.replace(self._part, target)
        _sync(target.parent)

    def _flush(self) -> None:
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables).unify_dictionaries())
            self._tables, self._buffered = [], 0

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the file, and removes the part unless it was finished."""
        self._writer.close()
        with suppress(FileNotFoundError):
            self._part.unlink()


def write_atomically(path: Path, content: str) -> None:
    """Writes a text file that is there whole or not at all."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    part.write_text(content, encoding="utf-8")
    _sync(part)
    os.replace(part, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _part_prefix(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:24]
