"""A progress bar on stderr; without a terminal a line every half minute."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(done)``, to be told how many of ``total`` units are done altogether."""
    console = Console(stderr=True)
    terminal = sys.stderr.isatty()
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not terminal,
        refresh_per_second=4,
    )
    task = bar.add_task(title, total=total, rate="")
    begin = spoken = time.monotonic()

    def advance(done: int) -> None:
        nonlocal spoken
        now = time.monotonic()
        rate = f"{done / max(now - begin, 1e-9):,.0f} {unit}/s"
        if done and (now - begin) / done >= 1:
            rate = f"{(now - begin) / done:,.0f} s each"
        bar.update(task, completed=done, rate=rate)
        if not terminal and now - spoken >= SECONDS_BETWEEN_LINES:
            spoken = now
            console.print(f"{title}  {done:,}/{total:,}  {rate}", highlight=False)

    with bar:
        yield advance
