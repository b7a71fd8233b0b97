"""From a reader's draft to a dataset directory: contract types, one order of rows, nothing wholly unknown."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from data.contract_values import TIMES
from data.errors import ConfigError
from data.readers.draft import Draft
from data.readers.staging import Staging
from data.schema import KEYS, LABELS, TABLES

_IBIS_TYPES = {
    pa.string(): "string", pa.int32(): "int32", pa.int64(): "int64", pa.float64(): "float64",
    pa.bool_(): "boolean", pa.list_(pa.string()): "array<string>",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Span:
    """The first and the last ``event_time`` written."""

    first: datetime
    last: datetime


def write_draft(draft: Draft, staging: Staging, directory: Path) -> Span:
    """Write all tables of ``draft`` under ``directory``, settle its report and the tasks of its info.

    Rows are sorted (events by user, time and video; others by id), so the same input gives the same rows in
    the same order. Raises :class:`ConfigError` where no event is left.
    """
    events = draft.tables["events"]
    staging.on_step("writing events")
    rows = _conform(staging, "events", events)
    keys = ["user_id", "event_time", "video_id"]
    rows = rows.order_by([*keys, *(name for name in rows.columns if name not in keys)])
    staging.backend.write(rows, directory / "events")
    files = sorted((directory / "events").glob("*.parquet"))
    written = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    draft.report.table("events").finish(written)
    if written == 0:
        dropped = draft.report.table("events").dropped
        why = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "the files have no row"
        raise ConfigError(
            f"raw: no event is left ({why}); check that this is the right source for these files"
        )
    span = _settle_labels(draft, staging, files)
    log = staging.backend.scan_parquet(files)
    for table in ("products", "users", "videos"):
        if table in draft.tables:
            staging.on_step(f"writing {table}")
            rows = _conform(staging, table, draft.tables[table])
            if table == "videos":
                rows = _with_videos_of(log, rows, draft, staging)
            path = directory / f"{table}.parquet"
            staging.backend.write(rows.order_by(KEYS[table]), path)
            draft.report.table(table).finish(pq.ParquetFile(path).metadata.num_rows)
    draft.info.extra["import_report"] = draft.report.to_json()
    return span


def _conform(staging: Staging, table: str, rows: ir.Table) -> ir.Table:
    columns = {}
    names = [name for name in TABLES[table] if name in rows.columns]
    for name in [*names, *(name for name in rows.columns if name not in names)]:
        column = TABLES[table].get(name)
        if name in TIMES:
            columns[name] = staging.backend.timestamp(rows[name].cast("int64"))
        elif column is not None and isinstance(column.type, pa.DataType):
            columns[name] = rows[name].cast(_IBIS_TYPES[column.type])
        else:
            columns[name] = rows[name]
    return rows.select(**columns)


def _with_videos_of(log: ir.Table, videos: ir.Table, draft: Draft, staging: Staging) -> ir.Table:
    named = log.select("video_id").distinct()
    missing = named.anti_join(videos, "video_id")
    report = draft.report.table("videos")
    count = staging.count(missing)
    if not count:
        return videos
    report.added += count
    schema = videos.schema()
    blank = {name: ibis.null(schema[name]) for name in videos.columns if name != "video_id"}
    padded = missing.mutate(**blank).select(*videos.columns)
    return videos.union(padded)


def _settle_labels(draft: Draft, staging: Staging, files: list[Path]) -> Span:
    """Drop label columns without any known value (the contract refuses them); say which tasks are left."""
    rows = staging.backend.scan_parquet(files)
    labels = [name for name in LABELS if name in rows.columns]
    counted = {name: rows[name].count() for name in labels}
    (found,) = staging.fetch(
        rows.aggregate(first=rows.event_time.min(), last=rows.event_time.max(), **counted)
    )
    empty = [name for name in labels if found[name] == 0]
    if empty:
        draft.info.notes.append(f"no value is known for {', '.join(empty)}: left out")
        for file in files:
            _rewrite_without(file, empty)
    draft.info.tasks = [name for name in labels if name not in empty]
    if "watch_ms" in rows.columns:
        draft.info.tasks.append("watch")
    return Span(found["first"], found["last"])


def _rewrite_without(file: Path, columns: list[str]) -> None:
    source = pq.ParquetFile(file)
    kept = [name for name in source.schema_arrow.names if name not in columns]
    schema = pa.schema([source.schema_arrow.field(name) for name in kept])
    target = file.with_name(f".{file.name}")
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in source.iter_batches(columns=kept):
            writer.write_batch(batch)
    target.replace(file)
