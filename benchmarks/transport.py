"""How pixels reach the server: the wire, shared memory of both kinds, encoded video; 720p and 1080p, one machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_client import GazeClient, VideoWriter
from autogaze_export import build
from numpy.typing import NDArray

from benchmarks.generate import checkpoint, clips
from benchmarks.report import alternate, table

# As little model as possible, so that the rest of the request can be seen: one group of tokens a frame.
KNOBS = {"max_gaze_tokens_each_frame": 1}
FRAMES = 16
# Triton counts the compute of this; the step after it answers after its execution, so its whole time is taken.
_COUNTED = ("autogaze_ingest",)
SIZES = {"720p": (720, 1280), "1080p": (1080, 1920)}


def run(repeats: int = 7) -> list[dict[str, Any]]:
    """Times 16-frame clips against the real server, alternating; server compute is Triton's own count.

    The compute of ``autogaze_ingest`` holds the decoding of encoded video, and the time of ``autogaze_generate`` the
    resize and the copy of its input; what is left of a request is transport: copies, serialising, queues.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = checkpoint.write_checkpoint(Path(folder) / "checkpoint")
        bundle = build(source, Path(folder) / "bundle")
        config = TritonServerConfig(
            model_repository_path(), 0, 0, 0, environment={"AUTOGAZE_BUNDLE": str(bundle)}
        )
        with TritonServer(config, on_log=lambda line: None) as server:
            server.wait_until_ready(120)
            return [row for name in SIZES for row in _size(server.url, name, Path(folder), repeats)]


class _DeviceFrames:
    """A copy of frames in CUDA memory, with the CUDA array interface."""

    def __init__(self, frames: NDArray[np.uint8], runtime: Any) -> None:
        self._runtime, self._host = runtime, frames
        error, self._pointer = runtime.cudaMalloc(frames.nbytes)
        if int(error) == 0:
            kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            (error,) = runtime.cudaMemcpy(self._pointer, frames.ctypes.data, frames.nbytes, kind)
        if int(error) != 0:
            raise RuntimeError(f"CUDA says {error.name}")
        self.__cuda_array_interface__ = {
            "shape": frames.shape,
            "typestr": "|u1",
            "data": (int(self._pointer), False),
            "strides": None,
            "version": 3,
        }

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[np.uint8]:
        host = np.empty_like(self._host)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._runtime.cudaMemcpy(host.ctypes.data, self._pointer, host.nbytes, kind)
        return host

    def __del__(self) -> None:
        self._runtime.cudaFree(self._pointer)


def frames_on_device(frames: NDArray[np.uint8]) -> tuple[_DeviceFrames | None, str]:
    """The frames in CUDA memory, or why there is none here."""
    try:
        import cuda.bindings.runtime as runtime
    except ImportError as error:
        return None, str(error)
    error, count = runtime.cudaGetDeviceCount()
    if int(error) != 0 or not count:
        return None, f"no CUDA device: {error.name}"
    return _DeviceFrames(frames, runtime), ""


def _size(url: str, name: str, folder: Path, repeats: int) -> list[dict[str, Any]]:
    frames = clips.synthetic_clip(FRAMES, *SIZES[name], 3)
    path = folder / f"{name}.mp4"
    with VideoWriter(path, fps=25) as writer:
        for frame in frames:
            writer.write(frame)
    encoded = path.read_bytes()
    with GazeClient(url, shared_memory=False) as wire, GazeClient(url, shared_memory=True) as shared:
        ways: dict[str, tuple[GazeClient, Any, int]] = {
            "wire": (wire, frames, frames.nbytes),
            "shared memory": (shared, frames, frames.nbytes),
            "encoded": (wire, encoded, len(encoded)),
        }
        on_device, missing = frames_on_device(frames)
        if on_device is not None:
            # The same frames when they lie on the GPU already: by CUDA memory, and brought to the host first.
            ways["CUDA memory"] = (shared, on_device, frames.nbytes)
            ways["from the GPU by wire"] = (wire, on_device, frames.nbytes)
        compute: dict[str, list[float]] = {way: [] for way in ways}
        outside: dict[str, list[float]] = {way: [] for way in ways}

        def measured(way: str) -> Callable[[], None]:
            client, source, _ = ways[way]

            def once() -> None:
                before = client.statistics()
                started = time.perf_counter()
                client.gaze(source, **KNOBS)
                request_ms = (time.perf_counter() - started) * 1e3
                spent = client.statistics().since(before)
                compute[way].append(
                    sum(model.compute_ns for model in spent.models if model.model in _COUNTED) / 1e6
                    + spent.stage_ms()["autogaze_generate"]
                )
                outside[way].append(request_ms - compute[way][-1])

            return once

        timings = alternate({way: measured(way) for way in ways}, repeats=repeats, warmup=1)
    rows = []
    for way, (_, _, size) in ways.items():
        inside = float(np.median(compute[way]))
        rows.append(
            {
                "clip": f"{FRAMES} frames {name}",
                "way": way,
                "MB sent": size / 1e6,
                "request, ms": timings[way].median,
                "server compute, ms": inside,
                "transport, ms": float(np.median(outside[way])),
            }
        )
    for row in rows:
        row["wire / this"] = rows[0]["transport, ms"] / row["transport, ms"]
    if missing:
        rows.append({"clip": f"{FRAMES} frames {name}", "way": f"CUDA memory: not run ({missing})"})
    return rows


if __name__ == "__main__":
    print(table(run()))
