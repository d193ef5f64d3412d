"""Several instances of one model: each is a process of its own, and what is said of the model they share out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from autogaze_client._errors import InvalidInputError

from autogaze_backend.limits import StreamLimits

# Slots that an instance has beside its streams' own: for canaries and streams of one frame.
_SPARE_SLOTS = 8
# What the torch engine takes on a GPU where nothing is said: slots, and a share of the free memory.
_GPU_SLOTS, _GPU_SHARE = 512, 4
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

    def of_limits(self, limits: StreamLimits) -> StreamLimits:
        """The limits of this instance; ``max_streams`` is that of all instances together.

        Raises:
            InvalidInputError: the streams cannot be shared out evenly. Triton hands new streams to the instances in
                turn, so with uneven parts one would give streams up while another has room.
        """
        if limits.max_streams % self.count:
            raise InvalidInputError(
                f"max_streams is {limits.max_streams}, but {self.count} instances share it evenly; set "
                f"AUTOGAZE_MAX_STREAMS to a multiple of {self.count}, or change AUTOGAZE_STREAM_INSTANCES"
            )
        return replace(limits, max_streams=limits.max_streams // self.count)

    def threads(self) -> int | None:
        """Threads of a CPU engine; None where there is one instance, which may have all."""
        return None if self.count == 1 else max(1, len(os.sched_getaffinity(0)) // self.count)

    def engine_environment(
        self, limits: StreamLimits, environ: Mapping[str, str] = os.environ
    ) -> dict[str, str]:
        """The variables of the torch engine's memory, shared out; nothing where there is one instance.

        Args:
            limits: of this instance.
            environ: what is said of the model.

        Raises:
            InvalidInputError: a variable is no number.
        """
        if self.count == 1:
            return {}
        made: dict[str, str] = {}
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
            share = max(-(-int(slots) // self.count), limits.max_streams + _SPARE_SLOTS)
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
