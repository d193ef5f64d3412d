"""System shared memory between a client and a server on one machine: pixels are copied once, not serialised.

The regions are ``multiprocessing``'s, whose resource tracker removes them even when this process is killed.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SharedMemoryPool", "SharedRegion", "is_local", "stale_regions"]

_LOG = logging.getLogger("autogaze_client")

# Below this, registering and bookkeeping cost what serialising would.
_MIN_BYTES = 128 * 1024
_PREFIX = "autogaze-client-"


def is_local(url: str) -> bool:
    """Whether ``host:port`` names this machine, the only place where memory can be shared."""
    host = url.rsplit(":", 1)[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.") or url.startswith("unix:")


@dataclass
class SharedRegion:
    """A piece of shared memory, and whether the server knows it.

    Attributes:
        memory: the mapping; its name without the leading slash is the region's name on the server.
        registered: whether the server was told.
    """

    memory: SharedMemory
    registered: bool = field(default=False)

    @property
    def name(self) -> str:
        """The region's name on the server."""
        return self.memory.name.lstrip("/")

    @property
    def key(self) -> str:
        """What the server opens."""
        return f"/{self.name}"

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return self.memory.size

    def write(self, array: NDArray[Any]) -> None:
        """Copies an array to the region's start."""
        np.ndarray(array.shape, array.dtype, buffer=self.memory.buf)[...] = array


class SharedMemoryPool:
    """The regions of one client; each carries one input at a time and is then used again. Thread-safe."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._free: list[SharedRegion] = []
        self._all: list[SharedRegion] = []
        self._lock = threading.Lock()

    @property
    def enabled(self) -> bool:
        """Whether inputs are to be shared."""
        return self._enabled

    def wants(self, array: NDArray[Any]) -> bool:
        """Whether this input is worth a region."""
        return self._enabled and array.nbytes >= _MIN_BYTES

    def take(self, size: int) -> SharedRegion:
        """A region of at least ``size`` bytes, the smallest that is free, else a new one.

        Raises:
            OSError: the system has no room for another.
        """
        with self._lock:
            fitting = [region for region in self._free if region.size >= size]
            if fitting:
                region = min(fitting, key=lambda item: item.size)
                self._free.remove(region)
                return region
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        memory = SharedMemory(name, create=True, size=size)
        try:
            # Reserve the pages now: a full /dev/shm must be an error here, not a SIGBUS while copying.
            descriptor = os.open(f"/dev/shm/{name}", os.O_RDWR)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError:
            memory.close()
            memory.unlink()
            raise
        region = SharedRegion(memory)
        with self._lock:
            self._all.append(region)
        return region

    def give_back(self, regions: list[SharedRegion]) -> None:
        """Makes regions free again."""
        with self._lock:
            self._free.extend(regions)

    def forget_registrations(self) -> None:
        """The server was restarted: every region must be made known to it anew."""
        with self._lock:
            for region in self._all:
                region.registered = False

    def disable(self, reason: object) -> None:
        """Goes back to the wire for good, and says why at debug level."""
        if self._enabled:
            _LOG.debug("shared memory is not used: %s", reason)
        self._enabled = False

    def close(self) -> list[SharedRegion]:
        """Removes every region; returns those that the server still knows, for it to forget."""
        with self._lock:
            regions, self._all, self._free = self._all, [], []
            self._enabled = False
        for region in regions:
            region.memory.close()
            region.memory.unlink()
        return [region for region in regions if region.registered]


def stale_regions(status: dict[str, Any]) -> list[str]:
    """Regions of AutoGaze clients that are gone: the server holds them, but their memory has no name any more.

    Args:
        status: the server's answer to a system shared memory status request, as a dictionary.
    """
    return [
        name
        for name, region in status.get("regions", {}).items()
        if name.startswith(_PREFIX) and not Path("/dev/shm", region.get("key", "").lstrip("/")).exists()
    ]
