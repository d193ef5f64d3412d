"""What became of the videos of a run."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from autogaze_client._errors import InvalidInputError

from autogaze_backend.bulk.inputs import VideoFile
from autogaze_backend.bulk.output import OutputFolder, write_atomically

INCOMPLETE = 3
"""Exit status where videos are left without a result."""


class Status(str, Enum):
    """What became of a video."""

    DONE = "done"
    UNREADABLE = "unreadable"
    """The file is damaged, no video, or over a limit: trying again changes nothing until the file changes."""
    FAILED = "failed"
    """Something else went wrong: the next run tries again."""


@dataclass(frozen=True)
class Outcome:
    """What became of one video.

    Attributes:
        video: the file.
        status: see ``Status``.
        message: why there is no result; empty where there is one.
        frames: gazed at.
        tokens: chosen.
    """

    video: VideoFile
    status: Status
    message: str = ""
    frames: int = 0
    tokens: int = 0

    def to_row(self) -> dict[str, Any]:
        """The form in which it travels through Ray Data: plain values."""
        return {
            "video": self.video.name,
            "size": self.video.size,
            "mtime_ns": self.video.mtime_ns,
            "status": self.status.value,
            "message": self.message,
            "frames": self.frames,
            "tokens": self.tokens,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Outcome:
        """Reads that form."""
        video = VideoFile(str(row["video"]), int(row["size"]), int(row["mtime_ns"]))
        return cls(video, Status(row["status"]), str(row["message"]), int(row["frames"]), int(row["tokens"]))


@dataclass(frozen=True)
class BulkSummary:
    """The counts of a run.

    Attributes:
        videos: found.
        done_before: had a result already.
        done: got one now.
        unreadable: are damaged, no videos, or over a limit, those of earlier runs included.
        failed: have no result for another reason.
        interrupted: attempts that ended with the death of their process.
        frames: gazed at now.
        tokens: chosen now.
        seconds: that the run took.
        actors: processes with a model.
        threads: CPU threads of each.
        device: where the models ran.
    """

    videos: int
    done_before: int
    done: int
    unreadable: int
    failed: int
    interrupted: int
    frames: int
    tokens: int
    seconds: float
    actors: int
    threads: int
    device: str

    @property
    def exit_status(self) -> int:
        """0 where every video has a result, else 3."""
        return INCOMPLETE if self.unreadable or self.failed else 0

    @property
    def frames_per_second(self) -> float:
        """Over the whole run, its start included."""
        return self.frames / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            **asdict(self),
            "frames_per_second": self.frames_per_second,
            "exit_status": self.exit_status,
        }


_ERRORS = pa.schema(
    [
        ("video", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("status", pa.string()),
        ("message", pa.string()),
    ]
)


def read_errors(folder: OutputFolder) -> list[Outcome]:
    """The videos that earlier runs skipped.

    Raises:
        InvalidInputError: the report is damaged.
    """
    if not folder.errors.exists():
        return []
    try:
        rows = pq.read_table(folder.errors, schema=_ERRORS).to_pylist()
        return [Outcome.from_row({**row, "frames": 0, "tokens": 0}) for row in rows]
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise InvalidInputError(
            f"{folder.errors} cannot be read ({error}); remove it, and the videos that it named are tried again"
        ) from error


def write_errors(folder: OutputFolder, errors: Iterable[Outcome]) -> None:
    """Writes the videos without a result, replacing the report before; it is there whole or not at all."""
    rows = [outcome.to_row() for outcome in sorted(errors, key=lambda outcome: outcome.video)]
    for row in rows:
        row["video"] = _storable(row["video"])
    part = folder.path / f".{folder.errors.name}.{uuid.uuid4().hex}"
    pq.write_table(pa.Table.from_pylist(rows, schema=_ERRORS), part)
    os.replace(part, folder.errors)


def write_summary(folder: OutputFolder, summary: BulkSummary) -> Path:
    """Writes the counts as JSON."""
    write_atomically(folder.summary, json.dumps(summary.to_dict(), indent=2) + "\n")
    return folder.summary


def _storable(name: str) -> str:
    """A name as text; bytes that are no UTF-8 are written as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
