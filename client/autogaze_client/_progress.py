"""An optional progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    enabled: bool, description: str, total: int | None, *, unit: str = "frames"
) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances the bar by some frames; it does nothing without rich (extra ``video``).

    Args:
        enabled: whether to draw at all.
        description: what is in progress.
        total: frames in all, an estimate; None = unknown.
        unit: what is counted, where it is not frames.
    """
    try:
        if not enabled:
            raise ImportError
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda count: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(description, total=total)

        def advance(count: int) -> None:
            progress.update(task, advance=count)

        yield advance
