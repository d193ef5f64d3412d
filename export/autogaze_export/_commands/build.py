"""``autogaze build``: writes a bundle."""

from __future__ import annotations

import argparse


class Command:
    """Writes the bundle of a checkpoint: graphs, weights, config and manifest."""

    help = "write a bundle, all that serving needs, from a checkpoint folder or hub id"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options."""
        parser.add_argument("checkpoint", help="folder, or hub id such as nvidia/AutoGaze")
        parser.add_argument("out_dir", help="folder of the bundle")
        parser.add_argument("--engine", default="onnxruntime", help="default: onnxruntime")
        parser.add_argument("--precision", default="exact", help="default: exact")
        parser.add_argument("--revision", help="branch, tag or commit of a hub id")
        parser.add_argument(
            "--sha256",
            metavar="HEX",
            help="what the checkpoint's model.safetensors must have, else nothing is built",
        )
        parser.add_argument(
            "--graphs", help="folder that `autogaze export` wrote, for architectures not shipped"
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
        )
        print(path)
        return 0
