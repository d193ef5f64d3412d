"""The benchmark times what its rows say; its times are for reading, and decide nothing here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import preprocess

SIZES = ((224, 224, 3), (240, 300, 4))


def test_every_mode_and_part_of_the_host_has_a_row():
    rows = preprocess.host_rows(1, SIZES)
    assert [
        row["part"]
        for row in rows
        if "300x240 RGBA" in row["benchmark"] and "resize mode" in row["benchmark"]
    ] == [
        "all",
        "normalise",
        "Pillow's resize",
        "square resize",
    ]
    assert {row["benchmark"].split(",")[0] for row in rows} == {
        "resize mode",
        "tiled_resize_to_grid",
        "tiled_full_resolution",
    }
    assert all(row["median_ms"] > 0 and row["frames_per_s"] > 0 for row in rows)


def test_a_devices_rows_name_it_and_what_runs_there():
    pytest.importorskip("torch", reason="needs torch; pip install 'autogaze-triton[torch]'")
    rows = preprocess.device_rows("cpu", 1, SIZES)
    assert all(row["benchmark"].endswith("cpu (torch)") for row in rows)
    assert {row["part"] for row in rows} == {
        "all",
        "upload",
        "compute",
        "compute, half precision",
        "one tile",
    }
