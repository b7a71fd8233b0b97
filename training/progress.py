"""What a run tells while it trains: a bar, ``metrics.jsonl`` and TensorBoard."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard.writer import SummaryWriter

from data.atomic import write_bytes


class Log(Protocol):
    """What the training loop tells; :class:`RunLog` on the lead, :class:`NoLog` on other ranks."""

    lines: int

    def begin_epoch(self, epoch: int) -> None:
        """A 0-based epoch begins."""
        ...

    def step(self, epoch: int, examples: int, loss: float, minutes_left: float) -> None:
        """A step of so many examples is done; ``loss`` is the epoch's mean so far."""
        ...

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers to keep."""
        ...

    def say(self, text: str) -> None:
        """A line for the user."""
        ...


class NoLog:
    """Tells nothing."""

    def __init__(self) -> None:
        self.lines = 0

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *error: object) -> None: ...

    def begin_epoch(self, epoch: int) -> None:
        """Tell nothing."""

    def step(self, epoch: int, examples: int, loss: float, minutes_left: float) -> None:
        """Tell nothing."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Tell nothing."""

    def say(self, text: str) -> None:
        """Tell nothing."""


class RunLog:
    """Log of one run under ``directory``; ``examples`` of an epoch size the bar.

    A resumed run gives its step and the ``lines`` of metrics.jsonl at its checkpoint; what a broken-off
    attempt wrote after that is dropped. Without a terminal one line is printed every 30 s instead of
    the bar.
    """

    def __init__(
        self, directory: Path, examples: int, *, from_step: int = 0, lines: int = 0, quiet: bool = False
    ) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.path = directory / "metrics.jsonl"
        self.lines = _keep_lines(self.path, lines)
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=from_step or None)
        self.examples = examples
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not sys.stderr.isatty(),
            refresh_per_second=2,
        )
        self.task = self.bar.add_task("epoch 1", total=examples, rate="", note="")
        self._spoken = time.monotonic()
        self._mark = (time.monotonic(), 0)

    def __enter__(self) -> "RunLog":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        self.board.close()
        self.file.close()

    def begin_epoch(self, epoch: int) -> None:
        """Reset the bar for 0-based ``epoch``."""
        self.bar.reset(self.task, description=f"epoch {epoch + 1}", total=self.examples)
        self._mark = (time.monotonic(), 0)

    def step(self, epoch: int, examples: int, loss: float, minutes_left: float) -> None:
        """Show progress after a step of ``examples`` positives."""
        since, done = self._mark
        done += examples
        self._mark = (since, done)
        rate = f"{done / max(time.monotonic() - since, 1e-9):,.0f} examples/s"
        note = f"loss {loss:.4f}  at most {minutes_left:.0f} min left"
        self.bar.update(self.task, advance=examples, rate=rate, note=note)
        if self.bar.disable and time.monotonic() - self._spoken > 30:
            self._spoken = time.monotonic()
            self.console.print(f"epoch {epoch + 1}  {done:,}/{self.examples:,}  {rate}  {note}")

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Append ``values`` to metrics.jsonl and TensorBoard."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        self.lines += 1
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)


def _keep_lines(path: Path, count: int) -> int:
    """Cut a file to its first ``count`` lines; returns how many there are."""
    if not path.exists():
        return 0
    kept = path.read_text(encoding="utf-8").splitlines()[:count]
    write_bytes(path, "".join(line + "\n" for line in kept).encode())
    return len(kept)
