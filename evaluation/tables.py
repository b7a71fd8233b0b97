"""Opening the Parquet tables that evaluation reads: which columns, of which kind, refused in one line."""

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from data.errors import ConfigError, ContractError
from data.storage import File

BATCH_ROWS = 1 << 20
SHOW_PROGRESS_ROWS = 5_000_000


class Kind(Enum):
    """What a column may hold; the value is what the refusal calls it."""

    id = "an int64 or string id"
    integer = "an integer"
    number = "a number"
    time = "a timestamp"
    label = "bool"
    text = "a string"

    def fits(self, kind: pa.DataType) -> bool:
        """Whether an Arrow type is of this kind (dictionaries count as their values)."""
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text = bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
        match self:
            case Kind.id:
                return bool(pa.types.is_int64(kind)) or text
            case Kind.integer:
                return bool(pa.types.is_integer(kind))
            case Kind.number:
                return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
            case Kind.time:
                return bool(pa.types.is_timestamp(kind))
            case Kind.label:
                return bool(pa.types.is_boolean(kind))
            case Kind.text:
                return text


RUN = {"request_id": Kind.id, "video_id": Kind.id, "rank": Kind.integer, "score": Kind.number}
TRUTH = {"request_id": Kind.id, "user_id": Kind.id, "video_id": Kind.id, "gain": Kind.number}


def open_table(key: str, path: str | Path, required: Mapping[str, Kind]) -> ds.Dataset:
    """A lazy Arrow dataset over a Parquet file or a folder of them, its columns checked.

    ``key`` is the command's argument and stands in every message. Raises :class:`ConfigError` for a
    path that is not there and :class:`ContractError` for a broken file, a missing or mistyped column.
    """
    place = Path(path)
    if not place.exists():
        raise ConfigError(f"{key}={path}: no such file; give a Parquet file or a folder of them")
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    if not files:
        raise ConfigError(f"{key}={path}: no Parquet file in this folder")
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ContractError(
                f"{key}={file}: not a readable Parquet file ({reason}); write it again"
            ) from None
        check_columns(key, file, schema, required)
    return ds.dataset([str(file) for file in files], format=_format(files[0]))


def check_columns(key: str, file: File, schema: pa.Schema, required: Mapping[str, Kind]) -> None:
    """Refuse a missing column or one of another kind, naming file, column and mend."""
    for name, kind in required.items():
        index = schema.get_field_index(name)
        if index < 0:
            have = ", ".join(schema.names[:12])
            raise ContractError(f"{key}={file}: column {name} is missing ({kind.value}); it has {have}")
        found = schema.field(index).type
        if not kind.fits(found):
            raise ContractError(f"{key}={file}: column {name} is {found}, must be {kind.value}; cast it")


def batches(
    key: str, table: ds.Dataset, columns: Sequence[str], where: ds.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """Stream ``columns`` in file order, about a million rows at a time, dictionaries decoded late."""
    try:
        for batch in table.to_batches(
            columns=list(columns),
            filter=where,
            batch_size=BATCH_ROWS,
            batch_readahead=2,
            fragment_readahead=1,
        ):
            if batch.num_rows:
                yield batch
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ContractError(f"{key}={table.files[0]}: cannot be read ({reason}); write it again") from None


def _silent(done: int) -> None:
    """No progress to show."""


def refuse_nulls(
    key: str, table: ds.Dataset, batch: pa.RecordBatch | pa.Table, columns: Sequence[str]
) -> None:
    """Raise for the first of ``columns`` with a null in ``batch``."""
    for name in columns:
        if batch.column(name).null_count:
            raise ContractError(f"{key}={table.files[0]}: column {name} has nulls; fill or drop those rows")


def plain_ids(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """An id column as one int64 or string array, whatever encoding it was stored in."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column if pa.types.is_int64(column.type) else column.cast(pa.large_string())


def _format(file: Path) -> ds.ParquetFileFormat:
    schema = pq.read_schema(file)
    text = [
        name
        for name in ("request_id", "video_id", "stage")
        if name in schema.names and pa.types.is_string(schema.field(name).type)
    ]
    return ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(dictionary_columns=text))
