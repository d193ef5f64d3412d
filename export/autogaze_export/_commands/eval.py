"""``autogaze eval``: how good a checkpoint's gaze is on videos."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autogaze_backend.model import GazeModel

    from autogaze_export.evaluation import VideoEvaluation


class Command:
    """Prints tokens, loss and the targets; with a folder, writes them with curves and contact sheets."""

    help = "measure a bundle's or checkpoint's gaze on videos, against baselines and an oracle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options."""
        parser.add_argument("model", help="bundle, checkpoint folder, or hub id")
        parser.add_argument("videos", nargs="+", type=Path, help="any files that PyAV reads")
        parser.add_argument("--requirement", type=float, default=0.7, help="task-loss requirement (0.7)")
        parser.add_argument("--clips", type=int, default=4, help="clips of each video, evenly spaced (4)")
        parser.add_argument("--frames", type=int, default=16, help="frames of a clip (16)")
        parser.add_argument(
            "--curves", action="store_true", help="also sample loss against tokens (some minutes a video)"
        )
        parser.add_argument(
            "--out", type=Path, help="folder for evaluation.json, curves.png and VIDEO_sheet.png"
        )
        parser.add_argument("--threads", type=int, help="CPU threads (all cores)")

    def run(self, args: argparse.Namespace) -> int:
        """Evaluates each video; returns 0."""
        from autogaze_export.evaluation import EvaluationConfig, evaluate_video

        config = EvaluationConfig(
            requirement=args.requirement,
            clips=args.clips,
            frames=args.frames,
            curve_tokens=EvaluationConfig.curve_tokens if args.curves else (),
        )
        model = _load(args.model, args.threads)
        results = [evaluate_video(model, video, config, progress=print) for video in args.videos]
        for result in results:
            print("\n".join(_lines(result, args.requirement)))
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            content = {"requirement": args.requirement, "videos": [result.to_json() for result in results]}
            (args.out / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n")
            if args.curves:
                from autogaze_export.evaluation.plot import write_plot

                write_plot(args.out / "curves.png", results, requirement=args.requirement)
            from autogaze_export.evaluation.sheet import write_sheet

            for video in args.videos:
                target = args.out / f"{video.stem}_sheet.png"
                write_sheet(target, model, video, requirement=args.requirement, frames=args.frames)
            print(f"written to {args.out}")
        return 0


def _load(source: str, threads: int | None) -> GazeModel:
    from autogaze_backend.bundle import Bundle
    from autogaze_backend.model import GazeModel
    from autogaze_client._errors import AutoGazeError

    from autogaze_export.bundle_writer import build

    if Path(source).is_dir():
        try:
            return GazeModel.load(Bundle.load(source), threads=threads)
        except AutoGazeError:
            # No bundle: a checkpoint folder then, whose own errors are the ones to show.
            pass
    folder = tempfile.mkdtemp(prefix="autogaze-eval-")
    return GazeModel.load(build(source, Path(folder) / "bundle"), threads=threads)


def _lines(result: VideoEvaluation, requirement: float) -> Sequence[str]:
    """The table of a video and the targets it meets or misses."""
    rows = [
        f"  {name:18}{result.tokens[name]:8.1f}{result.first_tokens[name]:8.1f}{result.later_tokens[name]:8.1f}"
        for name in result.tokens
    ]

    def target(met: bool, text: str) -> str:
        return f"  {'met ' if met else 'MISS'}  {text}"

    return [
        "",
        f"{result.name}: {result.frames} frames, requirement {requirement:g}, loss reached {result.loss:.3f}",
        f"  {'tokens a frame':18}{'all':>8}{'first':>8}{'later':>8}   (to the same loss, frame by frame)",
        *rows,
        target(
            result.against_baseline <= 0.5,
            f"{result.against_baseline:.2f} of the tokens of {result.best_baseline} (at most 0.50)",
        ),
        target(
            result.against_oracle <= 1.6,
            f"{result.against_oracle:.2f} times the oracle's (at most 1.60)",
        ),
        target(result.stop_error < 0.1, f"{100 * result.stop_error:.1f} % error of the stop (below 10)"),
        target(result.still_tokens <= 10, f"{result.still_tokens} tokens on a still scene (at most 10)"),
    ]
