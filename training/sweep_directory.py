"""The directory of a sweep: ``sweep.json``, ``study.journal``, tables, logs, a run directory per trial."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.atomic import read_json, write_json
from data.errors import ConfigError

MARKER, LOCK = "sweep.json", "sweep.lock"
#: What a run directory can do without once its metrics are all that matters.
MODEL_FILES = ("model", "checkpoints", "best", "refit", "prepared")


def trial_name(number: int) -> str:
    """Name of a trial's run directory."""
    return f"trial-{number:04d}"


@contextmanager
def open_sweep(out: Path, record: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Iterator[bool]:
    """Have ``out`` alone for the duration of the block; yields whether there was a sweep to go on with.

    ``record`` says what the sweep is. A directory that another process sweeps in, that holds something
    else, or that holds a sweep of another record is refused, with nothing changed.
    """
    if out.is_file():
        raise ConfigError(f"out={out} is a file; choose a directory")
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        there = _prepare(out, record, resume=resume, overwrite=overwrite)
        (out / "logs").mkdir(exist_ok=True)
        yield there


def forget_models(out: Path, number: int) -> None:
    """Delete what a trial trained; its record, metrics and settings stay."""
    for name in MODEL_FILES:
        shutil.rmtree(out / trial_name(number) / name, ignore_errors=True)


def _prepare(out: Path, record: Mapping[str, Any], *, resume: bool, overwrite: bool) -> bool:
    content = [path for path in out.iterdir() if path.name != LOCK]
    there = (out / MARKER).exists()
    if content and not there:
        raise ConfigError(f"out={out} is not a sweep's directory (no {MARKER}); choose another")
    if there and not (resume or overwrite):
        raise ConfigError(
            f"out={out} exists; go on with it by resume=true, choose another directory or add overwrite=true"
        )
    if there and resume:
        _refuse_another(out, record)
        return True
    for path in sorted(content, key=lambda path: path.name == MARKER):  # without its marker it is no sweep
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_json(out / MARKER, dict(record))
    return False


def _refuse_another(out: Path, record: Mapping[str, Any]) -> None:
    old = read_json(out / MARKER)
    for name, value in record.items():
        if old.get(name) != value:
            raise ConfigError(
                f"out={out} is another sweep: its {name} is {old.get(name)}, not {value}; resume it as it "
                "was begun, or choose another directory"
            )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the lock of a sweep's directory; the operating system lets go of it however the process ends."""
    with open(out / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"out={out}: a sweep is running there (process {file.read().strip() or 'unknown'}); wait for "
                "it, end it, or choose another directory"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
