"""Where Ibis expressions run: DuckDB inside this process, or Spark. Both give the same rows."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import ConfigError
from data.storage import File, RemoteFile, let_duckdb_read

BATCH_ROWS = 250_000


class Engine(Enum):
    """Which engine evaluates the expressions."""

    duckdb = "duckdb"
    spark = "spark"


@dataclass(frozen=True, slots=True)
class Session:
    """An open engine; made by :func:`open_engine`. ``scratch`` is emptied when it closes."""

    engine: Engine
    backend: Any
    scratch: Path

    def parquet(self, files: Sequence[File]) -> ir.Table:
        """A lazy table over Parquet files of one schema; DuckDB reads URLs through fsspec, Spark by itself.

        Raises :class:`ConfigError` where Spark has no connector for a URL.
        """
        paths = [str(file) for file in files]
        if self.engine is Engine.spark:
            frame = self._spark_frame(paths, remote=any(isinstance(file, RemoteFile) for file in files))
            name = f"shopreel_{ibis.util.guid()}"
            frame.createOrReplaceTempView(name)
            return self.backend.table(name)
        let_duckdb_read(self.backend.con, files)
        name = f"shopreel_{ibis.util.guid()}"
        listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
        # not read_parquet: ibis installs an extension of DuckDB for URLs, and fsspec reads them already
        self.backend.con.execute(
            f"create view {name} as select * from read_parquet([{listed}], hive_partitioning = false)"
        )
        return self.backend.table(name)

    def _spark_frame(self, paths: list[str], *, remote: bool) -> Any:
        if not remote:
            return self.backend._session.read.parquet(*paths)
        # Hadoop's connector for S3 goes by another name
        paths = [
            f"s3a://{path.removeprefix('s3://')}" if path.startswith("s3://") else path for path in paths
        ]
        try:
            return self.backend._session.read.parquet(*paths)
        except Exception as error:
            reason = str(error).splitlines()[0][:200]
            raise ConfigError(
                f"{paths[0]}: Spark cannot read it ({reason}); give Spark the connector of that store "
                "(spark.jars.packages), or use engine=duckdb"
            ) from None

    def lookup(self, rows: pa.Table) -> ir.Table:
        """A lazy table over rows of this process, to join with: written to ``scratch`` as Parquet."""
        file = self.scratch / f"lookup_{ibis.util.guid()}.parquet"
        pq.write_table(rows, file)
        return self.parquet([file])

    def table(self, expression: ir.Table) -> pa.Table:
        """The whole result, in memory: for small ones."""
        batches = list(self.batches(expression))
        return pa.Table.from_batches(
            batches, batches[0].schema if batches else expression.schema().to_pyarrow()
        )

    def batches(self, expression: ir.Table) -> Iterator[pa.RecordBatch]:
        """The result in its order, a batch at a time, however long it is."""
        if self.engine is Engine.duckdb:
            # not to_pyarrow_batches: ibis 12 calls a method there that DuckDB 2 has renamed
            yield from self.backend.con.sql(self.backend.compile(expression)).to_arrow_reader(BATCH_ROWS)
            return
        out = Path(tempfile.mkdtemp(dir=self.scratch)) / "rows"
        self.backend.to_parquet(expression, str(out))
        for part in sorted(out.glob("part-*.parquet")):  # a sorted result lies in the order of its parts
            with pq.ParquetFile(part) as file:
                yield from file.iter_batches(BATCH_ROWS)
        shutil.rmtree(out)


@contextmanager
def open_engine(
    engine: Engine, *, memory_limit_gb: float, temp_directory: Path | str | None = None, threads: int = 0
) -> Iterator[Session]:
    """Open an engine that spills to ``temp_directory`` (default: the system's) beyond ``memory_limit_gb``.

    ``threads`` 0 takes all cores. Spark takes memory and cores from its own configuration where it was
    started with one (``spark-submit``). Raises :class:`ConfigError` where Spark or Java is missing.
    """
    if temp_directory is not None and not Path(temp_directory).is_dir():
        raise ConfigError(f"temp_directory={temp_directory}: no such directory; make it or choose another")
    with tempfile.TemporaryDirectory(prefix="shopreel-", dir=temp_directory) as scratch:
        open_one = _duckdb if engine is Engine.duckdb else _spark
        backend = open_one(Path(scratch), memory_limit_gb, threads)
        try:
            yield Session(engine, backend, Path(scratch))
        finally:
            backend.disconnect()


def _duckdb(scratch: Path, memory_limit_gb: float, threads: int) -> Any:
    settings: dict[str, Any] = {
        "memory_limit": f"{memory_limit_gb}GB",
        "temp_directory": str(scratch / "spill"),
    }
    if threads:
        settings["threads"] = threads
    backend = ibis.duckdb.connect(**settings)
    backend.raw_sql("SET preserve_insertion_order = false")
    backend.raw_sql("SET TimeZone = 'UTC'")
    return backend


def _spark(scratch: Path, memory_limit_gb: float, threads: int) -> Any:
    try:
        from pyspark.conf import SparkConf
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError:
        raise ConfigError("engine=spark needs pyspark; pip install 'pyspark>=4.0', or use duckdb") from None
    builder = SparkSession.builder.appName("shopreel").config("spark.sql.session.timeZone", "UTC")
    if not SparkConf().contains("spark.master"):
        builder = (
            builder.master(f"local[{threads or '*'}]")
            .config("spark.driver.memory", f"{max(int(memory_limit_gb * 1024), 512)}m")
            .config("spark.local.dir", str(scratch))
            .config("spark.sql.warehouse.dir", str(scratch / "warehouse"))
            .config("spark.sql.shuffle.partitions", str(2 * threads or 8))
            .config("spark.ui.enabled", "false")
        )
    try:
        session = builder.getOrCreate()
    except PySparkRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"engine=spark did not start ({reason}); install Java 17, or use duckdb") from None
    session.sparkContext.setLogLevel("ERROR")
    return ibis.pyspark.connect(session)
