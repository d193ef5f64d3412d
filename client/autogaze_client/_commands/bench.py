"""``autogaze bench``: how fast a running server is from here."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogaze_client._commands.connection import add_connection_options, chosen_connection
from autogaze_client._commands.gaze import MODES, parse_mode
from autogaze_client._errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from autogaze_client._client import GazeClient
    from autogaze_client.benchmarking import Ask

_WAYS = ("auto", "wire", "shared", "encoded")
_COLUMNS = (
    ("clients", "clients", "d"),
    ("requests", "requests", "d"),
    ("errors", "errors", "d"),
    ("req/s", "requests_per_s", ".1f"),
    ("frames/s", "frames_per_s", ".1f"),
    ("p50 ms", "p50_ms", ".1f"),
    ("p90 ms", "p90_ms", ".1f"),
    ("p99 ms", "p99_ms", ".1f"),
    ("tokens/frame", "tokens_per_frame", ".1f"),
    ("server ms", "server_ms", ".1f"),
)


class Command:
    """Implements the subcommand."""

    help = "measure a running server: requests and frames a second, and the times of requests"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the subcommand's options."""
        add_connection_options(parser)
        parser.add_argument("--video", metavar="FILE", help="frames to send; without, a picture that pans")
        parser.add_argument(
            "--frames", type=int, default=16, metavar="N", help="a clip (default: %(default)s)"
        )
        parser.add_argument(
            "--size", default="1280x720", metavar="WxH", help="of the made picture (default: %(default)s)"
        )
        parser.add_argument(
            "--clients", default="1,2,4", metavar="LIST", help="that ask at once (default: %(default)s)"
        )
        parser.add_argument(
            "--seconds", type=float, default=5.0, help="for each number of clients (default: %(default)s)"
        )
        parser.add_argument(
            "--way",
            choices=_WAYS,
            default=_WAYS[0],
            help="of the frames to the server (default: %(default)s)",
        )
        parser.add_argument("--stream", action="store_true", help="send single frames through streams")
        parser.add_argument("--mode", choices=MODES, default=MODES[0], help="default: %(default)s")
        parser.add_argument("--gazing-ratio", type=float, metavar="R", help="share of tokens, in (0, 1]")
        parser.add_argument("--task-loss-requirement", type=float, metavar="LOSS", help="stop there, >= 0")
        parser.add_argument("--max-gaze-tokens", type=int, metavar="N", help="tokens a frame at most")
        parser.add_argument("--json", metavar="FILE", help="write the figures there, too")

    def run(self, args: argparse.Namespace) -> int:
        """Runs it; returns the exit status: 1 where requests failed."""
        from autogaze_client._client import GazeClient
        from autogaze_client._requests import STREAM_MODEL
        from autogaze_client.benchmarking import measure
        from autogaze_client.result import write_json

        counts, connection = _counts(args.clients), chosen_connection(args)
        if args.stream and (args.way == "encoded" or args.mode != MODES[0]):
            raise InvalidInputError(
                "--stream sends frames in mode resize; leave --way encoded and --mode out"
            )
        frames = _frames(args)
        source = _encoded(frames) if args.way == "encoded" else frames
        shared = {"wire": False, "shared": True}.get(args.way)
        rows = []
        print("  ".join(title.rjust(9) for title, _, _ in _COLUMNS))
        for count in counts:
            with ExitStack() as stack:
                clients = [
                    stack.enter_context(GazeClient(**connection.arguments(), shared_memory=shared))
                    for _ in range(count)
                ]
                asks = [_ask(stack, client, args, source) for client in clients]
                model = STREAM_MODEL if args.stream else clients[0].model_name
                row = measure(clients[0], asks, args.seconds, model=model).to_dict()
            rows.append(row)
            print("  ".join(_cell(row[key], form).rjust(max(9, len(title))) for title, key, form in _COLUMNS))
        if args.json:
            sent = {"frames": list(frames.shape), "way": args.way, "stream": args.stream, "mode": args.mode}
            print(f"wrote {write_json(Path(args.json), {'url': args.url, **sent, 'rows': rows})}")
        return int(any(row["errors"] for row in rows))


def _ask(stack: ExitStack, client: GazeClient, args: argparse.Namespace, source: Any) -> Ask:
    knobs = {
        "gazing_ratio": args.gazing_ratio,
        "task_loss_requirement": args.task_loss_requirement,
        "max_gaze_tokens_each_frame": args.max_gaze_tokens,
    }
    if not args.stream:
        return lambda: client.gaze(source, mode=parse_mode(args.mode), **knobs)
    stream = stack.enter_context(client.stream(restart=True, **knobs))
    turns = cycle(source)
    return lambda: stream.push(next(turns))


def _counts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InvalidInputError(f"--clients is {text!r}; it takes whole numbers of at least 1, as in 1,2,4")
    return [int(part) for part in parts]


def _frames(args: argparse.Namespace) -> NDArray[np.uint8]:
    if args.video:
        from autogaze_client.video import VideoReader

        return next(VideoReader(args.video, max_frames=args.frames).windows(args.frames))
    from autogaze_client.benchmarking import moving_picture

    width, _, height = args.size.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise InvalidInputError(f"--size is {args.size!r}; it must be width x height, as in 1280x720")
    return moving_picture(args.frames, int(height), int(width))


def _encoded(frames: NDArray[np.uint8]) -> bytes:
    import tempfile

    from autogaze_client.video_writer import VideoWriter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(path, fps=25) as writer:
            for frame in frames:
                writer.write(frame)
        return path.read_bytes()


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
