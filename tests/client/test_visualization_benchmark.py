"""The benchmark draws what its rows say; its times are for reading, and decide nothing here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import visualization


def test_the_rows_cover_what_they_name():
    rows = visualization.run(repeats=1)
    named = {row["benchmark"]: row["covered"] for row in rows if "native" in row["benchmark"]}
    assert len(rows) == 12
    for share, covered in zip((0.05, 0.5, 0.95), named.values(), strict=True):
        assert abs(covered - share) < 0.02
    assert all(row["median_ms"] > 0 for row in rows)
