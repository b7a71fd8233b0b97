"""What a sweep leaves: ``trials.parquet``, ``best.yaml``, and the table on screen."""

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from data.atomic import write_bytes
from training.search_space import Dimension, SearchSpace, Value
from training.study import State, Trial
from training.sweep_directory import trial_name

#: Rows of the table on screen; all are in the file.
SHOWN = 20


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Complete trials, the highest value first, then the others by number."""
    done = [each for each in trials if each.state is State.complete]
    done.sort(key=lambda each: (-(each.outcome.value or 0.0), each.number))
    return done + [each for each in trials if each.state is not State.complete]


def trials_table(trials: Sequence[Trial], space: SearchSpace) -> pa.Table:
    """One row per trial in the order of :func:`ranked`; after what came of it, a column per searched key.

    ``value`` (null without one) of ``metric`` on validation; ``best_epoch`` counts from 1.
    """
    rows = ranked(trials)
    columns: dict[str, pa.Array] = {
        "trial": pa.array([each.number for each in rows], pa.int32()),
        "state": pa.array([each.state.value for each in rows], pa.string()),
        "value": pa.array([each.outcome.value for each in rows], pa.float64()),
        "metric": pa.array([each.outcome.metric or None for each in rows], pa.string()),
        "best_epoch": pa.array([each.outcome.best_epoch for each in rows], pa.int32()),
        "seconds": pa.array([each.outcome.seconds for each in rows], pa.float64()),
        "error": pa.array([each.outcome.error or None for each in rows], pa.string()),
        "started": pa.array([each.started for each in rows], pa.timestamp("us", "UTC")),
        "directory": pa.array([trial_name(each.number) for each in rows], pa.string()),
    }
    for dimension in space.dimensions:
        columns[dimension.key] = _column([each.point[dimension.key] for each in rows], dimension)
    return pa.table(columns)


def _column(values: Sequence[Value], dimension: Dimension) -> pa.Array:
    """Settings by their type; choices, which are texts, as numbers where all of them are."""
    if not isinstance(dimension.ends()[0], str):
        return pa.array(values, pa.int64() if isinstance(dimension.ends()[0], int) else pa.float64())
    for kind, read in ((pa.int64(), int), (pa.float64(), float)):
        try:
            for each in dimension.ends():
                read(each)
        except ValueError:
            continue
        return pa.array([read(each) for each in values], kind)
    return pa.array(values, pa.string())


def write_table(table: pa.Table, file: Path) -> None:
    """Write ``table`` as Parquet, atomically."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(file, buffer.getvalue())


def write_overrides(words: Sequence[str], file: Path, *headlines: str) -> None:
    """Write ``words`` as a YAML list, which ``shopreel train @FILE`` takes, atomically."""
    head = "".join(f"# {line}\n" for line in headlines)
    lines = yaml.safe_dump(list(words), allow_unicode=True, width=10**6)
    write_bytes(file, (head + lines).encode())


def said(trial: Trial, space: SearchSpace) -> str:
    """What a trial tries, in one line."""
    return "  ".join(space.overrides(trial.point))


def show(trials: Sequence[Trial], space: SearchSpace, out: Path, console: Console) -> None:
    """Print the trials, best first."""
    rows = ranked(trials)
    metric = next((each.outcome.metric for each in rows if each.outcome.metric), "value")
    table = Table(title=f"validation {metric}", title_justify="left")
    for name in ("trial", metric, "epoch", "time"):
        table.add_column(name, justify="right")
    last = [each.key.rpartition(".")[2] for each in space.dimensions]
    for dimension, name in zip(space.dimensions, last, strict=True):
        table.add_column(name if last.count(name) == 1 else dimension.key)
    for each in rows[:SHOWN]:
        value = each.state.value if each.outcome.value is None else f"{each.outcome.value:.4f}"
        epoch = "" if each.outcome.best_epoch is None else str(each.outcome.best_epoch)
        time = f"{each.outcome.seconds:,.0f} s" if each.outcome.seconds else ""
        table.add_row(
            str(each.number), value, epoch, time, *(_cell(each, key.key) for key in space.dimensions)
        )
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"and {len(rows) - SHOWN} more in {out / 'trials.parquet'}", soft_wrap=True)
    for each in rows:
        if each.outcome.error:
            line = f"trial {each.number} failed: {each.outcome.error}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cell(trial: Trial, key: str) -> str:
    value: Value | None = trial.point.get(key)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
