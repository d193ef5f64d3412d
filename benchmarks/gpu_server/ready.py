"""From the start of the server to its first answer, and the GPU memory of its processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from autogaze_client import GazeClient

from benchmarks.gpu.context import Context, random_pixels
from benchmarks.gpu_server.serving import gpu_memory, serving


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Each precision twice: compiled kernels are on disk at the second start."""
    frames = random_pixels(context.sizes.frames, 1)
    for precision in context.settings.precisions:
        try:
            context.bundle(precision)
        except Exception as error:
            context.notes[precision] = f"{type(error).__name__}: {error}"
            continue
        for start in ("first", "second"):
            if context.cut(f"{precision}, {start} start"):
                continue
            with serving(context, precision) as server, GazeClient(server.url) as client:
                idle = gpu_memory()
                asked = time.perf_counter()
                client.gaze(frames, max_gaze_tokens_each_frame=context.schedule())
                answered = time.perf_counter() - asked
                with client.stream(max_gaze_tokens_each_frame=10) as stream:
                    for frame in frames:
                        stream.push(frame)
                row: dict[str, Any] = {
                    "precision": precision,
                    "start": start,
                    "ready, s": server.ready,
                    "first clip, s": answered,
                    "engines": "; ".join(server.engines()) or None,
                }
                for when, memory in (("ready", idle), ("after a clip and a stream", gpu_memory())):
                    for name, mib in memory.items():
                        row[f"{name}, MiB, {when}"] = mib
            yield row
