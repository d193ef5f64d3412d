"""How far a run is: videos that are done, and frames on the way, which tell that a long video moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_POLL_SECONDS = 1.0


class Tally:
    """Counts the frames of all workers; a Ray actor of its own, which they tell and do not wait for."""

    def __init__(self) -> None:
        self._frames = 0

    def add(self, frames: int) -> None:
        """Counts frames that were gazed at, those of attempts that come to nothing included."""
        self._frames += frames

    def total(self) -> int:
        """All so far."""
        return self._frames


@contextmanager
def run_progress(
    enabled: bool, videos: int, frames: Callable[[], int], *, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """Draws a bar of videos with the frames so far; yields a function that advances it by some videos.

    Args:
        enabled: whether to draw.
        videos: in all.
        frames: tells the frames so far; asked every second by a thread of its own.
        console: where to draw; None = standard output. Nothing is drawn without rich.
    """
    try:
        if not enabled:
            raise ImportError
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield lambda count: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos  {task.fields[frames]}"),
        TimeElapsedColumn(),
    )
    done = threading.Event()
    started = time.monotonic()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("bulk", total=videos, frames="")

        def show() -> None:
            total = frames()
            rate = total / max(time.monotonic() - started, 1e-9)
            bar.update(task, frames=f"{total} frames ({rate:.1f}/s)")

        def watch() -> None:
            while not done.wait(_POLL_SECONDS):
                show()

        watcher = threading.Thread(target=watch, name="autogaze-bulk-progress", daemon=True)
        watcher.start()
        try:
            yield lambda count: bar.update(task, advance=count)
        finally:
            done.set()
            watcher.join()
            show()
