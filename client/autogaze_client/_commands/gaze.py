"""``autogaze gaze``: gazes at a video and writes what it saw."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autogaze_client._commands.connection import add_connection_options, chosen_connection
from autogaze_client._errors import InvalidInputError

if TYPE_CHECKING:
    from autogaze_client.result import GazeResult
    from autogaze_client.visualization.rendering import PanelOptions, PanelsReport

_Choice = TypeVar("_Choice", bound=Enum)

MODES = ("resize", "tiled", "tiled_resize_to_grid", "tiled_full_resolution")
_TILED = "tiled_full_resolution"
_STYLES = ("overlay", "image-overlay", "image-mask-only", "scale-rows")
_GEOMETRIES = ("native", "deduplicated", "effective")
_VIEWS = ("interframe", "full-blend")
_PANEL_OPTIONS = ("style", "geometry", "view", "panels", "format", "keyframe_interval", "blend_alpha")


class Command:
    """Implements the subcommand."""

    help = "gaze at a video through a server; writes JSON, metrics, a mask video and a contact sheet"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the subcommand's options."""
        parser.add_argument("video", metavar="VIDEO", help="a video file")
        add_connection_options(parser)
        parser.add_argument("--out", default="autogaze-out", metavar="DIR", help="default: %(default)s")
        parser.add_argument("--frames", type=int, metavar="N", help="gaze at N frames at most")
        parser.add_argument("--start-frame", type=int, default=0, metavar="N", help="skip N frames first")
        parser.add_argument(
            "--frame-stride", type=int, default=1, metavar="N", help="gaze at every n-th frame (default: 1)"
        )
        parser.add_argument(
            "--stream",
            action="store_true",
            help="one stream that remembers the frames before, instead of clips of 16 frames",
        )
        parser.add_argument(
            "--mode",
            type=lambda name: name.strip().lower().replace("-", "_"),
            choices=MODES,
            default=MODES[0],
            help=f"default: %(default)s; tiled is {_TILED}",
        )
        parser.add_argument(
            "--gazing-ratio", type=float, metavar="R", help="share of tokens at most, in (0, 1]"
        )
        parser.add_argument(
            "--task-loss-requirement", type=float, metavar="LOSS", help="stop at this predicted loss, >= 0"
        )
        parser.add_argument("--max-gaze-tokens", type=int, metavar="N", help="tokens a frame at most")
        parser.add_argument("--timeout", type=float, metavar="S", help="seconds a request may take")
        panels = parser.add_argument_group(
            "panels", "any of these also writes panels.mp4, panels.gif or panels.png, and measures them"
        )
        panels.add_argument("--style", choices=_STYLES, help="of the mask panel (default: image-mask-only)")
        panels.add_argument("--geometry", choices=_GEOMETRIES, help="of the cells (default: native)")
        panels.add_argument("--view", choices=_VIEWS, help="of the output panel (default: interframe)")
        panels.add_argument("--panels", metavar="LIST", help="columns (default: input,mask,output)")
        panels.add_argument("--format", metavar="LIST", help="of mp4, gif and png (default: mp4)")
        panels.add_argument(
            "--keyframe-interval",
            type=int,
            metavar="N",
            help="frames from one whole output to the next; 0 = only the first (default: 30)",
        )
        panels.add_argument(
            "--blend-alpha", type=float, metavar="A", help="share of mixed-in colours (default: 0.38)"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Runs it; returns the exit status."""
        from autogaze_client._client import GazeClient
        from autogaze_client._requests import STREAM_MODEL
        from autogaze_client.report import check_report_extras, write_report

        check_report_extras()
        panel_options, connection = chosen_panels(args), chosen_connection(args)
        with GazeClient(**connection.arguments()) as client:
            before = client.statistics()
            started = time.perf_counter()
            result = client.gaze(
                args.video,
                mode=parse_mode(args.mode),
                gazing_ratio=args.gazing_ratio,
                task_loss_requirement=args.task_loss_requirement,
                max_gaze_tokens_each_frame=args.max_gaze_tokens,
                start_frame=args.start_frame,
                max_frames=args.frames,
                frame_stride=args.frame_stride,
                as_stream=args.stream,
                progress=True,
                timeout=args.timeout,
            )
            elapsed_ms = (time.perf_counter() - started) * 1e3
            server = client.statistics().since(before).stage_ms(client.model_name)
            ensemble_ms = server.get(STREAM_MODEL if args.stream else client.model_name)
        if ensemble_ms is not None:
            timings = replace(result.timings, server_ms=ensemble_ms * result.timings.requests)
            result = replace(result, timings=timings)
        stages = stage_times(result, server, elapsed_ms)
        print_table(result, stages)
        paths = write_report(
            args.out,
            args.video,
            result,
            stages,
            start_frame=args.start_frame,
            frame_stride=args.frame_stride,
        )
        written = [paths.gaze, paths.metrics, paths.mask_video, paths.contact_sheet]
        if panel_options is not None:
            panels = draw_panels(args, result, panel_options, stages)
            written += panels.paths
        for path in written:
            print(f"wrote {path}")
        return 0


def parse_mode(name: str) -> str:
    """The mode that a name of ``MODES`` stands for: ``tiled`` is short for one of them."""
    return _TILED if name == "tiled" else name


def chosen_panels(args: argparse.Namespace) -> PanelOptions | None:
    """The panels that the arguments ask for; None where they ask for none.

    Raises:
        InvalidInputError: a name is unknown, or a number breaks its rule.
    """
    if all(getattr(args, name) is None for name in _PANEL_OPTIONS):
        return None
    from autogaze_client.visualization.modes import (
        AutoGazeMaskGeometryMode,
        AutoGazeMaskVisualizationMode,
        AutoGazeVisualizationMode,
    )
    from autogaze_client.visualization.rendering import Panel, PanelFormat, PanelOptions

    options = PanelOptions()
    interval, alpha = args.keyframe_interval, args.blend_alpha
    return PanelOptions(
        panels=options.panels if args.panels is None else _parse_list(Panel, "--panels", args.panels),
        formats=options.formats if args.format is None else _parse_list(PanelFormat, "--format", args.format),
        style=AutoGazeMaskVisualizationMode.parse(args.style or options.style),
        geometry=AutoGazeMaskGeometryMode.parse(args.geometry or options.geometry),
        view=AutoGazeVisualizationMode.parse(args.view or options.view),
        keyframe_duration=options.keyframe_duration if interval is None else interval,
        blend_alpha=options.blend_alpha if alpha is None else alpha,
    )


def draw_panels(
    args: argparse.Namespace, result: GazeResult, options: PanelOptions, stages: Mapping[str, float]
) -> PanelsReport:
    """Writes the panels, prints what was measured, and adds it to the metrics."""
    from autogaze_client.result import write_json
    from autogaze_client.visualization.rendering import write_panels

    report = write_panels(
        args.out,
        args.video,
        result,
        options,
        start_frame=args.start_frame,
        frame_stride=args.frame_stride,
        progress=True,
    )
    fps = {
        "client request": 1e3 * result.source_size.frames / max(result.timings.request_ms, 1e-6),
        "elapsed in all": 1e3 * result.source_size.frames / max(stages["elapsed in all"], 1e-6),
        **report.metrics["fps"],
    }
    metrics = {**result.metrics(), "stage_ms": dict(stages), "panels": report.metrics, "fps": fps}
    write_json(Path(args.out) / "metrics.json", metrics)
    psnr = report.metrics["psnr_db"]
    print(f"mask ratio    {report.metrics['mask_ratio']:.1%}")
    print(f"update ratio  {report.metrics['update_ratio']:.1%}")
    print(f"psnr          {'-' if psnr is None else f'{psnr:.1f} dB'}")
    return report


def _parse_list(kind: type[_Choice], option: str, text: str) -> tuple[_Choice, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = {str(choice.value): choice for choice in kind}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInputError(
            f"{option} holds {unknown[0]!r}; it takes a comma-separated list of {', '.join(known)}"
        )
    return tuple(known[name] for name in dict.fromkeys(names))


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
