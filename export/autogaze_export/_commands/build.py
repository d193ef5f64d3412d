"""``autogaze build``: writes a bundle, and plans into it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogaze_client._errors import InvalidInputError

if TYPE_CHECKING:
    from autogaze_export.tensorrt.options import PlanOptions


class Command:
    """Writes the bundle of a checkpoint: graphs, weights, config and manifest; with a TensorRT engine, plans too."""

    help = "write a bundle, all that serving needs, from a checkpoint folder or hub id"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options."""
        parser.add_argument("checkpoint", help="folder, or hub id such as nvidia/AutoGaze")
        parser.add_argument("out_dir", help="folder of the bundle")
        parser.add_argument(
            "--engine", default="onnxruntime", help="onnxruntime (default), tensorrt or tensorrt-rtx"
        )
        parser.add_argument("--precision", default="exact", help="exact (default) or fast")
        parser.add_argument("--revision", help="branch, tag or commit of a hub id")
        parser.add_argument(
            "--sha256",
            metavar="HEX",
            help="what the checkpoint's model.safetensors must have, else nothing is built",
        )
        parser.add_argument(
            "--graphs", help="folder that `autogaze export` wrote, for architectures not shipped"
        )
        plans = parser.add_argument_group("plans (engines tensorrt and tensorrt-rtx)")
        plans.add_argument(
            "--sm", help="compute capabilities to build for, such as 8.6,8.9,12.0 (default: the GPU here)"
        )
        plans.add_argument("--batch-buckets", help="rows a call (default: 1,2,4,8,16,32,64)")
        plans.add_argument("--length-buckets", help="cache positions (default: 4096,8192)")
        plans.add_argument("--frame-buckets", help="frames a call of the encoder (default: 1,16)")
        plans.add_argument(
            "--graph-variant",
            help="opset24 or plain (default: what the TensorRT that is installed can parse)",
        )
        plans.add_argument(
            "--version-compatible", action="store_true", help="plans that newer versions run, too; slower"
        )
        plans.add_argument(
            "--hardware-compatible", action="store_true", help="plans for Ampere and newer GPUs; slower"
        )
        plans.add_argument(
            "--strip-weights", action="store_true", help="plans without weights, refitted at load"
        )
        plans.add_argument("--timing-cache", type=Path, help="file of measured kernels (default: one a GPU)")
        plans.add_argument(
            "--keep-onnx",
            type=Path,
            metavar="DIR",
            help="keep the graph of each plan that is built, weights inside",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Builds and prints the bundle's path."""
        from autogaze_export.bundle_writer import build

        path = build(
            args.checkpoint,
            args.out_dir,
            engine=args.engine,
            precision=args.precision,
            revision=args.revision,
            sha256=args.sha256,
            graphs=args.graphs,
            plans=_options(args),
        )
        print(path)
        return 0


def _options(args: argparse.Namespace) -> PlanOptions | None:
    from autogaze_backend.plans import GraphVariant

    from autogaze_export.tensorrt.options import PlanOptions, parse_compute_capabilities, parse_numbers

    given: dict[str, Any] = {}
    for name in ("batch_buckets", "length_buckets", "frame_buckets"):
        if (text := getattr(args, name)) is not None:
            given[name] = parse_numbers(text, f"--{name.replace('_', '-')}")
    if args.sm is not None:
        given["compute_capabilities"] = parse_compute_capabilities(args.sm)
    if args.graph_variant is not None:
        known = [variant.value for variant in GraphVariant]
        if args.graph_variant not in known:
            raise InvalidInputError(f"--graph-variant is {args.graph_variant!r}; pass {' or '.join(known)}")
        given["variant"] = GraphVariant(args.graph_variant)
    for name in ("version_compatible", "hardware_compatible", "strip_weights", "timing_cache", "keep_onnx"):
        if value := getattr(args, name):
            given[name] = value
    if args.engine == "onnxruntime":
        # Options that it does not have are refused by build.
        return PlanOptions(**given) if given else None
    return PlanOptions(**given, progress=True)
