"""Where an engine is to run: "cpu", "cuda", "cuda:1" or "auto"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from autogaze_client._errors import InvalidInputError

from autogaze_backend.plan_selection import Machine


@dataclass(frozen=True)
class Device:
    """A device as the caller named it.

    Attributes:
        name: "cpu", "cuda:<number>", or "auto".
        index: the GPU's number; 0 for "auto"; None for "cpu".
    """

    name: str
    index: int | None

    @classmethod
    def parse(cls, text: str) -> Device:
        """Reads "cpu", "cuda", "cuda:<number>" or "auto"; "cuda" is "cuda:0".

        Raises:
            InvalidInputError: anything else.
        """
        if text == "cpu":
            return cls(text, None)
        if text == "auto":
            return cls(text, 0)
        match = re.fullmatch(r"cuda(?::(\d{1,3}))?", text)
        if match is None:
            raise InvalidInputError(f"device is {text!r}; pass 'cpu', 'cuda', 'cuda:<number>' or 'auto'")
        index = int(match[1] or 0)
        return cls(f"cuda:{index}", index)

    @property
    def allows_cpu(self) -> bool:
        """Whether an engine may run on the CPU."""
        return self.name in ("cpu", "auto")

    @property
    def gpu(self) -> str:
        """The GPU's name for CUDA, such as "cuda:0"."""
        return f"cuda:{self.index or 0}"

    @cached_property
    def machine(self) -> Machine:
        """What is here, looked at once, and only when an engine asks."""
        return Machine.probe()

    def on(self, machine: Machine) -> Device:
        """This device on another machine than this one, for reports and tests."""
        other = Device(self.name, self.index)
        other.__dict__["machine"] = machine
        return other
