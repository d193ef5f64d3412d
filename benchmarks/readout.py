"""How long a readout takes on this machine, against the times it must keep.

    python -m benchmarks.readout [--json FILE]

Input is seeded: ids drawn without repetition, the same for every run. A row's time is the median of its runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_client import (
    AutoGazeGenerateOutput,
    FrameFixationTrace,
    ImagePyramidLevel,
    SparseReadoutGrid,
    SparseVideoReadoutGrid,
    SparseVideoReadoutOptions,
    fixation_image_mask_tensor,
    generated_to_video_readout_tokens,
    layouts_from_grids,
    sparsify_image_pyramid_tokens,
    tokenize_masked_image_pyramid,
    trace_to_video_readout_tokens,
)

from benchmarks.report import alternate, table, write

FRAMES = 16
TOKENS = 198
GRIDS = (2, 4, 7, 14)
# 1920x1080 in tiles of 224 pixels.
TILES_X, TILES_Y = 9, 5
TUBELETS = SparseVideoReadoutOptions(tubelet_size=2)


def generated_clip(seed: int = 0) -> AutoGazeGenerateOutput:
    """One clip of 16 frames with 198 tokens each."""
    rng = np.random.default_rng(seed)
    layouts = layouts_from_grids(GRIDS)
    n = sum(layout.token_count for layout in layouts)
    local = np.stack([rng.choice(n, TOKENS, replace=False) for _ in range(FRAMES)])
    shape = (1, FRAMES * TOKENS)
    return AutoGazeGenerateOutput(
        gazing_pos=(local + n * np.arange(FRAMES)[:, None]).reshape(shape),
        if_padded_gazing=np.zeros(shape, bool),
        num_gazing_each_frame=np.full(FRAMES, TOKENS),
        confidences=np.full(shape, 0.5, np.float32),
        task_loss_predictions=np.zeros(shape, np.float32),
        scale_layouts=layouts,
    )


def tiled_trace() -> FrameFixationTrace:
    """A 1080p clip in 9x5 tiles: 16 frames of 8,910 fixations."""
    tiles = []
    for tile in range(TILES_X * TILES_Y):
        rows = generated_clip(tile).fixations(0).astype(np.float64)
        rows[:, 1] = (rows[:, 1] + tile % TILES_X) / TILES_X
        rows[:, 2] = (rows[:, 2] + tile // TILES_X) / TILES_Y
        rows[:, 3] /= TILES_X
        rows[:, 4] /= TILES_Y
        tiles.append(rows)
    return FrameFixationTrace.from_array(
        np.concatenate(tiles).astype(np.float32), FRAMES, np.zeros(FRAMES, np.float32)
    )


def grid_cells(count: int, columns: int, rows: int) -> np.ndarray:
    """Distinct cells of a grid, float32 ``[count, 6]``."""
    cell = np.random.default_rng(0).choice(columns * rows, count, replace=False)
    size = np.ones(count)
    return np.column_stack(
        [
            (cell % columns + 0.5) / columns,
            (cell // columns + 0.5) / rows,
            size / columns,
            size / rows,
            size,
            14 * size,
        ]
    ).astype(np.float32)


def measure(
    name: str, call: Callable[[], object], *, target_ms: float | None = None, runs: int = 25
) -> dict[str, Any]:
    """A row: the median and the 90th percentile of ``runs`` calls after a warm-up, in milliseconds."""
    timing = alternate({name: call}, repeats=runs)[name]
    return {
        "benchmark": name,
        "median_ms": round(timing.median, 3),
        "p90_ms": round(sorted(timing.samples)[int(0.9 * runs)], 3),
        "target_ms": target_ms,
        "runs": runs,
    }


def run() -> list[dict[str, Any]]:
    """Measures everything; one row each."""
    generated, tiled = generated_clip(), tiled_trace()
    finest, image, vit, jepa = (
        SparseReadoutGrid(14 * TILES_Y, 14 * TILES_X),
        SparseReadoutGrid(14, 14),
        SparseVideoReadoutGrid(FRAMES // 2, 14, 14),
        SparseVideoReadoutGrid(FRAMES // 2, 16, 16),
    )
    large = SparseVideoReadoutGrid(FRAMES // 2, 68, 120)
    cells = grid_cells(2000, 14 * TILES_X, 14 * TILES_Y)
    points = (
        FrameFixationTrace.from_array(np.column_stack([np.zeros(len(cells)), cells]), 1, [0.0])
        .frames[0]
        .points
    )
    picture = np.random.default_rng(0).random((1, 3, 1080, 1920), np.float32)
    mask = fixation_image_mask_tensor(1, 1080, 1920, cells)
    levels = [ImagePyramidLevel(grid, grid) for grid in GRIDS]
    pyramid = tokenize_masked_image_pyramid(picture, mask, levels)
    clip = f"{FRAMES} frames x {TOKENS} tokens"
    tiles = f"1080p tiled, {FRAMES} x {len(tiled.frames[0]):,} fixations"
    return [
        measure(
            f"generated_to_video_readout_tokens: {clip} to 8x14x14",
            lambda: generated_to_video_readout_tokens(generated, None, 0, image, vit, None, TUBELETS),
            target_ms=2,
        ),
        measure(
            f"generated_to_video_readout_tokens: {clip} to 8x16x16",
            lambda: generated_to_video_readout_tokens(generated, None, 0, image, jepa, None, TUBELETS),
            target_ms=2,
        ),
        measure(
            f"trace_to_video_readout_tokens: {tiles} to 8x68x120",
            lambda: trace_to_video_readout_tokens(tiled, finest, large, None, TUBELETS),
            target_ms=40,
        ),
        measure(
            f"trace_to_video_readout_tokens: {tiles} to 8x68x120, no image grid",
            lambda: trace_to_video_readout_tokens(tiled, None, large, None, TUBELETS),
            target_ms=40,
        ),
        measure(
            "fixation_image_mask_tensor: 1080p, 2,000 cells as an array",
            lambda: fixation_image_mask_tensor(1, 1080, 1920, cells),
            target_ms=5,
        ),
        measure(
            "fixation_image_mask_tensor: 1080p, 2,000 cells as points",
            lambda: fixation_image_mask_tensor(1, 1080, 1920, points),
            target_ms=5,
        ),
        measure(
            "tokenize_masked_image_pyramid: 1080p RGB, levels 2 4 7 14",
            lambda: tokenize_masked_image_pyramid(picture, mask, levels),
            runs=7,
        ),
        measure(
            "sparsify_image_pyramid_tokens: 64 of 265", lambda: sparsify_image_pyramid_tokens(pyramid, 64)
        ),
    ]


def main() -> None:
    """Prints the table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description="Benchmark of the readout functions.")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    rows = run()
    print(table(rows))
    if args.json is not None:
        write(args.json, "readout", rows)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
