"""A bar over the plans of a build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Told of each plan.

    Attributes:
        starts: called with the plan's file name.
        advances: called when it is written.
    """

    starts: Callable[[str], None]
    advances: Callable[[], None]


@contextmanager
def progress_bar(wanted: bool, target: str, plans: int) -> Iterator[Progress]:
    """Draws on standard error; standard output is the command's result. Nothing is drawn without rich."""
    if wanted:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar
        except ImportError:
            wanted = False
    if not wanted:
        yield Progress(lambda _: None, lambda: None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[plan]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(target, total=plans, plan="")
        yield Progress(lambda name: bar.update(task, plan=name), lambda: bar.advance(task))
