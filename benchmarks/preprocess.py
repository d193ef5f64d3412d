"""How long frames take to become model input, on the host and on a torch device.

    python -m benchmarks.preprocess [--device cpu|cuda:0|none] [--json FILE]

A clip of 16 frames of noise; a row's time is the median of its runs, and a device's includes the upload and the wait.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend.preprocessing import (
    PreprocessingConfig,
    normalise,
    preprocess,
    resize_shortest_edge,
    resize_to_input,
)
from autogaze_backend.tiling import TileLayout
from autogaze_client import AutoGazeInferenceMode, MissingExtraError

from benchmarks.report import alternate, table, write

FRAMES = 16
SIDE = 224
# Height, width, channels.
SIZES = ((224, 224, 3), (720, 1280, 3), (1080, 1920, 3), (1080, 1920, 4))
CONFIG = PreprocessingConfig()


def clip_of(height: int, width: int, channels: int, frames: int = FRAMES) -> np.ndarray:
    """Noise, the same every time."""
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, channels), dtype=np.uint8)


def host_rows(runs: int, sizes: tuple[tuple[int, int, int], ...] = SIZES) -> list[dict[str, Any]]:
    """The host's path, and its parts where there are any."""
    rows = []
    for size in sizes:
        clip = clip_of(*size)
        resized = resize_shortest_edge(clip, CONFIG.shortest_edge)
        video = normalise(resized, CONFIG)
        parts: dict[str, Callable[[], object]] = {
            "all": lambda clip=clip: preprocess(clip, CONFIG, SIDE),
            "normalise": lambda resized=resized: normalise(resized, CONFIG),
        }
        if size[:2] != (SIDE, SIDE):
            parts["Pillow's resize"] = lambda clip=clip: resize_shortest_edge(clip, CONFIG.shortest_edge)
            parts["square resize"] = lambda video=video: resize_to_input(video, SIDE)
        rows += measured(f"resize mode, {named(size)}, host", parts, runs)
    for mode in (AutoGazeInferenceMode.TILED_RESIZE_TO_GRID, AutoGazeInferenceMode.TILED_FULL_RESOLUTION):
        height, width, _ = size = sizes[-1]
        layout, clip = TileLayout(mode, height, width, SIDE), clip_of(*size)
        tile = layout.count // 2
        parts = {"one tile": lambda layout=layout, clip=clip, tile=tile: layout.tile(clip, tile, CONFIG)}
        rows += measured(f"{mode.value}, {named(size)}, host", parts, runs)
    return rows


def device_rows(
    device: str, runs: int, sizes: tuple[tuple[int, int, int], ...] = SIZES
) -> list[dict[str, Any]]:
    """The device's path; without torch there is none."""
    from autogaze_backend.torch_engine.preprocessing import DevicePreprocessing

    try:
        prepared = DevicePreprocessing(CONFIG, SIDE, device)
    except MissingExtraError as error:
        return [{"benchmark": "device", "part": f"not measured: {error}"}]
    import torch

    def finish() -> None:
        if prepared.device.type == "cuda":
            torch.cuda.synchronize(prepared.device)

    def waited(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            call()
            finish()

        return run

    prepared.warm_up()
    rows = []
    where = f"{prepared.device} ({prepared.implementation})"
    for size in sizes:
        clip = clip_of(*size)
        frames = prepared.upload(clip)
        parts = {
            "all": waited(lambda clip=clip: prepared.clip(clip)),
            "upload": waited(lambda clip=clip: prepared.upload(clip)),
            "compute": waited(lambda frames=frames: prepared.clip(frames)),
            "compute, half precision": waited(lambda f=frames: prepared.clip(f, dtype=torch.float16)),
        }
        rows += measured(f"resize mode, {named(size)}, {where}", parts, runs)
    for mode in (AutoGazeInferenceMode.TILED_RESIZE_TO_GRID, AutoGazeInferenceMode.TILED_FULL_RESOLUTION):
        layout = TileLayout(mode, *sizes[-1][:2], SIDE)
        tile = layout.count // 2
        parts = {"one tile": waited(lambda at=tile, cut=layout: prepared.tiles(frames, cut, at, at + 1))}
        if prepared.device.type == "cuda":
            parts["all tiles"] = waited(lambda cut=layout: prepared.tiles(frames, cut))
        rows += measured(f"{mode.value}, {named(sizes[-1])}, {where}", parts, runs)
    return rows


def named(size: tuple[int, int, int]) -> str:
    """A clip in words."""
    height, width, channels = size
    return f"{FRAMES} frames of {width}x{height} {'RGBA' if channels == 4 else 'RGB'}"


def measured(name: str, parts: dict[str, Callable[[], object]], runs: int) -> list[dict[str, Any]]:
    """A row for each part, timed in turn."""
    timings = alternate(parts, repeats=runs)
    return [
        {
            "benchmark": name,
            "part": part,
            "median_ms": round(timing.median, 3),
            "best_ms": round(timing.best, 3),
            "frames_per_s": round(FRAMES / timing.median * 1e3),
            "runs": runs,
        }
        for part, timing in timings.items()
    ]


def run(device: str = "cpu", runs: int = 10) -> list[dict[str, Any]]:
    """Measures host and device; one row each."""
    return host_rows(runs) + ([] if device == "none" else device_rows(device, runs))


def main() -> None:
    """Prints the table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description="Benchmark of the preprocessing.")
    parser.add_argument("--device", default="cpu", help="a torch device, or none for the host alone")
    parser.add_argument("--runs", type=int, default=10, help="of each part")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    rows = run(args.device, args.runs)
    print(table(rows))
    if args.json is not None:
        write(args.json, "preprocess", rows)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
