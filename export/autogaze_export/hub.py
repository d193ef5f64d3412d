"""Downloads a checkpoint from the hub: of one commit, named and recorded, and compared with the hub's hash."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from autogaze_client._errors import CheckpointError, MissingExtraError, NotFoundError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubSnapshot:
    """A checkpoint in the local hub cache.

    Attributes:
        folder: its files.
        commit: the commit that they are of; a branch or tag is resolved to it.
    """

    folder: Path
    commit: str

    def check_hash(self, name: str, sha256: str) -> None:
        """Compares a file's SHA-256 with the one that the hub declared when it was downloaded.

        The cache keeps a large file under that hash and links to it; where the system has no links, there is
        nothing to compare with.

        Raises:
            CheckpointError: they differ.
        """
        stored = (self.folder / name).resolve()
        if stored.parent.name == "blobs" and _SHA256.fullmatch(stored.name) and stored.name != sha256:
            raise CheckpointError(
                f"{self.folder / name} has SHA-256 {sha256}, but the hub declared {stored.name}: the file was changed "
                f"or its download is damaged; delete {stored} and build again"
            )


def download(hub_id: str, revision: str | None, files: list[str]) -> HubSnapshot:
    """Downloads files of a repository, or finds them in the cache.

    Args:
        hub_id: ``owner/name``.
        revision: branch, tag or commit; None = the main branch.
        files: names to download; others are left.

    Raises:
        NotFoundError: no such repository or revision, or the hub cannot be reached.
        MissingExtraError: huggingface_hub is not installed.
    """
    if hub_id.startswith((".", "/", "~")) or hub_id.count("/") != 1:
        raise NotFoundError(
            f"{hub_id!r} is neither an existing folder, nor a hub id of the form owner/name, nor 'open'"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError.for_extra("Loading a checkpoint from the hub", "server", error) from error
    try:
        path = Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
    except HFValidationError as error:
        raise NotFoundError(f"{hub_id!r} is no folder here and no valid hub id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise NotFoundError(
            f"{hub_id!r} is no folder here, is not in the local hub cache, and the hub cannot be reached; "
            "connect, or download the folder elsewhere and pass its path"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise NotFoundError(
            f"the hub did not give {hub_id!r}: {error}; check the name, and log in with `hf auth login` if it is gated"
        ) from error
    if not _COMMIT.fullmatch(path.name):
        raise CheckpointError(
            f"the hub's files of {hub_id!r} are in {path}, which names no commit; download the folder and pass its path"
        )
    return HubSnapshot(path, path.name)
