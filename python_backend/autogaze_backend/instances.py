"""Several instances of one model: each is a process of its own, and what is said of the model they share out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from autogaze_client._errors import InvalidInputError

from autogaze_backend.limits import ClipLimits, StreamLimits, variable

Shared = TypeVar("Shared", ClipLimits, StreamLimits)

# The limit that is of all instances together, and the variable that says how many these are.
_SHARED: dict[type, tuple[str, str]] = {
    ClipLimits: ("max_active_clips", "AUTOGAZE_CLIP_INSTANCES"),
    StreamLimits: ("max_streams", "AUTOGAZE_STREAM_INSTANCES"),
}

# Slots that an instance has beside its streams' own: for canaries and streams of one frame.
_SPARE_SLOTS = 8
# What the torch engine takes on a GPU where nothing is said: slots, and a share of the free memory.
_GPU_SLOTS, _GPU_SHARE = 512, 4
# Milliseconds that an instance's waits for the GPU take a core where nothing is said: little, since it has to wait for
# the others' work, too.
_AWAKE_MS = "0.2"
_GPU_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")


@dataclass(frozen=True)
class InstanceShare:
    """The part of one instance.

    Attributes:
        count: instances of the model.
    """

    count: int = 1

    @classmethod
    def of(cls, args: Mapping[str, str]) -> InstanceShare:
        """The part of an instance that ``initialize`` is called for."""
        groups = json.loads(args["model_config"]).get("instance_group") or [{}]
        return cls(sum(int(group.get("count") or 1) for group in groups))

    def of_limits(self, limits: Shared) -> Shared:
        """The limits of this instance; ``max_streams`` or ``max_active_clips`` is that of all instances together.

        Raises:
            InvalidInputError: the places cannot be shared out evenly. Triton hands what is new to the instances in
                turn, so with uneven parts one would be full, or give streams up, while another has room.
        """
        limit, instances = _SHARED[type(limits)]
        places = getattr(limits, limit)
        if places % self.count:
            raise InvalidInputError(
                f"{limit} is {places}, but {self.count} instances share it evenly; set {variable(limit)} to a "
                f"multiple of {self.count}, or change {instances}"
            )
        return replace(limits, **{limit: places // self.count})

    def threads(self) -> int | None:
        """Threads of a CPU engine; None where there is one instance, which may have all."""
        return None if self.count == 1 else max(1, len(os.sched_getaffinity(0)) // self.count)

    def engine_environment(self, streams: int = 0, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The variables of the torch engine, shared out; nothing where there is one instance.

        An instance sees what the GPU has free when it starts, which is never more than before the first one did. So
        whatever the order, the instances of a model take a quarter of that at most where nothing is said.

        Args:
            streams: that this instance holds; each has a slot as long as it lives, while a clip's rows take turns.
            environ: what is said of the model.

        Raises:
            InvalidInputError: a variable is no number.
        """
        if self.count == 1:
            return {}
        made = {"AUTOGAZE_AWAKE_MS": environ.get("AUTOGAZE_AWAKE_MS", _AWAKE_MS)}
        cache = _number(environ, "AUTOGAZE_CACHE_GIB")
        on_gpu = any(Path(node).exists() for node in _GPU_NODES)
        if cache is None and on_gpu:
            cache = _free_gib(environ.get("AUTOGAZE_DEVICE", ""), _GPU_SHARE)
        if cache is not None:
            made["AUTOGAZE_CACHE_GIB"] = repr(cache / self.count)
        slots = _number(environ, "AUTOGAZE_SLOTS")
        if slots is None and on_gpu:
            slots = float(_GPU_SLOTS)
        if slots is not None:
            share = -(-int(slots) // self.count)
            if streams:
                share = max(share, streams + _SPARE_SLOTS)
            made["AUTOGAZE_SLOTS"] = str(share)
            rows = _number(environ, "AUTOGAZE_ROWS")
            if rows is not None:
                made["AUTOGAZE_ROWS"] = str(min(int(rows), share))
        return made


def _number(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInputError(f"{name} is {text!r}; it must be a number above 0") from None


def _free_gib(device: str, parts: int) -> float | None:
    """A part of what the GPU has free now; None where torch finds none."""
    try:
        import torch
    except ImportError:
        return None
    if device == "cpu" or not torch.cuda.is_available():
        return None
    _, _, index = device.partition(":")
    free, _ = torch.cuda.mem_get_info(int(index) if index.isdigit() else 0)
    return float(free) / 2**30 / parts
