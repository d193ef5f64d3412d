"""``make bench-serve``: NVIDIA's perf_analyzer against the real server, with pictures of the sample video.

Clips at concurrency 1 to 8, clips at fixed rates, streams (sequences), and shared memory beside the wire.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_export import build

from benchmarks import load_data
from benchmarks.gpu_server.perf_analyzer import MODEL, add_ensemble
from benchmarks.perf_analyzer import VERSION, PerfAnalyzer, UnusableError, latencies
from benchmarks.report import table, write

RESULT = Path("benchmarks") / "results" / "cpu-serve.json"
# The answers of autogaze_generate to a clip, with room to spare.
_OUTPUT_BYTES = 1 << 22


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        concurrency: requests in flight at once, each in turn.
        few: likewise, for encoded clips, and for shared memory beside the wire.
        rate_shares: requests a second, as shares of the best rate that any concurrency reached.
        requests: a level, and as many again for each one in flight.
        clips: different clips that are sent in turn.
        frames: of a clip, and of a stream.
        size: of a frame, width and height.
    """

    concurrency: Sequence[int] = tuple(range(1, 9))
    few: Sequence[int] = (1, 2, 4, 8)
    rate_shares: Sequence[float] = (0.25, 0.5, 0.75)
    requests: int = 8
    clips: int = 4
    frames: int = load_data.FRAMES
    size: tuple[int, int] = load_data.SIZE


QUICK = Plan((2,), (1,), (0.5,), requests=3, clips=2, frames=2, size=(160, 90))
"""What the test suite runs: each way once."""


@dataclass(frozen=True)
class DataFiles:
    """The input data of each kind of request."""

    clips: Path
    videos: Path
    streams: Path

    @classmethod
    def written(cls, folder: Path, plan: Plan) -> DataFiles:
        """Writes them into ``folder``."""
        clips = load_data.sample_clips(plan.clips, plan.frames, plan.size)
        videos = [load_data.encoded(clip, folder / f"{index}.mp4") for index, clip in enumerate(clips)]
        knobs = load_data.KNOBS
        return cls(
            load_data.write_requests(folder / "clips.json", [{"FRAMES": clip, **knobs} for clip in clips]),
            load_data.write_requests(folder / "videos.json", [{"VIDEO": video, **knobs} for video in videos]),
            load_data.write_streams(
                folder / "streams.json", [[{"FRAME": frame, **knobs} for frame in clip] for clip in clips]
            ),
        )


def repository(folder: Path) -> Path:
    """The shipped repository in ``folder``, and an ensemble that perf_analyzer can ask through shared memory."""
    made = folder / "models"
    shutil.copytree(model_repository_path(), made, ignore=shutil.ignore_patterns("__pycache__"))
    add_ensemble(made, ("FRAMES", *load_data.KNOBS))
    return made


def measure(url: str, analyzer: PerfAnalyzer, files: DataFiles, plan: Plan) -> Iterator[dict[str, Any]]:
    """Measures a running server; a row a level, as it is done."""

    def level(
        load: str, model: str, data: Path, at: tuple[str, float], count: int, *more: str
    ) -> dict[str, Any]:
        name, value = at
        # A range of one: a rate below the default step of 1 counts as several otherwise, which cannot be counted.
        arguments = ["--input-data", str(data), f"--{name}-range", f"{value:g}:{value:g}:1"]
        arguments += ["--request-count", str(count), *(more or ["-a"])]
        (row,) = analyzer.run(url, model, arguments)
        return {
            "load": load,
            "model": model,
            name.replace("-", " "): value,
            "requests": count,
            **latencies(row),
        }

    def count(concurrency: int) -> int:
        return plan.requests * (1 + concurrency)

    best = 0.0
    for concurrency in plan.concurrency:
        row = level("clips", "autogaze", files.clips, ("concurrency", concurrency), count(concurrency))
        best = max(best, row["requests/s"])
        yield row
    for concurrency in plan.few:
        yield level(
            "encoded clips", "autogaze", files.videos, ("concurrency", concurrency), count(concurrency)
        )
    for share in plan.rate_shares:
        rate = float(f"{best * share:.3g}")
        at, more = ("request-rate", rate), ("-a", "--request-distribution", "poisson")
        yield level("clips at a rate", "autogaze", files.clips, at, 2 * plan.requests, *more)
    for concurrency in plan.concurrency:
        frames = max(1, plan.frames // 2) * count(concurrency)
        # A thread a stream, as a camera is: with asynchronous calls a frame came before its START (tried).
        at = ("concurrency", concurrency)
        yield level("streams", "autogaze_stream", files.streams, at, frames, "--sync")
    for concurrency in plan.few:
        for way, more in (
            ("by wire", ()),
            (
                "by shared memory",
                ("-a", "--shared-memory", "system", f"--output-shared-memory-size={_OUTPUT_BYTES}"),
            ),
        ):
            at = ("concurrency", concurrency)
            yield level(f"clips {way}", MODEL, files.clips, at, count(concurrency), *more)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes the JSON; 1 where perf_analyzer cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT, help="default: %(default)s")
    parser.add_argument("--checkpoint", default="open", help="default: the one that comes with the project")
    parser.add_argument("--requests", type=int, default=Plan.requests, help="a level; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="each way once, small")
    options = parser.parse_args(arguments)
    if options.requests < 1:
        parser.error(f"--requests is {options.requests}; it must be at least 1")
    plan = QUICK if options.quick else Plan(requests=options.requests)
    busy = os.getloadavg()[0]
    started = time.time()
    rows = []
    try:
        analyzer = PerfAnalyzer.fetched()
        with tempfile.TemporaryDirectory() as folder:
            bundle = build(options.checkpoint, Path(folder) / "bundle")
            files = DataFiles.written(Path(folder), plan)
            models = repository(Path(folder))
            config = TritonServerConfig(models, 0, 0, 0, environment={"AUTOGAZE_BUNDLE": str(bundle)})
            with TritonServer(config, on_log=lambda line: None) as server:
                server.wait_until_ready(120)
                for row in measure(server.url, analyzer, files, plan):
                    print(table([row]).splitlines()[-1], flush=True)
                    rows.append(row)
    except UnusableError as error:
        print(error, file=sys.stderr)
        return 1
    write(options.out, "serve", rows)
    content = json.loads(options.out.read_text())
    content["machine"]["versions"]["perf_analyzer"] = VERSION
    content["machine"]["load_average_before"] = round(busy, 2)
    content["setup"] = {
        "checkpoint": options.checkpoint,
        "frames a clip": plan.frames,
        "frame size": list(plan.size),
        "knobs": {name: float(value[0]) for name, value in load_data.KNOBS.items()},
        "minutes": round((time.time() - started) / 60, 1),
    }
    options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(table(rows))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
