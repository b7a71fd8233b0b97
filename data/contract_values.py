"""The values of a dataset's tables, checked by DuckDB in one streaming pass over each table.

Memory is bounded by the number of distinct ids, not by the length of the log.
"""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from data.columns import is_vector
from data.dataset import Dataset
from data.errors import ContractError
from data.schema import KEYS, LABELS, SPLITS, TABLES
from data.storage import File, let_duckdb_read, read_schema

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
TIMES = ("event_time", "action_time", "publish_time")
#: Columns where a negative number has no meaning (unknown is null, never -1).
NOT_NEGATIVE = ("position", "watch_ms", "order_value_minor", "duration_ms", "price_minor")


def check_values(
    dataset: Dataset, tables: Collection[str], *, latest: datetime, max_unknown_share: float
) -> None:
    """Check every row of ``tables`` (types must be right already); times may not lie after ``latest``.

    Raises :class:`ContractError` naming file, column, row and mend of the first breach of a kind.
    """
    with _connection() as connection:
        for table in TABLES:
            if table in tables and dataset.has(table):
                _check_values(connection, dataset, table, latest)
        for table in ("events", "actions"):
            if table in tables and dataset.has(table) and dataset.has("videos"):
                _check_unknown_videos(connection, dataset, table, max_unknown_share)


@dataclass(frozen=True, slots=True)
class _Rule:
    """Rows where the SQL condition ``broken`` holds break the contract."""

    column: str
    broken: str
    what: str
    mend: str


def _rules(table: str, schema: pa.Schema, latest: datetime) -> Iterator[_Rule]:
    earliest_us, latest_us = (int(moment.timestamp() * 1_000_000) for moment in (EARLIEST, latest))
    for column in TABLES[table].values():
        name = column.name
        if schema.get_field_index(name) < 0:
            continue
        if column.required:
            yield _Rule(name, f"{name} is null", "is null", "fill it or leave the row out")
        if name in TIMES:
            outside = f"epoch_us({name}) not between {earliest_us} and {latest_us}"
            span = f"is not between {EARLIEST:%Y-%m-%d} and tomorrow"
            yield _Rule(name, outside, span, "check its unit and leave such rows out")
        if name in NOT_NEGATIVE:
            yield _Rule(name, f"{name} < 0", "is negative", "write null where it is unknown")
        if name == "propensity":
            # NaN sorts above every number in DuckDB, so this refuses it as well.
            outside = "not (propensity > 0 and propensity <= 1)"
            yield _Rule(name, outside, "is outside (0, 1]", "write the probability, or null where unknown")
        if name == "split":
            yield _Rule(name, "split is null", "is null", "fill it, or drop the column")
            stranger = f"split not in {SPLITS}"
            yield _Rule(name, stranger, f"is none of {', '.join(SPLITS)}", "correct it, or drop the column")
        if name == "action":
            yield _Rule(name, f"action not in {LABELS}", f"is none of {', '.join(LABELS)}", "rename it")
    for field in schema if table in KEYS else ():
        if is_vector(field.type):
            bad = f"len(list_filter({_name(field.name)}, lambda x: x is null or not isfinite(x))) > 0"
            yield _Rule(
                field.name, bad, "holds a value that is not finite", "write null for the whole vector"
            )


def _check_values(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, table: str, latest: datetime
) -> None:
    files = dataset.files(table)
    schema = read_schema(files[0])
    rules = list(_rules(table, schema, latest))
    labels = [name for name in LABELS if table == "events" and schema.get_field_index(name) >= 0]
    # sum() instead of count_if(): rows where the condition is null do not break the rule.
    sums = [f"coalesce(sum(({rule.broken})::int), 0)" for rule in rules] + [f'count("{x}")' for x in labels]
    rows, *counts = _query(connection, files, f"select count(*), {', '.join(sums)} from rows")[0]
    if rows == 0 and table == "events":
        raise ContractError(f"{files[0]}: the log has no row; import a log that has events")
    for rule, broken in zip(rules, counts, strict=False):
        if broken:
            file, row, value = _first(connection, files, rule.column, rule.broken)
            more = f" (so in {broken:,} of {rows:,} rows)" if broken > 1 else ""
            vector = is_vector(schema.field(rule.column).type)
            shown = "" if value is None or vector else f" {value!s}"
            raise ContractError(
                f"{file}, column {rule.column}, row {row} (from 0):{shown} {rule.what}{more}; {rule.mend}"
            )
    for label, known in zip(labels, counts[len(rules) :], strict=True):
        if known == 0:
            raise ContractError(f"{files[0]}, column {label}: every label is null (unknown); drop the column")
    if table in KEYS:
        _check_unique(connection, files, KEYS[table])


