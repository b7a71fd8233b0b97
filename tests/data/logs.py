"""Small datasets written by hand, prepared by the command, and read back as plain Python."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import shopreel
from data.dataset import DatasetInfo, write_table, writing_dataset
from data.prepared import Prepared
from data.schema import LABEL_BIT, LABELS, TABLES, TIME

Row = Mapping[str, Any]
START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_MS = 86_400_000


def at(ms: int) -> datetime:
    """``ms`` after the first moment of 2026, UTC."""
    return START + timedelta(milliseconds=ms)


def ms_of(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def write_dataset(
    out: Path,
    events: Sequence[Row],
    *,
    actions: Sequence[Row] | None = None,
    files: int = 1,
    info: Mapping[str, Any] | None = None,
    **tables: Sequence[Row] | pa.Table,
) -> Path:
    """A dataset directory; column types are those of the contract, ids by their Python type."""
    described = DatasetInfo(name="by hand", source="tests", licence="none", **(info or {}))
    with writing_dataset(out, described) as scratch:
        (scratch / "events").mkdir()
        for number in range(files):
            pq.write_table(
                _table("events", events[number::files]), scratch / "events" / f"part-{number}.parquet"
            )
        if actions is not None:
            write_table(scratch, "actions", _table("actions", actions))
        for name, rows in tables.items():
            write_table(scratch, name, rows if isinstance(rows, pa.Table) else _table(name, rows))
    return out


def prepare(dataset: Path, out: Path, *overrides: str) -> Prepared:
    """Run the command in this process; a mistake raises."""
    shopreel.run_command("prepare", [f"dataset={dataset}", f"out={out}", "memory_limit_gb=0.5", *overrides])
    return Prepared.open(out)


def sequences(prepared: Prepared) -> list[dict[str, Any]]:
    """Sequence rows as dicts of lists."""
    return [row for shard in prepared.shards for row in pq.read_table(shard).to_pylist()]


def crowded_log(
    seed: int, *, users: int = 120, span_ms: int = 12, unit_ms: int = 1, videos: Sequence[Any] = (10, 20, 30)
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Random events and actions with few videos and few moments: ties, repeats and doubles everywhere.

    Times are ``unit_ms`` × 0 … ``span_ms``, some events a fraction of a millisecond later.
    """
    g = np.random.default_rng(seed)

    def pick(*values: Any) -> Any:
        return values[g.integers(len(values))]

    events, actions = [], []
    for user in range(1, users + 1):
        for _ in range(g.integers(0, 14)):
            moment = at(int(g.integers(0, span_ms)) * unit_ms) + timedelta(microseconds=int(pick(0, 0, 700)))
            events.append(
                {
                    "user_id": user, "video_id": pick(*videos), "event_time": moment,
                    "click": pick(None, True, False), "like": pick(None, True, False),
                    "watch_ms": pick(None, 0, 5, 2**40), "surface": pick(None, "feed", "search"),
                    "position": pick(None, 0, 1), "request_id": pick(None, "a", "b"),
                }
            )  # fmt: skip
        for _ in range(g.integers(0, 5)):
            actions.append(
                {
                    "user_id": user, "video_id": pick(*videos), "action": pick("click", "purchase"),
                    "action_time": at(int(g.integers(0, span_ms)) * unit_ms),
                    "request_id": pick(None, "a", "b", "c"), "order_value_minor": pick(None, 100, 250),
                }
            )  # fmt: skip
    return events, actions


def names(mask: int) -> set[str]:
    """Labels of a mask."""
    return {label for label in LABELS if mask & LABEL_BIT[label]}


def _table(name: str, rows: Iterable[Row]) -> pa.Table:
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not rows:
        columns = [column.name for column in TABLES[name].values() if column.required]
    arrays = {}
    for column in columns:
        contract = TABLES[name].get(column)
        kind = contract.type if contract is not None and isinstance(contract.type, pa.DataType) else None
        kind = kind if rows or kind is not None else pa.int64()
        arrays[column] = pa.array(
            [row.get(column) for row in rows], TIME if column.endswith("_time") else kind
        )
    return pa.table(arrays)
