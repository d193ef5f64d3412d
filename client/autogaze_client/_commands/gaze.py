"""``autogaze gaze``: gazes at a video and writes what it saw."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autogaze_client.result import GazeResult

_MODES = ("resize", "tiled_resize_to_grid", "tiled_full_resolution")


class Command:
    """Implements the subcommand."""

    help = "gaze at a video through a server; writes JSON, metrics, a mask video and a contact sheet"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the subcommand's options."""
        parser.add_argument("video", metavar="VIDEO", help="a video file")
        parser.add_argument("--url", default="localhost:8001", help="gRPC endpoint (default: %(default)s)")
        parser.add_argument("--out", default="autogaze-out", metavar="DIR", help="default: %(default)s")
        parser.add_argument("--frames", type=int, metavar="N", help="gaze at the first N frames only")
        parser.add_argument("--mode", choices=_MODES, default=_MODES[0], help="default: %(default)s")
        parser.add_argument(
            "--gazing-ratio", type=float, metavar="R", help="share of tokens at most, in (0, 1]"
        )
        parser.add_argument(
            "--task-loss-requirement", type=float, metavar="LOSS", help="stop at this predicted loss, >= 0"
        )
        parser.add_argument("--max-gaze-tokens", type=int, metavar="N", help="tokens a frame at most")
        parser.add_argument("--timeout", type=float, metavar="S", help="seconds a request may take")

    def run(self, args: argparse.Namespace) -> int:
        """Runs it; returns the exit status."""
        from autogaze_client._client import GazeClient
        from autogaze_client.report import check_report_extras, write_report

        check_report_extras()
        with GazeClient(args.url) as client:
            before = client.statistics()
            started = time.perf_counter()
            result = client.gaze(
                args.video,
                mode=args.mode,
                gazing_ratio=args.gazing_ratio,
                task_loss_requirement=args.task_loss_requirement,
                max_gaze_tokens_each_frame=args.max_gaze_tokens,
                max_frames=args.frames,
                progress=True,
                timeout=args.timeout,
            )
            elapsed_ms = (time.perf_counter() - started) * 1e3
            server = client.statistics().since(before).request_ms()
            ensemble_ms = server.get(client.model_name)
        if ensemble_ms is not None:
            timings = replace(result.timings, server_ms=ensemble_ms * result.timings.requests)
            result = replace(result, timings=timings)
        stages = stage_times(result, server, elapsed_ms)
        print_table(result, stages)
        paths = write_report(args.out, args.video, result, stages)
        for path in (paths.gaze, paths.metrics, paths.mask_video, paths.contact_sheet):
            print(f"wrote {path}")
        return 0


def stage_times(result: GazeResult, server: Mapping[str, float], elapsed_ms: float) -> dict[str, float]:
    """Milliseconds by stage: a mean for each request, and the elapsed time in all.

    Args:
        result: of the video.
        server: mean milliseconds of a request in each of the server's models.
        elapsed_ms: from the first frame read to the last result.
    """
    timings = result.timings
    return {
        "client read": timings.read_ms / timings.requests,
        "client request": timings.request_ms / timings.requests,
        **{f"server {model}": ms for model, ms in sorted(server.items())},
        "client decode": timings.decode_ms / timings.requests,
        "elapsed in all": elapsed_ms,
    }


def print_table(result: GazeResult, stages: Mapping[str, float]) -> None:
    """Prints frames, tokens, ratio and stages."""
    tokens = result.tokens_per_frame
    rows = [
        ("frames", f"{result.source_size.frames} ({result.source_size.width}x{result.source_size.height})"),
        ("requests", str(result.timings.requests)),
        ("tokens per frame", f"{tokens.mean():.1f} (min {tokens.min()}, max {tokens.max()})"),
        ("gaze ratio", f"{result.gaze_ratio:.1%}"),
        *((f"{stage} ms", f"{ms:.1f}") for stage, ms in stages.items()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
