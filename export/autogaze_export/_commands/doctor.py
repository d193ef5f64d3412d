"""``autogaze doctor``: what would stop AutoGaze here, and what to do about it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autogaze_export.doctor import Check

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "absent": "dim"}


class Command:
    """Prints one line a check; the exit status is 1 when any failed."""

    help = "check this machine, and a checkpoint or bundle, and say what to do about each fault"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options."""
        parser.add_argument(
            "--checkpoint",
            metavar="PATH_OR_HUB_ID",
            help="also load this checkpoint (a hub id is downloaded)",
        )
        parser.add_argument("--bundle", type=Path, metavar="DIR", help="also check this bundle")
        parser.add_argument("--json", action="store_true", help="print JSON for machines")

    def run(self, args: argparse.Namespace) -> int:
        """Runs the checks; returns 1 when any failed, else 0."""
        from autogaze_export.doctor import Environment, Status, diagnose

        checks = diagnose(Environment.probe(), checkpoint=args.checkpoint, bundle=args.bundle)
        failed = any(check.status is Status.FAIL for check in checks)
        if args.json:
            print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
        elif find_spec("rich") is not None:
            _print_table(checks)
        else:
            _print_plain(checks)
        return 1 if failed else 0


def _print_table(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "status", "found", "what to do", pad_edge=False)
    for check in checks:
        status = Text(check.status.value, style=_COLOURS[check.status.value])
        # Text: square brackets of an extra's name are no markup.
        table.add_row(Text(check.name), status, Text(check.found), Text(check.remedy))
    Console().print(table)


def _print_plain(checks: Sequence[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status.value:6}  {check.name:{width}}  {check.found}")
        if check.remedy:
            print(f"{'':6}  {'':{width}}  -> {check.remedy}")
