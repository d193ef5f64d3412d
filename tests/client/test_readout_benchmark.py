"""The benchmark measures what its targets name. Timings decide nothing here: `make bench` reports them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import readout


def test_every_row_has_a_time_and_most_have_a_target():
    rows = readout.run()
    assert all(row["median_ms"] > 0 for row in rows)
    assert sum(row["target_ms"] is not None for row in rows) == 6


def test_the_inputs_are_those_that_the_targets_name():
    tiled = readout.tiled_trace()
    assert [len(frame) for frame in tiled.frames] == [8910] * 16
    assert readout.generated_clip().tokens_of_rows.tolist() == [[198] * 16]
