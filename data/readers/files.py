"""The raw files of a format: found by the names that upstream gives them, plain or gzipped."""

import fnmatch
import gzip
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from data.errors import ConfigError, ContractError


def find(raw: Path, patterns: Sequence[str], *, below: Sequence[str] = ("",)) -> list[Path]:
    """Files under ``raw`` (a directory, or one file) whose name fits a pattern, sorted by name; maybe none.

    Each pattern also matches with ``.gz``. ``below`` names sub-directories to look into; the first one
    that has a match wins.
    """
    if raw.is_file():
        return [raw] if _fits(raw.name, patterns) else []
    for part in below:
        directory = raw / part
        if directory.is_dir():
            found = sorted(file for file in directory.iterdir() if _fits(file.name, patterns))
            found = [file for file in found if file.is_file()]
            if found:
                return _without_twins(found)
    return []


def need(raw: Path, patterns: Sequence[str], *, below: Sequence[str] = ("",)) -> list[Path]:
    """As :func:`find`, raising :class:`ConfigError` with the names looked for where there is none."""
    if not raw.exists():
        raise ConfigError(f"raw={raw}: no such file or directory")
    found = find(raw, patterns, below=below)
    if not found:
        if raw.is_file():
            raise ConfigError(f"raw={raw}: its name fits none of {', '.join(patterns)} (plain or .gz)")
        places = " or ".join(sorted({str(raw / part) for part in below}))
        raise ConfigError(f"raw={raw}: found none of {', '.join(patterns)} (plain or .gz) in {places}")
    return found


def broken_json_line(file: Path, first: int = 1) -> ContractError | None:
    """A refusal of the first line of ``file``, from line ``first`` (from 1) on, that is not JSON; or None."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rb") as lines:
        for number, line in enumerate(itertools.islice(lines, first - 1, None), first):
            try:
                json.loads(line)
            except ValueError as error:
                return ContractError(
                    f"{file}, line {number}: not JSON ({error}); correct or remove that line"
                )
    return None


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.removesuffix(".gz"), pattern) for pattern in patterns)


def _without_twins(files: list[Path]) -> list[Path]:
    names = {file.name for file in files}
    twins = sorted(name for name in names if f"{name}.gz" in names)
    if twins:
        raise ConfigError(f"raw={files[0].parent}: has both {twins[0]} and {twins[0]}.gz; keep one")
    return files
