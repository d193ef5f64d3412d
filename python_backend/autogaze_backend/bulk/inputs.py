"""The videos of a folder."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autogaze_client._errors import InvalidInputError, NotFoundError

VIDEO_SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".apng",
        ".asf",
        ".avi",
        ".flv",
        ".gif",
        ".h264",
        ".hevc",
        ".ivf",
        ".m2ts",
        ".m4v",
        ".mj2",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogg",
        ".ogv",
        ".ts",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
"""What counts as a video where no pattern is given, in any case."""


@dataclass(frozen=True, order=True)
class VideoFile:
    """A video as it was found.

    Attributes:
        name: path below the input folder, with ``/``; the file's name where the input is one file.
        size: bytes.
        mtime_ns: time of the last change, which with the size tells whether the file is still the same.
    """

    name: str
    size: int
    mtime_ns: int

    @property
    def is_text(self) -> bool:
        """Whether the name can be stored: file systems allow bytes that are no UTF-8."""
        try:
            self.name.encode("utf-8")
        except UnicodeEncodeError:
            return False
        return True


def find_videos(source: Path, patterns: Sequence[str] = ()) -> tuple[Path, list[VideoFile]]:
    """The videos of a folder and all folders below, sorted by name; or one file.

    Links to files are followed, links to folders are not, and names that begin with a dot are left out.

    Args:
        source: a folder or a video.
        patterns: of names such as ``*.mp4`` or ``day1/*``, any of which a file must match, in place of the known
            suffixes.

    Returns:
        The folder that the names are below, and the videos.

    Raises:
        NotFoundError: ``source`` does not exist.
        InvalidInputError: it holds no video.
    """
    if source.is_file():
        return source.parent, [_video(source.parent, source.name)]
    if not source.is_dir():
        raise NotFoundError(f"{source} does not exist; pass a folder of videos, or one video")
    names = [
        Path(folder, file).relative_to(source).as_posix()
        for folder, folders, files in os.walk(source)
        if not _hide(folders)
        for file in files
        if not file.startswith(".")
    ]
    if patterns:
        chosen = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    else:
        chosen = [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    if not chosen:
        wanted = f"that match {' or '.join(patterns)}" if patterns else "with a video's suffix"
        raise InvalidInputError(
            f"{source} has no files {wanted} ({len(names)} others); pass the folder of the videos, or --pattern"
        )
    return source, [_video(source, name) for name in sorted(chosen)]


def _hide(folders: list[str]) -> bool:
    """Keeps ``os.walk`` out of hidden folders; gives False, so that it can stand in a condition."""
    folders[:] = [folder for folder in folders if not folder.startswith(".")]
    return False


def _video(root: Path, name: str) -> VideoFile:
    try:
        found = (root / name).stat()
    except OSError:
        # A link that leads nowhere is an error of this one video, which reading it will tell.
        return VideoFile(name, -1, -1)
    return VideoFile(name, found.st_size, found.st_mtime_ns)
