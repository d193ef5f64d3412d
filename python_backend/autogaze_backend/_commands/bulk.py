"""``autogaze bulk``: gazes at folders of videos through Ray Data."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from autogaze_client._errors import InvalidInputError
from autogaze_client.modes import AutoGazeInferenceMode

if TYPE_CHECKING:
    from autogaze_backend.bulk import BulkJob, BulkSummary

_MODES = ("resize", "tiled", "tiled_resize_to_grid", "tiled_full_resolution")
_TILED = "tiled_full_resolution"


class Command:
    """Implements the subcommand."""

    help = "gaze at folders of videos through Ray Data; writes one Parquet file a video and goes on where it stopped"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options."""
        parser.add_argument("source", metavar="IN", type=Path, help="a folder of videos, or one video")
        parser.add_argument("out", metavar="OUT", type=Path, help="the output folder")
        parser.add_argument(
            "--bundle",
            type=Path,
            metavar="DIR",
            help="what 'autogaze build' wrote (default: $AUTOGAZE_BUNDLE)",
        )
        parser.add_argument(
            "--pattern",
            action="append",
            default=[],
            metavar="GLOB",
            help="only files such as '*.mp4' or 'day1/*'; may be repeated (default: the suffixes of videos)",
        )
        parser.add_argument(
            "--retry-errors", action="store_true", help="try again what an earlier run could not read"
        )
        _add_settings(
            parser.add_argument_group("what is computed", "the same for every run on an output folder")
        )
        _add_workers(parser.add_argument_group("where it is computed", "may change from run to run"))

    def run(self, args: argparse.Namespace) -> int:
        """Runs it; 0 where every video has a result, 3 where some have none."""
        job = job_of(args)
        from autogaze_backend.bulk import run_bulk

        logging.basicConfig(format="autogaze bulk: %(message)s", level=logging.WARNING, stream=sys.stderr)
        if threading.current_thread() is threading.main_thread():
            # Process managers and Kubernetes end a job with SIGTERM: stop as Ctrl-C does, and report.
            signal.signal(signal.SIGTERM, _interrupt)
        summary = run_bulk(job, progress=True)
        print_summary(summary, job.out)
        return summary.exit_status


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _add_settings(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mode", choices=_MODES, default=_MODES[0], help=f"default: %(default)s; tiled is {_TILED}"
    )
    group.add_argument("--gazing-ratio", type=float, metavar="R", help="share of tokens at most, in (0, 1]")
    group.add_argument(
        "--task-loss-requirement", type=float, metavar="LOSS", help="stop at this predicted loss, >= 0"
    )
    group.add_argument("--max-gaze-tokens", type=int, metavar="N", help="tokens a frame at most")
    group.add_argument(
        "--window-frames", type=int, default=16, metavar="N", help="frames of a clip (default: %(default)s)"
    )
    group.add_argument(
        "--stream", action="store_true", help="one stream a video instead of clips of their own"
    )
    group.add_argument(
        "--horizon",
        type=int,
        default=16,
        metavar="N",
        help="frames that a stream keeps (default: %(default)s)",
    )
    group.add_argument("--start-frame", type=int, default=0, metavar="N", help="frames to skip first")
    group.add_argument("--frames", type=int, metavar="N", help="frames of each video at most")
    group.add_argument("--frame-stride", type=int, default=1, metavar="N", help="take every n-th frame")


def _add_workers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--address",
        metavar="ADDRESS",
        help="of a Ray cluster, 'auto' on one of its machines (default: $RAY_ADDRESS, or a Ray of its own)",
    )
    group.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: one actor a GPU (default: %(default)s)",
    )
    group.add_argument("--actors", type=int, metavar="N", help="models at work (default: by GPUs or cores)")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of each (default: up to 4)")
    group.add_argument(
        "--videos-at-once",
        type=int,
        metavar="N",
        help="videos that an actor has in hand, which share batches (default: 1, on cuda 8)",
    )
    group.add_argument(
        "--attempts",
        type=int,
        default=3,
        metavar="N",
        help="tries where a process dies (default: %(default)s)",
    )
    group.add_argument(
        "--decode-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds that decoding a window may take (default: %(default)s)",
    )
    group.add_argument(
        "--max-pixels", type=int, default=8192 * 8192, metavar="N", help="of a frame (default: %(default)s)"
    )
    group.add_argument(
        "--max-window-bytes",
        type=int,
        default=2 * 1024**3,
        metavar="N",
        help="of a window's decoded frames (default: %(default)s)",
    )


def job_of(args: argparse.Namespace) -> BulkJob:
    """The job that the arguments describe.

    Raises:
        InvalidInputError: an argument breaks its rule, or there is no bundle.
        MissingExtraError: the extra ``bulk`` is not installed.
    """
    from autogaze_backend.bulk import BulkJob, BulkSettings

    bundle = args.bundle or os.environ.get("AUTOGAZE_BUNDLE")
    if not bundle:
        raise InvalidInputError(
            "no bundle is given; pass --bundle DIR, a folder that 'autogaze build CHECKPOINT DIR' wrote, or set "
            "AUTOGAZE_BUNDLE"
        )
    settings = BulkSettings(
        mode=AutoGazeInferenceMode.parse(_TILED if args.mode == "tiled" else args.mode),
        gazing_ratio=args.gazing_ratio,
        task_loss_requirement=args.task_loss_requirement,
        max_gaze_tokens=args.max_gaze_tokens,
        window_frames=args.window_frames,
        stream=args.stream,
        horizon=args.horizon,
        start_frame=args.start_frame,
        max_frames=args.frames,
        frame_stride=args.frame_stride,
    )
    at_once = args.videos_at_once
    return BulkJob(
        source=args.source,
        out=args.out,
        bundle=Path(bundle),
        settings=settings,
        patterns=tuple(args.pattern),
        device=args.device,
        actors=args.actors,
        threads=args.threads,
        videos_at_once=(1 if args.device == "cpu" else 8) if at_once is None else at_once,
        attempts=args.attempts,
        decode_timeout=args.decode_timeout,
        max_pixels=args.max_pixels,
        max_window_bytes=args.max_window_bytes,
        retry_errors=args.retry_errors,
        address=args.address,
    )


def print_summary(summary: BulkSummary, out: Path) -> None:
    """Prints the counts and where the results are."""
    rows = [
        ("videos", str(summary.videos)),
        ("done before", str(summary.done_before)),
        ("done now", f"{summary.done} ({summary.frames} frames, {summary.tokens} tokens)"),
        ("unreadable", str(summary.unreadable)),
        ("failed", str(summary.failed)),
        ("interrupted attempts", str(summary.interrupted)),
        ("elapsed s", f"{summary.seconds:.1f} ({summary.frames_per_second:.1f} frames/s)"),
    ]
    if summary.actors:
        rows.append(("workers", f"{summary.actors} on {summary.device}, {summary.threads} threads each"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print(f"wrote {out / 'gaze'}")
    if summary.exit_status:
        print(f"wrote {out / 'errors.parquet'}: videos without a result, and why")
