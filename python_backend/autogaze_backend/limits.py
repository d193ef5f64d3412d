"""Limits from a model's parameters and the environment, in one way for every model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import TypeVar

from autogaze_client._errors import InvalidInputError

T = TypeVar("T")


def read_limits(kind: type[T], parameters: Mapping[str, str]) -> T:
    """Fills a dataclass of numbers: the environment's ``AUTOGAZE_<FIELD>``, else the parameter, else the default.

    Raises:
        InvalidInputError: a limit is no number above 0, or no whole one where it must be.
    """
    values: dict[str, float] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        text = os.environ.get(f"AUTOGAZE_{field.name.upper()}", parameters.get(field.name))
        if text is None:
            continue
        whole = field.type in ("int", int)
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            rule = "an integer of at least 1" if whole else "a number above 0"
            raise InvalidInputError(f"limit {field.name} is {text!r}; it must be {rule}")
        values[field.name] = value
    return kind(**values)
