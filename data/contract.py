"""Refuse a dataset that breaks the contract before any work: file, column, row and the mend.

Types are read here from the Parquet footers; values are checked in ``data.contract_values``.
"""

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa

from data.contract_values import check_values
from data.dataset import Dataset
from data.errors import ContractError
from data.schema import ID, LABELS, TABLES, Column, is_id
from data.storage import File, read_schema

#: Columns that name the same thing and must therefore share one type, int64 or string.
SAME_ID = ("user_id", "video_id", "product_id")


def open_dataset(
    path: str | Path,
    *,
    max_unknown_share: float = 0.0,
    tables: Collection[str] = tuple(TABLES),
    now: datetime | None = None,
) -> Dataset:
    """Open the dataset directory ``path`` after checking everything that the contract asks for.

    ``max_unknown_share`` in [0, 1] is the share of events (and of actions) that may name a video which
    ``videos`` lacks. ``tables`` limits the values that are read, never the types. ``now`` replaces the clock
    in the test for times in the future. Raises :class:`ContractError`, one line, on the first breach.
    """
    dataset = Dataset.open(path)
    check_types(dataset)
    time_zone(dataset.info.time_zone)
    latest = (now or datetime.now(UTC)) + timedelta(days=1)
    check_values(dataset, tables, latest=latest, max_unknown_share=max_unknown_share)
    return dataset


def check_types(dataset: Dataset) -> None:
    """Check what the Parquet footers tell: files readable and alike, columns there, types right.

    Cheap: reads no data. Raises :class:`ContractError`.
    """
    if not dataset.has("events"):
        raise ContractError(
            f"{dataset.path}: no events/ and no events.parquet; every dataset needs its log, as Parquet"
        )
    seen: dict[str, tuple[str, File]] = {}
    for table, columns in TABLES.items():
        if not dataset.has(table):
            continue
        if len(dataset.locations(table)) > 1:
            raise ContractError(f"{dataset.path}: has both {table}/ and {table}.parquet; remove one")
        files = dataset.files(table)
        if not files:
            raise ContractError(f"{dataset.path}/{table}: no .parquet file in it; import again")
        schema = _read_schema(files[0])
        for file in files[1:]:
            _check_alike(files[0], schema, file, _read_schema(file))
        for file in files:
            _refuse_hidden(dataset.name_of(file), schema, columns)
        for column in columns.values():
            _check_column(files[0], schema, column)
        for name, kind in _id_types(schema):
            first, where = seen.setdefault(name, (kind, files[0]))
            if kind != first:
                raise ContractError(
                    f"{files[0]}, column {name}: ids are {kind} here and {first} in {where}; "
                    f"write both as {first}"
                )


def time_zone(name: str) -> tzinfo:
    """The time zone of a dataset's "day": an IANA name or a fixed offset such as ``+08:00``."""
    try:
        if name[:1] in ("+", "-"):
            hours, minutes = name[1:].split(":")
            offset = timedelta(hours=int(hours), minutes=int(minutes))
            return timezone(-offset if name[0] == "-" else offset)
        return ZoneInfo(name)
    except (ValueError, LookupError, OSError, TypeError):
        raise ContractError(
            f"dataset.json, field time_zone: {name!r} is no time zone; write UTC, an IANA name or +08:00"
        ) from None


def _read_schema(file: File) -> pa.Schema:
    try:
        return read_schema(file)
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise ContractError(f"{file}: not a whole Parquet file ({why}); copy or import it again") from None


def _check_alike(first: File, expected: pa.Schema, file: File, schema: pa.Schema) -> None:
    for name in expected.names:
        if schema.get_field_index(name) < 0:
            raise ContractError(f"{file}, column {name}: missing, but {first} has it; write all files alike")
        if schema.field(name).type != expected.field(name).type:
            raise ContractError(
                f"{file}, column {name}: {schema.field(name).type} here and {expected.field(name).type} "
                f"in {first}; write all files alike"
            )
    for name in schema.names:
        if expected.get_field_index(name) < 0:
            raise ContractError(f"{first}, column {name}: missing, but {file} has it; write all files alike")


def _refuse_hidden(file: str, schema: pa.Schema, columns: Collection[str]) -> None:
    """A column of the contract that stands in a directory's name alone, as ``market=de/``, would be lost."""
    for part in file.split("/")[:-1]:
        name = part.partition("=")[0]
        if "=" in part and name in columns and schema.get_field_index(name) < 0:
            raise ContractError(
                f"{file}, column {name}: stands in the directory's name only; write it into the files as well"
            )


def _check_column(file: File, schema: pa.Schema, column: Column) -> None:
    count = len(schema.get_all_field_indices(column.name))
    if count > 1:
        raise ContractError(f"{file}, column {column.name}: there {count} times; keep one")
    if count == 0:
        if column.required:
            close = ", ".join(schema.names[:12])
            raise ContractError(f"{file}, column {column.name}: missing (it has {close}); add it")
        return
    kind = schema.field(column.name).type
    if pa.types.is_null(kind):
        raise ContractError(f"{file}, column {column.name}: wholly null; drop the column")
    if not _fits(kind, column.type):
        wanted = {ID: "int64 or string", "list<id>": "list<int64> or list<string>"}.get(
            str(column.type), "fixed_size_list<float>" if column.type == "embedding" else str(column.type)
        )
        label = "a label must be bool with null for unknown, but it " if column.name in LABELS else ""
        raise ContractError(f"{file}, column {column.name}: {label}is {kind}; cast it to {wanted}")


def _fits(kind: pa.DataType, wanted: pa.DataType | str) -> bool:
    types = pa.types
    listed = types.is_list(kind) or types.is_large_list(kind)
    if wanted == ID:
        return is_id(kind)
    if wanted == "list<id>":
        return listed and is_id(kind.value_type)
    if wanted == "embedding":
        return bool(types.is_fixed_size_list(kind) and types.is_float32(kind.value_type))
    assert isinstance(wanted, pa.DataType)
    if types.is_list(wanted):
        return listed and _fits(kind.value_type, wanted.value_type)
    if types.is_string(wanted):
        return bool(types.is_string(kind) or types.is_large_string(kind))
    return bool(kind == wanted)


def _id_types(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    for name in (*SAME_ID, "product_ids"):
        if schema.get_field_index(name) >= 0:
            kind = schema.field(name).type
            kind = kind.value_type if name == "product_ids" else kind
            yield name.removesuffix("s"), "int64" if pa.types.is_int64(kind) else "string"
