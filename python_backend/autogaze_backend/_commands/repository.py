"""``autogaze repository``: a model repository of several checkpoints, one of them current."""

from __future__ import annotations

import argparse
from pathlib import Path


class Command:
    """Writes a repository, adds and drops versions, and changes which one is current."""

    help = "write a model repository of several checkpoints; promote, roll back and drop versions"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options."""
        parser.add_argument("out", type=Path, metavar="DIR", help="the repository; made if it does not exist")
        parser.add_argument(
            "--bundle",
            action="append",
            default=[],
            metavar="N=DIR",
            help="add what 'autogaze build' wrote to DIR as version N; repeatable",
        )
        parser.add_argument(
            "--current", type=int, metavar="N", help="version of requests that name none (default: unchanged)"
        )
        parser.add_argument(
            "--drop", type=int, action="append", default=[], metavar="N", help="remove version N; repeatable"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Writes it; returns 0.

        Raises:
            AutoGazeError: a version or bundle is missing, or is there already.
        """
        from autogaze_backend.serving.versions import current_version, repository_versions, write_repository

        bundles = dict(_numbered(text) for text in args.bundle)
        write_repository(args.out, bundles, current=args.current, drop=args.drop)
        versions = ", ".join(str(version) for version in repository_versions(args.out))
        print(f"{args.out}: versions {versions}; current {current_version(args.out)}")
        return 0


def _numbered(text: str) -> tuple[int, Path]:
    from autogaze_client._errors import InvalidInputError

    number, _, folder = text.partition("=")
    if not (number.isascii() and number.isdigit() and folder):
        raise InvalidInputError(f"--bundle is {text!r}; write it N=DIR, as in 2=bundle")
    return int(number), Path(folder)
