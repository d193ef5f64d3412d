"""``autogaze serve``: the model repository on an embedded Triton server, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_POLL_SECONDS = 0.2


class Command:
    """Starts the embedded server, says when it is ready, streams its log and stops it cleanly."""

    help = "serve AutoGaze with an embedded Triton server until Ctrl-C"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options."""
        parser.add_argument(
            "--bundle",
            type=Path,
            metavar="DIR",
            help="folder that 'autogaze build' wrote (default: $AUTOGAZE_BUNDLE, or the models' own)",
        )
        parser.add_argument(
            "--engine",
            metavar="NAME",
            help="what runs the models: tensorrt, tensorrt-rtx, onnxruntime, or auto "
            "(default: $AUTOGAZE_ENGINE, or the models' own, which is auto)",
        )
        parser.add_argument(
            "--model-repository", type=Path, metavar="DIR", help="model repository (default: the shipped one)"
        )
        parser.add_argument("--http-port", type=int, default=8000, metavar="PORT", help="0: a free one")
        parser.add_argument("--grpc-port", type=int, default=8001, metavar="PORT", help="0: a free one")
        parser.add_argument("--metrics-port", type=int, default=8002, metavar="PORT", help="0: a free one")
        parser.add_argument(
            "--host",
            default="127.0.0.1",
            metavar="ADDRESS",
            help="IPv4 address to listen on; there is no authentication (default: %(default)s)",
        )
        parser.add_argument(
            "--ready-timeout", type=float, default=120.0, metavar="SECONDS", help="default: %(default)s"
        )
        parser.add_argument("--verbose", action="store_true", help="verbose server log")

    def run(self, args: argparse.Namespace) -> int:
        """Serves until it is told to stop; returns 0 then.

        Raises:
            AutoGazeError: The server cannot start, or it ended by itself.
        """
        from autogaze_backend.engines import require_engine
        from autogaze_backend.serving import (
            TritonServer,
            TritonServerConfig,
            ensure_installation,
            model_repository_path,
            require_bundles,
        )

        repository = args.model_repository or model_repository_path()
        environment = require_bundles(repository, args.bundle)
        if args.engine is not None:
            environment["AUTOGAZE_ENGINE"] = require_engine(args.engine)
        config = TritonServerConfig(
            repository,
            http_port=args.http_port,
            grpc_port=args.grpc_port,
            metrics_port=args.metrics_port,
            host=args.host,
            environment=environment,
            log_verbose=1 if args.verbose else 0,
        )
        with _stop_signals():
            server = TritonServer(config, on_log=_show_log, installation=ensure_installation(progress=_say))
            try:
                server.start()
                _say(f"starting Triton with {config.model_repository}")
                server.wait_until_ready(args.ready_timeout)
                _say(f"ready: gRPC {server.url}, HTTP {server.http_url}, metrics {server.metrics_url}")
                _say(f"try it: autogaze gaze video.mp4 --url {server.url}   stop it: Ctrl-C")
                while server.poll() is None:
                    time.sleep(_POLL_SECONDS)
                raise server.exit_error()
            except KeyboardInterrupt:
                _say("stopping (Ctrl-C again to stop at once)")
                return 0
            finally:
                server.stop()


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Turns SIGTERM into what Ctrl-C does, for process managers and containers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Set both: a shell that starts a job in the background makes it ignore SIGINT.
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(f"autogaze serve: {text}", flush=True)


def _show_log(line: str) -> None:
    from autogaze_backend.logs import LogFormat
    from autogaze_backend.serving.logs import as_json_line

    if LogFormat.from_environment() is LogFormat.JSON and line.strip():
        line = as_json_line(line, time.time())
    print(line, file=sys.stderr, flush=True)
