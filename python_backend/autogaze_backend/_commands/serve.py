"""``autogaze serve``: the model repository on an embedded Triton server, supervised, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from autogaze_client._errors import InvalidInputError

if TYPE_CHECKING:
    from autogaze_backend.serving import ServerTLS, SupervisionStatus

_POLL_SECONDS = 0.2


class Command:
    """Starts the embedded server, watches it, starts it again when it fails, and stops it cleanly."""

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
            help="what runs the models: tensorrt, tensorrt-rtx, torch, onnxruntime, or auto "
            "(default: $AUTOGAZE_ENGINE, or the models' own, which is auto)",
        )
        parser.add_argument(
            "--clip-instances",
            metavar="N",
            help="processes that serve autogaze_generate, each with its own engine and its part of the clips "
            "(default: $AUTOGAZE_CLIP_INSTANCES, or the model's own, which is 1)",
        )
        parser.add_argument(
            "--stream-instances",
            metavar="N",
            help="processes that serve autogaze_stream, each with its own engine and its part of the streams "
            "(default: $AUTOGAZE_STREAM_INSTANCES, or the model's own, which is 1)",
        )
        parser.add_argument(
            "--mps",
            action="store_true",
            help="let these processes use the GPU side by side, not in turns (NVIDIA's Multi-Process Service)",
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
            help="IPv4 address to listen on; who may ask is up to --tls-... and --restrict (default: %(default)s)",
        )
        parser.add_argument(
            "--ready-timeout", type=float, default=120.0, metavar="SECONDS", help="default: %(default)s"
        )
        parser.add_argument(
            "--supervisor-port",
            type=_port_or_off,
            default=8003,
            metavar="PORT",
            help="port of /ready and /live, which tell whether the server does its work; 0: a free one; "
            "off: none (default: %(default)s)",
        )
        parser.add_argument(
            "--canary-seconds",
            type=float,
            default=5.0,
            metavar="SECONDS",
            help="from one small request that tries the server to the next (default: %(default)s)",
        )
        parser.add_argument(
            "--canary-failures",
            type=int,
            default=3,
            metavar="N",
            help="failed ones in a row that make it start again (default: %(default)s)",
        )
        parser.add_argument(
            "--max-restarts",
            type=int,
            default=5,
            metavar="N",
            help="restarts within ten minutes, then it gives up; 0: the first fault ends it (default: %(default)s)",
        )
        parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="server certificate: gRPC over TLS")
        parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
        parser.add_argument(
            "--tls-ca",
            type=Path,
            metavar="PEM",
            help="authority of the clients' certificates: only clients that have one are served (mutual TLS)",
        )
        parser.add_argument(
            "--restrict",
            action="append",
            default=[],
            metavar="PROTOCOL[,...]:HEADER=VALUE",
            help="serve these protocols only to calls with this header; may be given several times",
        )
        parser.add_argument("--verbose", action="store_true", help="verbose server log")

    def run(self, args: argparse.Namespace) -> int:
        """Serves until it is told to stop; returns 0 then.

        Raises:
            AutoGazeError: The server cannot start, or it failed too often.
        """
        from autogaze_backend.engines import require_engine
        from autogaze_backend.logs import configure_logging
        from autogaze_backend.serving import (
            RestrictedProtocols,
            SupervisedServer,
            SupervisionConfig,
            TritonServerConfig,
            ensure_installation,
            model_repository_path,
            require_bundles,
        )

        repository = args.model_repository or model_repository_path()
        environment = require_bundles(repository, args.bundle)
        if args.engine is not None:
            environment["AUTOGAZE_ENGINE"] = require_engine(args.engine)
        if args.clip_instances is not None:
            environment["AUTOGAZE_CLIP_INSTANCES"] = args.clip_instances
        if args.stream_instances is not None:
            environment["AUTOGAZE_STREAM_INSTANCES"] = args.stream_instances
        config = TritonServerConfig(
            repository,
            http_port=args.http_port,
            grpc_port=args.grpc_port,
            metrics_port=args.metrics_port,
            host=args.host,
            environment=environment,
            log_verbose=1 if args.verbose else 0,
            tls=_tls(args),
            restricted=tuple(RestrictedProtocols.parse(text) for text in args.restrict),
        )
        supervision = SupervisionConfig(
            port=args.supervisor_port,
            canary_interval=args.canary_seconds,
            canary_failures=args.canary_failures,
            max_restarts=args.max_restarts,
            ready_timeout=args.ready_timeout,
        )
        configure_logging()
        with _stop_signals(), _shared_gpu(args.mps) as shared:
            server = SupervisedServer(
                replace(config, environment={**environment, **shared}),
                supervision,
                on_log=_show_log,
                installation=ensure_installation(progress=_say),
                on_change=_say_restarts,
            )
            try:
                server.start()
                _say(f"starting Triton with {config.model_repository}")
                server.wait_until_ready(args.ready_timeout)
                secure, http = ("", "") if config.tls is None else (" with TLS", " (health only)")
                _say(
                    f"ready: gRPC {server.url}{secure}, HTTP {server.http_url}{http}, metrics {server.metrics_url}"
                )
                if config.tls is None:
                    _say(f"try it: autogaze gaze video.mp4 --url {server.url}   stop it: Ctrl-C")
                else:
                    _say("clients need tls=TLSConfig(...) (docs/operations.md)   stop it: Ctrl-C")
                if server.status_url:
                    _say(f"readiness: {server.status_url}/ready")
                while not server.wait(_POLL_SECONDS):
                    pass
                return 0
            except KeyboardInterrupt:
                _say("stopping (Ctrl-C again to stop at once)")
                return 0
            finally:
                server.stop()


def _tls(args: argparse.Namespace) -> ServerTLS | None:
    from autogaze_backend.serving import ServerTLS

    if args.tls_cert is None and args.tls_key is None and args.tls_ca is None:
        return None
    if args.tls_cert is None or args.tls_key is None:
        given = [
            f"--{name.replace('_', '-')}" for name in ("tls_cert", "tls_key", "tls_ca") if getattr(args, name)
        ]
        raise InvalidInputError(
            f"{' and '.join(given)} alone is not TLS: pass --tls-cert and --tls-key, and --tls-ca for mutual TLS"
        )
    return ServerTLS(args.tls_cert, args.tls_key, args.tls_ca)


@contextmanager
def _shared_gpu(wanted: bool) -> Iterator[Mapping[str, str]]:
    """Runs the Multi-Process Service where it is wanted; yields what the server's processes must know of it."""
    if not wanted:
        yield {}
        return
    from autogaze_backend.serving import MultiProcessService

    with MultiProcessService() as service:
        yield service.environment


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


def _port_or_off(text: str) -> int | None:
    if text == "off":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a port nor 'off'") from None


def _say_restarts(status: SupervisionStatus) -> None:
    from autogaze_backend.serving import SupervisionState

    if status.state is SupervisionState.RESTARTING:
        _say(f"restarting: {status.reason.splitlines()[0]}")
    elif status.state is SupervisionState.READY and status.last_restart_seconds is not None and status.reason:
        _say(f"ready again: after {status.last_restart_seconds:.1f} s")


def _say(text: str) -> None:
    print(f"autogaze serve: {text}", flush=True)


def _show_log(line: str) -> None:
    from autogaze_backend.logs import LogFormat
    from autogaze_backend.serving.logs import as_json_line

    if LogFormat.from_environment() is LogFormat.JSON and line.strip():
        line = as_json_line(line, time.time())
    print(line, file=sys.stderr, flush=True)
