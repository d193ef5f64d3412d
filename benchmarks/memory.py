"""Peak memory of the server's processes: one 16-frame clip, and 64 open streams of 16 frames each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autogaze_backend import Bundle
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_client import GazeClient
from autogaze_export import build

from benchmarks.generate import checkpoint, clips
from benchmarks.report import table

KNOBS = {"gazing_ratio": 0.75, "task_loss_requirement": 0.7}
STREAMS = 64


def run() -> list[dict[str, Any]]:
    """Starts the real server twice, so that one measurement does not hide in the other's peak."""
    with tempfile.TemporaryDirectory() as folder:
        source = checkpoint.write_checkpoint(Path(folder) / "checkpoint")
        bundle = build(source, Path(folder) / "bundle")
        spec = Bundle.load(bundle).spec
        rows = [_clip(bundle), _streams(bundle)]
    position = 2 * spec.num_layers * spec.num_heads * spec.head_dim * 4
    rows.append({"what": "keys and values, bytes a position", "designed": position})
    return rows


def _clip(bundle: Path) -> dict[str, Any]:
    with _server(bundle) as server, GazeClient(server.url) as client:
        idle = stub_memory("autogaze_generate")
        client.gaze(clips.synthetic_clip(16, 1080, 1920, 1), **KNOBS)
        return {
            "what": "autogaze_generate, one 16-frame 1080p clip",
            "loaded, MiB": idle,
            "peak, MiB": stub_memory("autogaze_generate"),
        }


def _streams(bundle: Path) -> dict[str, Any]:
    frames = clips.synthetic_clip(16, 224, 224, 2)
    with _server(bundle) as server, GazeClient(server.url) as client:
        idle = stub_memory("autogaze_stream")
        streams = [client.stream(**KNOBS) for _ in range(STREAMS)]
        for frame in frames:
            for stream in streams:
                stream.push(frame)
        peak = stub_memory("autogaze_stream")
        return {
            "what": f"autogaze_stream, {STREAMS} open streams of 16 frames",
            "loaded, MiB": idle,
            "peak, MiB": peak,
            "MiB a stream": (peak - idle) / STREAMS,
        }


@contextmanager
def _server(bundle: Path) -> Iterator[TritonServer]:
    config = TritonServerConfig(
        model_repository_path(),
        0,
        0,
        0,
        environment={"AUTOGAZE_BUNDLE": str(bundle), "AUTOGAZE_TTL_SECONDS": "110"},
    )
    with TritonServer(config, on_log=lambda line: None) as server:
        server.wait_until_ready(120)
        yield server


def stub_memory(model: str) -> float:
    """Peak resident memory in MiB of the python stub that runs ``model``."""
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            if not any(f"/{model}/".encode() in part for part in command) or b"stub" not in command[0]:
                continue
            status = (process / "status").read_text()
        except OSError:
            continue
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    raise RuntimeError(f"no python stub of {model} is running")


if __name__ == "__main__":
    print(table(run()))
