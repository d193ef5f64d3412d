"""Memory that a client shares with a server on one machine: pixels are copied once, not serialised.

System regions are ``multiprocessing``'s, whose resource tracker removes them even when this process is killed.
What lies on a CUDA device goes through ``_cuda_memory``.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from abc import ABC, abstractmethod
from bisect import insort_left
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.shared_memory import SharedMemory
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autogaze_client._device_arrays import DeviceArray

__all__ = [
    "ClientMemory",
    "MemoryUnavailableError",
    "RegionPool",
    "SharedRegion",
    "SystemMemoryPool",
    "SystemRegion",
    "is_local",
    "new_name",
    "stale_regions",
]

_LOG = logging.getLogger("autogaze_client")

# Below this, registering and bookkeeping cost what serialising would.
_MIN_BYTES = 128 * 1024
_PREFIX = "autogaze-client-"


class MemoryUnavailableError(Exception):
    """A region cannot be made or written; the next way is tried. Never seen by callers."""


def is_local(url: str) -> bool:
    """Whether ``host:port`` names this machine, the only place where memory can be shared."""
    host = url.rsplit(":", 1)[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.") or url.startswith("unix:")


def new_name() -> str:
    """A name for a region that no other one has, on this machine or on the server."""
    return f"{_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"


class SharedRegion(ABC):
    """A piece of shared memory, and whether the server knows it.

    Attributes:
        name: on the server.
        size: bytes that it holds.
        registered: whether the server was told.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.registered = False

    @abstractmethod
    def fits(self, array: NDArray[Any] | DeviceArray) -> bool:
        """Whether this array can go here."""

    @abstractmethod
    def write(self, array: NDArray[Any] | DeviceArray) -> None:
        """Copies an array to the region's start.

        Raises:
            MemoryUnavailableError: it could not.
        """

    @abstractmethod
    def release(self) -> None:
        """Gives the memory back to the system."""


class SystemRegion(SharedRegion):
    """System shared memory, of ``size`` bytes that are all there.

    Raises:
        MemoryUnavailableError: the system has no room for it.
    """

    def __init__(self, size: int) -> None:
        name = new_name()
        try:
            self._memory = SharedMemory(name, create=True, size=size)
        except OSError as error:
            raise MemoryUnavailableError(str(error)) from error
        try:
            # Reserve the pages now: a full /dev/shm must be an error here, not a SIGBUS while copying.
            descriptor = os.open(f"/dev/shm/{name}", os.O_RDWR)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.release()
            raise MemoryUnavailableError(str(error)) from error
        super().__init__(name, self._memory.size)

    @property
    def key(self) -> str:
        """What the server opens."""
        return f"/{self.name}"

    def fits(self, array: NDArray[Any] | DeviceArray) -> bool:
        return array.nbytes <= self.size

    def write(self, array: NDArray[Any] | DeviceArray) -> None:
        np.ndarray(array.shape, array.dtype, buffer=self._memory.buf)[...] = np.asarray(array)

    def release(self) -> None:
        self._memory.close()
        self._memory.unlink()


