"""One trial of a sweep: ``shopreel train`` in a process of its own, which may fail without the sweep.

``python -m training.trial key=value …`` is that process; it ends when the sweep that started it is gone.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.atomic import read_json
from data.compose import compose, text_word
from data.errors import ConfigError, ShopreelError

#: Seconds that a training has to stop after it was asked to.
PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training gave: the best validation ``value`` of ``metric``, or the ``error`` it ended with."""

    value: float | None = None
    metric: str = ""
    best_epoch: int | None = None
    error: str = ""
    seconds: float = 0.0


def train_trial(words: Sequence[str], out: Path, log: Path) -> Outcome:
    """Train with ``words`` into the run directory ``out``; what it prints goes to ``log``.

    Never raises for what happens to the training; an interrupt of the caller ends it too.
    """
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.trial", *words, text_word("out", str(out))],
            stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            code = process.wait()
        finally:
            _end(process)
    seconds = time.monotonic() - begun
    if code:
        return Outcome(error=_reason(code, log), seconds=seconds)
    return outcome_of(out, seconds)


def outcome_of(out: Path, seconds: float) -> Outcome:
    """The best validation of a finished run, from its ``run.json``."""
    try:
        best = read_json(out / "run.json")["best"]
    except (ConfigError, KeyError, TypeError) as error:
        return Outcome(error=f"{out}/run.json: {error}", seconds=seconds)
    if best is None:
        mend = "raise max_minutes"
        return Outcome(error=f"{out}: ended before its first validation; {mend}", seconds=seconds)
    return Outcome(
        value=best["value"], metric=best["metric"], best_epoch=best["epoch"] + 1, seconds=seconds
    )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a training that still runs, gently first."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _reason(code: int, log: Path) -> str:
    """The last line that a failed training printed, or the signal that ended it."""
    if code < 0:
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{hint}"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last or f"exit code {code}"


def _leave_with_the_sweep() -> None:
    """End this process when the other end of its standard input is closed, however that came."""
    os.read(0, 1)  # not sys.stdin: its lock, held here, would keep the interpreter from ending
    os._exit(1)


def main() -> int:
    """Train as ``shopreel train`` does; a user's mistake is the last line printed."""
    threading.Thread(target=_leave_with_the_sweep, daemon=True).start()
    from training.train import CONFIG, run  # takes seconds, in which the sweep may end too

    try:
        return run(compose("train", sys.argv[1:], CONFIG))
    except ShopreelError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
