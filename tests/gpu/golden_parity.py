"""Golden clips on an engine that runs plans, and the result in the plans' manifest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from autogaze_backend import GazeModel
from autogaze_backend.plans import Agreement, Parity, PlanSet


@dataclass(frozen=True)
class Outcome:
    """What ran, and the names of the cases whose tokens differ."""

    cases: int
    different: tuple[str, ...]


def run_cases(model: GazeModel, cases: Iterable[Any]) -> Outcome:
    """Runs each case and compares every token with the published model's."""
    different, count = [], 0
    for case in cases:
        count += 1
        generated = model.generate(case.video, **case.knobs)
        names = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")
        if not all(np.array_equal(getattr(generated, name), case.expected[name]) for name in names):
            different.append(case.name)
    return Outcome(count, tuple(different))


def record(
    plans: PlanSet, outcome: Outcome, *, gpu: str, driver: str, agreement: Agreement | None = None
) -> PlanSet:
    """Writes the outcome into the plans' manifest, also where tokens differ: a manifest must say so."""
    identical = outcome.cases - len(outcome.different)
    noted = replace(plans, parity=Parity(gpu, driver, outcome.cases, identical, agreement))
    noted.write()
    return noted
