"""Imports on Spark: in this machine's local mode, or on the cluster that the session belongs to."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import pyarrow as pa

from data.engine import Session
from data.errors import ContractError
from data.readers.files import broken_json_line
from data.readers.staging import TextFormat

_TYPES = {"int64": "bigint", "float64": "double", "string": "string"}
_ENCODINGS = {"utf-8": "UTF-8", "latin-1": "ISO-8859-1"}


@ibis.udf.scalar.builtin(
    name="timestamp_micros", signature=((dt.int64,), dt.Timestamp(timezone="UTC", scale=6))
)
def _timestamp_micros(micros):  # type: ignore[no-untyped-def]
    ...


class SparkBackend:
    """Built on an open Spark session, local or a cluster's."""

    def __init__(self, session: Session):
        self._ibis = session.backend
        self._session = session.backend._session
        self._session.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")

    def progress(self) -> float | None:
        """Spark shows its own progress: None."""
        return None

    def stage_text(
        self, file: Path, columns: Mapping[str, str], layout: TextFormat, kept: Sequence[str], directory: Path
    ) -> None:
        """See :class:`data.readers.staging.Backend`."""
        quote = layout.quote or ""
        reader = (
            self._session.read.schema(", ".join(f"`{name}` {_TYPES[kind]}" for name, kind in columns.items()))
            .option("header", layout.header)
            .option("sep", layout.delimiter)
            .option("quote", quote)
            .option("escape", quote)
            .option("encoding", _ENCODINGS[layout.encoding])
            .option("nullValue", "")
            .option("mode", "FAILFAST")
            .option("enforceSchema", True)
            .option("multiLine", layout.multiline)
        )
        frame = reader.csv(str(file)).select(*(f"`{name}`" for name in kept))
        self._stage_numbered(frame, file, directory)

    def stage_json(self, file: Path, columns: Mapping[str, str], directory: Path) -> None:
        """See :class:`data.readers.staging.Backend`."""
        schema = ", ".join(f"`{name}` {_sql(kind)}" for name, kind in columns.items())
        reader = self._session.read.schema(schema).option("mode", "FAILFAST")
        self._stage_numbered(reader.json(str(file)), file, directory)

    def stage(self, rows: ir.Table, directory: Path) -> None:
        """See :class:`data.readers.staging.Backend`."""
        self._frame(rows).write.parquet(str(directory))

    def scan(self, directory: Path) -> ir.Table:
        """See :class:`data.readers.staging.Backend`."""
        return self.scan_parquet([directory])

    def scan_parquet(self, files: Sequence[Path]) -> ir.Table:
        """See :class:`data.readers.staging.Backend`."""
        name = ibis.util.gen_name("staged")
        self._session.read.parquet(*map(str, files)).createOrReplaceTempView(name)
        return self._ibis.table(name)

    def fetch(self, rows: ir.Table) -> pa.Table:
        """See :class:`data.readers.staging.Backend`."""
        return self._frame(rows).toArrow()

    def write(self, rows: ir.Table, path: Path) -> None:
        """See :class:`data.readers.staging.Backend`."""
        single = path.suffix == ".parquet"
        directory = path.with_name(f".{path.name}.parts") if single else path
        frame = self._frame(rows)
        writer = (frame.coalesce(1) if single else frame).write.option("compression", "zstd")
        writer.parquet(str(directory))
        parts = sorted(directory.glob("part-*.parquet"))
        if single:
            parts[0].rename(path)
            shutil.rmtree(directory)
            return
        for number, part in enumerate(parts):
            part.rename(directory / f"part-{number:05d}.parquet")
        for leftover in (*directory.glob(".*.crc"), directory / "_SUCCESS"):
            leftover.unlink(missing_ok=True)

    def timestamp(self, micros: ir.IntegerValue) -> ir.Value:
        """See :class:`data.readers.staging.Backend`."""
        return _timestamp_micros(micros)

    def _frame(self, rows: ir.Table) -> Any:
        return self._session.sql(self._ibis.compile(rows))

    def _stage_numbered(self, frame: Any, file: Path, directory: Path) -> None:
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException
        from pyspark.sql.functions import monotonically_increasing_id

        try:
            frame.withColumn("line", monotonically_increasing_id()).write.parquet(str(directory))
        except (PySparkException, Py4JJavaError) as error:
            raise _malformed(file, " ".join(str(error).split())) from None


def _malformed(file: Path, message: str) -> ContractError:
    if record := re.search(r"Malformed CSV record: (.*?) SQLSTATE", message):
        mend = "correct or remove it (engine=duckdb names its line)"
        return ContractError(f"{file}: malformed record {record.group(1)[:120]}; {mend}")
    if "record parsing" in message and (error := broken_json_line(file)):
        return error
    return ContractError(f"{file}: damaged or cut short ({message[:160]}); copy it again")


def _sql(kind: str) -> str:
    from ibis.backends.sql.datatypes import PySparkType

    return str(PySparkType.to_string(dt.dtype(kind)))
