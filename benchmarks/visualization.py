"""How long a visualised 1080p frame takes on one core, at three shares of covered pixels.

    python -m benchmarks.visualization [--json FILE]

2,000 seeded cells a frame. A row's time is the median of its runs, taken in turn with the other rows.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_client import (
    AutoGazeMaskGeometryMode,
    AutoGazeRgbaVisualizationOptions,
    AutoGazeVisualizationMode,
    AutoGazeVisualizationPanels,
    AutoGazeVisualizationState,
)

from benchmarks.report import alternate, table, write

WIDTH, HEIGHT, CELLS = 1920, 1080, 2000
TARGET_MS = 8.0
# Columns and rows of grids of which 2,000 cells cover about so much.
GRIDS = {"5 %": (240, 166), "50 %": (80, 50), "95 %": (54, 39)}


def cells(columns: int, rows: int) -> np.ndarray:
    """2,000 distinct cells of a grid, float32 ``[n, 6]``."""
    cell = np.random.default_rng(0).choice(columns * rows, CELLS, replace=False)
    one = np.ones(CELLS)
    centre = [(cell % columns + 0.5) / columns, (cell // columns + 0.5) / rows]
    return np.column_stack([*centre, one / columns, one / rows, one, 14 * one]).astype(np.float32)


def drawing(
    points: np.ndarray, geometry: AutoGazeMaskGeometryMode
) -> Callable[[], AutoGazeVisualizationPanels]:
    """A call that draws the next interframe output."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8) for _ in range(2)]
    state = AutoGazeVisualizationState(AutoGazeVisualizationMode.INTERFRAME, 0)
    options = AutoGazeRgbaVisualizationOptions(WIDTH, HEIGHT, mask_geometry_mode=geometry)
    state.visualize_rgba_panels(frames[1], points, options)

    def draw() -> AutoGazeVisualizationPanels:
        return state.visualize_rgba_panels(frames[state.frame_index % 2], points, options)

    return draw


def run(repeats: int = 25) -> list[dict[str, Any]]:
    """Measures every geometry at every coverage on one core; one row each."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        return _measured(repeats)
    finally:
        os.sched_setaffinity(0, allowed)


def _measured(repeats: int) -> list[dict[str, Any]]:
    calls: dict[str, Callable[[], object]] = {}
    shares: dict[str, float] = {}
    for geometry in AutoGazeMaskGeometryMode:
        for share, grid in GRIDS.items():
            draw = drawing(cells(*grid), geometry)
            name = f"interframe output: 1080p, 2,000 {geometry} cells, {share}"
            calls[name], shares[name] = draw, draw().mask_ratio()
            if geometry is AutoGazeMaskGeometryMode.NATIVE:
                with_mask = f"the same with its mask panel, {share}"
                calls[with_mask] = lambda draw=draw: draw().mask_rgba  # type: ignore[misc]
                shares[with_mask] = shares[name]
    timings = alternate(calls, repeats=repeats)
    return [
        {
            "benchmark": name,
            "covered": round(shares[name], 3),
            "median_ms": round(timing.median, 2),
            "p90_ms": round(sorted(timing.samples)[int(0.9 * len(timing.samples))], 2),
            "target_ms": None if "mask panel" in name else TARGET_MS,
            "runs": len(timing.samples),
        }
        for name, timing in timings.items()
    ]


def main() -> None:
    """Prints the table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description="Benchmark of the visualisation.")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    rows = run()
    print(table(rows))
    if args.json is not None:
        write(args.json, "visualization", rows)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