class RegionPool(ABC):
    """The regions of one client and one kind; each carries one input at a time and is then used again. Thread-safe.

    The methods that talk to a server take a tritonclient connection and return what its call returns, which for
    the asyncio one is to be awaited.

    Args:
        enabled: whether inputs are to be shared at all.
    """

    kind: str

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._free: list[SharedRegion] = []  # the smallest first
        self._all: list[SharedRegion] = []
        self._lock = threading.Lock()
        self.cleaned = False

    @property
    def enabled(self) -> bool:
        """Whether inputs are to be shared."""
        return self._enabled

    def wants(self, array: NDArray[Any] | DeviceArray) -> bool:
        """Whether this input is worth a region."""
        return self._enabled and array.nbytes >= _MIN_BYTES

    @abstractmethod
    def _make(self, array: NDArray[Any] | DeviceArray) -> SharedRegion:
        """A new region that the array fits in; raises MemoryUnavailableError."""

    @abstractmethod
    def register(self, triton: Any, region: Any, **call: Any) -> Any:
        """Makes a region known to the server."""

    def unregister(self, triton: Any, name: str, **call: Any) -> Any:
        """Makes the server forget a region."""
        return getattr(triton, f"unregister_{self.kind}_shared_memory")(name, **call)

    def status(self, triton: Any, **call: Any) -> Any:
        """The regions of this kind that the server knows, as a dictionary."""
        return getattr(triton, f"get_{self.kind}_shared_memory_status")(as_json=True, **call)

    def take(self, array: NDArray[Any] | DeviceArray) -> SharedRegion:
        """A region that an array fits in, the smallest that is free, else a new one.

        Raises:
            MemoryUnavailableError: there is no room for another.
        """
        with self._lock:
            for index, region in enumerate(self._free):
                if region.fits(array):
                    return self._free.pop(index)
        region = self._make(array)
        with self._lock:
            self._all.append(region)
        return region

    def give_back(self, region: SharedRegion) -> None:
        """Makes a region free again; of a pool that is not used any more, it is removed."""
        with self._lock:
            if region not in self._all:
                return  # the client was closed meanwhile
            if self._enabled or region.registered:
                # Before others of its size: the last one used is in the processor's cache.
                insort_left(self._free, region, key=attrgetter("size"))
                return
            self._all.remove(region)
        region.release()

    def forget_registrations(self) -> None:
        """The server was restarted: every region must be made known to it anew."""
        with self._lock:
            for region in self._all:
                region.registered = False

    def disable(self, reason: object) -> None:
        """Goes to the next way for good, and says why at debug level."""
        if self._enabled:
            _LOG.debug("%s shared memory is not used: %s", self.kind, reason)
        with self._lock:
            self._enabled = False
            useless = [region for region in self._free if not region.registered]
            self._free = [region for region in self._free if region.registered]
            self._all = [region for region in self._all if region not in useless]
        for region in useless:
            region.release()

    def registered(self) -> list[str]:
        """The names of the regions that the server knows."""
        with self._lock:
            return [region.name for region in self._all if region.registered]

    def close(self) -> None:
        """Removes every region; the server must have forgotten them."""
        with self._lock:
            regions, self._all, self._free = self._all, [], []
            self._enabled = False
        for region in regions:
            region.release()


class SystemMemoryPool(RegionPool):
    """Regions of system shared memory, for any input."""

    kind = "system"

    def _make(self, array: NDArray[Any] | DeviceArray) -> SharedRegion:
        return SystemRegion(array.nbytes)

    def register(self, triton: Any, region: Any, **call: Any) -> Any:
        return triton.register_system_shared_memory(region.name, region.key, region.size, **call)


class ClientMemory:
    """Everything that one client shares, in the order of trying. Thread-safe.

    Args:
        pools: the first that wants an input takes it.
    """

    def __init__(self, *pools: RegionPool) -> None:
        self.pools = pools

    def share(
        self, inputs: Mapping[str, NDArray[Any] | DeviceArray]
    ) -> dict[str, tuple[RegionPool, SharedRegion]]:
        """Copies the large inputs into regions; a pool that has no room is not asked again."""
        shared: dict[str, tuple[RegionPool, SharedRegion]] = {}
        for name, array in inputs.items():
            for pool in self.pools:
                if not pool.wants(array):
                    continue
                try:
                    region = pool.take(array)
                except MemoryUnavailableError as error:
                    pool.disable(error)
                    continue
                try:
                    region.write(array)
                except BaseException as error:
                    pool.give_back(region)
                    if not isinstance(error, MemoryUnavailableError):
                        self.give_back(shared.values())
                        raise
                    pool.disable(error)
                    continue
                shared[name] = (pool, region)
                break
        return shared

    def give_back(self, shared: Iterable[tuple[RegionPool, SharedRegion]]) -> None:
        """Makes regions free again."""
        for pool, region in shared:
            pool.give_back(region)

    @property
    def enabled(self) -> bool:
        """Whether anything is shared."""
        return any(pool.enabled for pool in self.pools)

    def forget_registrations(self) -> None:
        """The server was restarted: every region must be made known to it anew."""
        for pool in self.pools:
            pool.forget_registrations()

    def disable(self, reason: object) -> None:
        """Goes back to the wire for good."""
        for pool in self.pools:
            pool.disable(reason)

    def registered(self) -> Iterator[tuple[RegionPool, str]]:
        """Every region that the server knows."""
        for pool in self.pools:
            for name in pool.registered():
                yield pool, name

    def close(self) -> None:
        """Removes every region; the server must have forgotten them."""
        for pool in self.pools:
            pool.close()


def stale_regions(status: dict[str, Any]) -> list[str]:
    """Regions of AutoGaze clients that are gone: the server holds them, but nothing in /dev/shm has their name.

    Args:
        status: the server's answer to a shared memory status request, as a dictionary.
    """
    return [
        name
        for name in status.get("regions", {})
        if name.startswith(_PREFIX) and not Path("/dev/shm", name).exists()
    ]
