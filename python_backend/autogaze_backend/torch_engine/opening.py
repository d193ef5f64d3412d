"""How the torch engine is opened: its device, and how much memory it takes there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from autogaze_client._errors import InvalidInputError

from autogaze_backend.resident import frame_positions
from autogaze_backend.spec import ModelSpec
from autogaze_backend.torch_engine.pages import PAGE


@dataclass(frozen=True)
class TorchSettings:
    """How much memory an engine takes.

    Attributes:
        slots: rows that can be open at once.
        rows: the most rows of one call.
        cache_gib: memory of the cached keys and values; None takes a quarter of what the device has free, or
            1 GiB on a CPU.
        max_positions: cached positions of one row at most.
        awake_ms: milliseconds that a wait for the device takes a core, before it naps.
    """

    slots: int = 512
    rows: int = 256
    cache_gib: float | None = None
    max_positions: int = 131072
    awake_ms: float = 2.0

    @classmethod
    def from_environment(cls, device: torch.device) -> TorchSettings:
        """Reads AUTOGAZE_SLOTS, AUTOGAZE_ROWS, AUTOGAZE_CACHE_GIB and AUTOGAZE_AWAKE_MS.

        Raises:
            InvalidInputError: one of them is no positive number.
        """
        default = cls() if device.type == "cuda" else cls(slots=64, rows=64)
        slots = _number("AUTOGAZE_SLOTS", default.slots, int)
        rows = _number("AUTOGAZE_ROWS", min(default.rows, slots), int)
        if rows > slots:
            raise InvalidInputError(
                f"AUTOGAZE_ROWS is {rows}, more than the {slots} slots; lower it or raise AUTOGAZE_SLOTS"
            )
        cache = _number("AUTOGAZE_CACHE_GIB", None, float)
        awake = _number("AUTOGAZE_AWAKE_MS", default.awake_ms, float)
        return cls(slots=slots, rows=rows, cache_gib=cache, awake_ms=awake)


def _number(name: str, default: Any, kind: Callable[[str], Any]) -> Any:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise InvalidInputError(f"{name} is {text!r}; it must be a number above 0")
    return value


def cache_pages(spec: ModelSpec, settings: TorchSettings, device: torch.device, dtype: torch.dtype) -> int:
    """Pages of the cache that the settings' memory holds.

    Raises:
        InvalidInputError: less than a frame.
    """
    page = PAGE * spec.num_layers * 2 * spec.hidden_size * torch.empty(0, dtype=dtype).element_size()
    if settings.cache_gib is not None:
        memory = settings.cache_gib * 2**30
    elif device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0] / 4
    else:
        memory = 2**30
    pages = int(memory // page)
    least = -(-frame_positions(spec, spec.tokens_per_frame) // PAGE)
    if pages < least:
        raise InvalidInputError(
            f"{memory / 2**30:.3f} GiB of cache hold {pages * PAGE} positions, less than a frame's "
            f"{least * PAGE}; raise AUTOGAZE_CACHE_GIB"
        )
    return pages


def open_device(name: str) -> torch.device:
    """The torch device of a name.

    Raises:
        InvalidInputError: torch knows no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInputError(f"device is {name!r}; pass 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidInputError(
                f"device is {name!r}, but torch {torch.__version__} finds no CUDA device here; install a CUDA build of "
                "torch and NVIDIA's driver, or pass device='cpu'"
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise InvalidInputError(
                f"device is {name!r}, but there are {torch.cuda.device_count()} CUDA devices, numbered from 0"
            )
    elif device.type != "cpu":
        raise InvalidInputError(f"device is {name!r}; the torch engine runs on 'cpu' and 'cuda'")
    return device
