"""``autogaze export``: traces the graphs of an architecture."""

from __future__ import annotations

import argparse


class Command:
    """Traces an architecture's graphs and checks them; the supported ones are shipped already traced."""

    help = (
        "trace the ONNX graphs of a checkpoint's architecture (extra 'export'; shipped for released models)"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options."""
        parser.add_argument("checkpoint", help="checkpoint folder, hub id, or a config.json")
        parser.add_argument("out_dir", help="folder for the graphs; pass it to `autogaze build --graphs`")

    def run(self, args: argparse.Namespace) -> int:
        """Traces, checks and prints a line a graph."""
        from autogaze_export.exporting import export

        for path, report in export(args.checkpoint, args.out_dir):
            print(
                f"{path}  differs from torch by at most {report.max_difference:.1e} in {report.trials} trials"
            )
        return 0
