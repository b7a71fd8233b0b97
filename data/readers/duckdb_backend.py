"""Imports on DuckDB, in this process: streams, and spills to disk above its memory limit."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from data.engine import Session
from data.errors import ConfigError, ContractError
from data.readers.files import broken_json_line
from data.readers.staging import TextFormat

#: Rows of one file of a log, about 400 MB. DuckDB's own splitting does not keep the order of the rows.
PART_ROWS = 20_000_000
_TYPES = {"int64": "BIGINT", "float64": "DOUBLE", "string": "VARCHAR"}
_ENCODINGS = {"utf-8": "utf-8", "latin-1": "latin-1"}


@ibis.udf.scalar.builtin(
    name="make_timestamptz", signature=((dt.int64,), dt.Timestamp(timezone="UTC", scale=6))
)
def _make_timestamptz(micros):  # type: ignore[no-untyped-def]
    ...


class DuckDBBackend:
    """Built on an open DuckDB session; text keeps the order of its lines."""

    def __init__(self, session: Session):
        self._ibis = session.backend
        self._connection = session.backend.con
        self._connection.execute("set preserve_insertion_order = true")
        # Without the first there is nothing to ask for; without the second DuckDB prints a bar of its own.
        self._connection.execute("set enable_progress_bar = true")
        self._connection.execute("set enable_progress_bar_print = false")

    def progress(self) -> float | None:
        """How much of the running query is done, 0 … 1; None where it cannot be told."""
        share = self._connection.query_progress() / 100
        return share if share >= 0 else None

    def stage_text(
        self, file: Path, columns: Mapping[str, str], layout: TextFormat, kept: Sequence[str], directory: Path
    ) -> None:
        """See :class:`data.readers.staging.Backend`."""
        names = ", ".join(f"{_quoted(name)}: '{_TYPES[kind]}'" for name, kind in columns.items())
        quote = _quoted(layout.quote or "")
        source = (
            f"read_csv({_quoted(str(file))}, columns = {{{names}}}, auto_detect = false, nullstr = '', "
            f"header = {layout.header}, delim = {_quoted(layout.delimiter)}, quote = {quote}, "
            f"escape = {quote}, encoding = '{_ENCODINGS[layout.encoding]}')"
        )
        chosen = ", ".join('"' + name.replace('"', '""') + '"' for name in kept)
        self._copy(f"select {chosen} from {source}", directory, source=file)

    def stage_json(self, file: Path, columns: Mapping[str, str], directory: Path) -> None:
        """See :class:`data.readers.staging.Backend`."""
        names = ", ".join(f"{_quoted(name)}: {_quoted(_sql(kind))}" for name, kind in columns.items())
        source = f"read_json({_quoted(str(file))}, format = 'newline_delimited', columns = {{{names}}})"
        self._copy(f"select * from {source}", directory, source=file)

    def stage(self, rows: ir.Table, directory: Path) -> None:
        """See :class:`data.readers.staging.Backend`."""
        self._copy(self._ibis.compile(rows), directory)

    def scan(self, directory: Path) -> ir.Table:
        """See :class:`data.readers.staging.Backend`."""
        # COPY keeps the order of its source, so the row number of the staged file is that of the text.
        file = _quoted(str(directory / "part-00000.parquet"))
        source = f"read_parquet({file}, file_row_number = true)"
        return self._view(f"select * exclude (file_row_number), file_row_number as line from {source}")

    def scan_parquet(self, files: Sequence[Path]) -> ir.Table:
        """See :class:`data.readers.staging.Backend`."""
        return self._view(f"select * from read_parquet([{', '.join(_quoted(str(f)) for f in files)}])")

    def fetch(self, rows: ir.Table) -> pa.Table:
        """See :class:`data.readers.staging.Backend`."""
        return self._ibis.to_pyarrow(rows)

    def write(self, rows: ir.Table, path: Path) -> None:
        """See :class:`data.readers.staging.Backend`."""
        self._copy(self._ibis.compile(rows), path)
        if path.suffix != ".parquet":
            _split(path / "part-00000.parquet", PART_ROWS)

    def timestamp(self, micros: ir.IntegerValue) -> ir.Value:
        """See :class:`data.readers.staging.Backend`."""
        return _make_timestamptz(micros)

    def _view(self, sql: str) -> ir.Table:
        name = ibis.util.gen_name("staged")
        self._connection.execute(f"create view {name} as {sql}")
        return self._ibis.table(name)

    def _copy(self, sql: str, path: Path, source: Path | None = None) -> None:
        if path.suffix != ".parquet":
            path.mkdir(parents=True, exist_ok=True)
            path = path / "part-00000.parquet"
        try:
            target = f"{_quoted(str(path))} (format parquet, compression zstd)"
            self._connection.execute(f"copy ({sql}) to {target}")
        except duckdb.OutOfMemoryException:
            raise ConfigError("memory_limit_gb: too little for this log; give it more") from None
        except duckdb.Error as error:
            if source is None:
                raise
            raise _malformed(source, str(error)) from None


def _split(first: Path, part_rows: int) -> None:
    """Cut ``part-00000.parquet`` into files, each closed by the batch that brings it to ``part_rows``."""
    if pq.read_metadata(first).num_rows <= part_rows:
        return
    whole = first.rename(first.with_name(".whole"))
    number, writer, written = 0, None, 0
    with pq.ParquetFile(whole) as source:
        for batch in source.iter_batches(min(part_rows, 1 << 16)):
            if writer is None:
                part = first.with_name(f"part-{number:05d}.parquet")
                writer = pq.ParquetWriter(part, source.schema_arrow, compression="zstd")
            writer.write_batch(batch, row_group_size=1 << 17)
            written += batch.num_rows
            if written >= part_rows:
                writer.close()
                number, writer, written = number + 1, None, 0
    if writer is not None:
        writer.close()
    whole.unlink()


def _malformed(file: Path, message: str) -> ContractError:
    line = re.search(r"CSV Error on Line: (\d+)\s*\n(?:Original Line: (.*)\n)?([\s\S]*)", message)
    if line:
        number, original, rest = line.groups()
        reasons = [text for text in rest.splitlines() if re.match(r"Error when|Expected|Invalid|Value", text)]
        reason = reasons[0].rstrip(". ") if reasons else "malformed"
        shown = f" in {original[:80]!r}" if original else ""
        return ContractError(f"{file}, line {number}: {reason}{shown}; correct or remove that line")
    # DuckDB counts the lines of JSON from two, so its number is only where to look.
    json_line = re.search(r"in line (\d+)", message)
    if json_line and (error := broken_json_line(file, int(json_line.group(1)) - 1)):
        return error
    return ContractError(f"{file}: damaged or cut short ({' '.join(message.split())[:160]}); copy it again")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _sql(kind: str) -> str:
    from ibis.backends.sql.datatypes import DuckDBType

    return str(DuckDBType.to_string(dt.dtype(kind)))