def _check_unique(connection: duckdb.DuckDBPyConnection, files: list[File], key: str) -> None:
    repeated = f"select {key} from rows group by {key} having count(*) > 1"
    (count,) = _query(connection, files, f"select count(*) from ({repeated})")[0]
    if count:
        second = f"select {key}, min((filename, file_row_number)) as first from rows group by {key} "
        second += "having count(*) > 1"
        file, row, value = _query(
            connection,
            files,
            f"select filename, file_row_number, {key} from rows join ({second}) using ({key}) "
            "where (filename, file_row_number) > first order by 1, 2 limit 1",
        )[0]
        more = f" ({count:,} ids repeat)" if count > 1 else ""
        raise ContractError(f"{file}, column {key}, row {row} (from 0): duplicate id {value}{more}; keep one")


def _check_unknown_videos(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, table: str, max_unknown_share: float
) -> None:
    files = dataset.files(table)
    listed = dataset.files("videos")
    let_duckdb_read(connection, listed)
    videos = f"select video_id from read_parquet({_literal(listed)}, hive_partitioning = false)"
    missing = f"from rows anti join ({videos}) using (video_id)"
    ((total,),) = _query(connection, files, "select count(*) from rows")
    ((unknown,),) = _query(connection, files, f"select count(*) {missing}")
    if unknown > max_unknown_share * total:
        file, row, video = _query(
            connection, files, f"select filename, file_row_number, video_id {missing} order by 1, 2 limit 1"
        )[0]
        raise ContractError(
            f"{file}, column video_id, row {row} (from 0): video {video} is not in videos, as in "
            f"{unknown:,} of {total:,} {table} ({unknown / total:.2%}, allowed {max_unknown_share:.2%}); "
            "add it or leave the row out"
        )


def _first(
    connection: duckdb.DuckDBPyConnection, files: list[File], column: str, broken: str
) -> tuple[str, int, str | None]:
    # A timestamp far outside the calendar cannot become a Python datetime, so it travels as text.
    found = _query(
        connection,
        files,
        f"select filename, file_row_number, {_name(column)}::varchar from rows where {broken} "
        "order by 1, 2 limit 1",
    )[0]
    return found[0], found[1], found[2]


@contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="shopreel-contract-") as spill:
        connection = duckdb.connect(config={"temp_directory": spill, "autoinstall_known_extensions": False})
        try:
            connection.execute("set enable_progress_bar = false")
            connection.execute("set TimeZone = 'UTC'")
            # Parquet statistics leave NaN out, and these two would answer comparisons from them.
            connection.execute("set disabled_optimizers = 'statistics_propagation,filter_pushdown'")
            yield connection
        finally:
            connection.close()


def _query(connection: duckdb.DuckDBPyConnection, files: list[File], sql: str) -> list[tuple[Any, ...]]:
    """Run ``sql`` over the view ``rows``: all columns of ``files`` plus ``filename``, ``file_row_number``."""
    let_duckdb_read(connection, files)
    options = "filename = true, file_row_number = true, hive_partitioning = false"
    source = f"read_parquet({_literal(files)}, {options})"
    try:
        found: list[tuple[Any, ...]] = connection.execute(
            f"with rows as (select * from {source}) {sql}"
        ).fetchall()
    except duckdb.OutOfMemoryException as error:
        raise ContractError(f"{_folder(files[0])}: memory ran out ({_one_line(error)})") from None
    except duckdb.Error as error:
        raise ContractError(
            f"{_folder(files[0])}: a file is damaged ({_one_line(error)}); copy or import it again"
        ) from None
    return found


def _literal(files: list[File]) -> str:
    quoted = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    return f"[{quoted}]"


def _name(column: str) -> str:
    quoted = column.replace('"', '""')
    return f'"{quoted}"'


def _folder(file: File) -> str:
    return str(file).rpartition("/")[0]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
