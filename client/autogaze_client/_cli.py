"""The ``autogaze`` command: each installed package brings its own subcommands through entry points."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import Protocol

from autogaze_client._errors import AutoGazeError

_GROUP = "autogaze.commands"


class CommandProtocol(Protocol):
    """What an entry point of the group ``autogaze.commands`` provides. Its module imports nothing heavy."""

    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the subcommand's options."""

    def run(self, args: argparse.Namespace) -> int:
        """Runs it; returns the exit status."""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of ``autogaze`` with every installed subcommand, or with one: the rest is then not loaded."""
    parser = argparse.ArgumentParser(prog="autogaze", description="AutoGaze as a service.")
    parser.add_argument("--version", action="version", version=version("autogaze-triton"))
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for entry in sorted(entry_points(group=_GROUP), key=lambda entry: entry.name):
        if only is not None and entry.name != only:
            continue
        command: CommandProtocol = entry.load()()
        sub = subparsers.add_parser(entry.name, help=command.help, description=command.help)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``autogaze``. An expected error prints one line and exits with 1, Ctrl-C with 130."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = {entry.name for entry in entry_points(group=_GROUP)}
    only = arguments[0] if arguments and arguments[0] in known else None
    args = build_parser(only).parse_args(arguments)
    try:
        status: int = args.run(args)
    except AutoGazeError as error:
        print(f"autogaze {args.command}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
