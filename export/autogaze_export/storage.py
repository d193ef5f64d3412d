"""Says in plain words that a bundle does not fit where it is to go."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autogaze_client._errors import AutoGazeError
from safetensors import SafetensorError

__all__ = ["BundleWriteError", "no_room_told"]

# A full disk, a used up quota, a file larger than this process may write (ulimit -f).
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors gives the number in its text only.
_NUMBER = re.compile(r"os error (\d+)")


class BundleWriteError(AutoGazeError, OSError):
    """A bundle could not be written; nothing of it is left, and one that was there before is as it was."""


@contextmanager
def no_room_told(folder: Path) -> Iterator[None]:
    """Turns what a full disk raises into ``BundleWriteError``.

    Args:
        folder: the bundle's, named in the message.

    Raises:
        BundleWriteError: there was no room.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = _NUMBER.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number not in _NO_ROOM:
            raise
        raise BundleWriteError(
            f"cannot write the bundle {folder}: there is no room on its disk, or this process may write no more "
            f"({errno.errorcode[number]}); free some or choose another folder"
        ) from error
