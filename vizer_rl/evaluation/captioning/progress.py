"""Progress of captioning: a bar with images per second and time left; off a terminal, lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS = 15.0  # between two lines where no terminal shows a bar
Advance = Callable[[int], None]  # so many images more are done


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "")


@contextmanager
def captioning_progress(console: Console, doing: str, total: int) -> Iterator[Advance]:
    """What is to be called with the number of images that have been done since."""
    if console.is_terminal:
        columns = (MofNCompleteColumn(), BarColumn(), _Rate(), TimeRemainingColumn())
        with Progress(TextColumn(doing), *columns, console=console, transient=True) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(console, doing, total)


class _Lines:
    """A line now and then."""

    def __init__(self, console: Console, doing: str, total: int) -> None:
        self.console, self.doing, self.total, self.done = console, doing, total, 0
        self.start = self.shown = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        if (now := time.monotonic()) - self.shown >= LINE_SECONDS and self.done:
            self.shown, rate = now, self.done / (now - self.start)
            left = (self.total - self.done) / rate
            self.console.print(
                f"{self.doing}: {self.done} of {self.total} images, {rate:.1f} images/s, "
                f"{left:.0f} s to go"
            )
