"""Parity: a reader gives the same rows, in the same order and types, on DuckDB and on Spark.

By default for two layouts that between them use what engines could differ in (typed text, gzip, quoted line
breaks, duplicates, joins, windows, hashes, arrays); for all fifteen with ``SHOPREEL_SPARK_ALL=1``.
"""

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from data.engine import Engine, Session, open_engine
from data.errors import ContractError
from data.importing import backend_of
from data.readers.draft import Draft, ReaderOptions
from data.readers.staging import Staging
from data.readers.writing import write_draft
from tests.data.upstream import UPSTREAM, kuairand, otto

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    # pyspark leaves the sockets that it collects results over to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
LAYOUTS = list(UPSTREAM) if os.environ.get("SHOPREEL_SPARK_ALL") else ["kuairand", "sequence_sets"]


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Session, Session]]:
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    with (
        open_engine(Engine.duckdb, memory_limit_gb=1) as duckdb,
        open_engine(Engine.spark, memory_limit_gb=1, threads=1) as spark,
    ):
        spark.backend._session.conf.set("spark.sql.shuffle.partitions", "2")
        yield duckdb, spark


def _import(session: Session, source: str, raw: Path, out: Path) -> Draft:
    staging = Staging(backend_of(session), out / "staged")
    options = ReaderOptions(like_from_rating=4.0, validation_share=0.1, seed=0)
    draft = importlib.import_module(f"data.readers.{source}").read(staging, raw, options)
    write_draft(draft, staging, out)
    return draft


@pytest.mark.parametrize("layout", LAYOUTS)
def test_duckdb_and_spark_give_the_same_dataset(
    layout: str, engines: tuple[Session, Session], tmp_path: Path
) -> None:
    source, write = UPSTREAM[layout]
    (tmp_path / "raw").mkdir()
    raw = write(tmp_path / "raw")
    outs = [tmp_path / session.engine.value for session in engines]
    drafts = [_import(session, source, raw, out) for session, out in zip(engines, outs, strict=True)]
    assert drafts[0].info == drafts[1].info
    assert drafts[0].report == drafts[1].report
    for table in drafts[0].tables:
        files = [out / table if table == "events" else out / f"{table}.parquet" for out in outs]
        rows, spark_rows = (ds.dataset(file, format="parquet").to_table() for file in files)
        assert [(field.name, str(field.type)) for field in rows.schema] == [
            (field.name, str(field.type).replace(" not null", "")) for field in spark_rows.schema
        ]
        assert rows.to_pylist() == spark_rows.to_pylist()


def test_spark_refuses_a_malformed_row(engines: tuple[Session, Session], tmp_path: Path) -> None:
    raw = kuairand(tmp_path)
    log = raw / "data" / "log_random_4_22_to_5_08_pure.csv"
    log.write_text(log.read_text() + "eight,99\n")
    with pytest.raises(ContractError, match=r"log_random_4_22_to_5_08_pure\.csv: malformed record .*eight"):
        _import(engines[1], "kuairand", raw, tmp_path / "out")


def test_spark_refuses_malformed_json(engines: tuple[Session, Session], tmp_path: Path) -> None:
    raw = otto(tmp_path)
    log = raw / "train.jsonl"
    log.write_text(log.read_text() + '{"session": 9, "events": [}\n')
    with pytest.raises(
        ContractError, match=r"train\.jsonl, line 4: not JSON .*; correct or remove that line"
    ):
        _import(engines[1], "otto", raw, tmp_path / "out")
