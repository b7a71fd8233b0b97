"""Spark and DuckDB evaluate the same expressions: identical rows, vocabularies and manifests."""

import shutil
from pathlib import Path

import pytest

from data.errors import ConfigError
from tests.data.logs import crowded_log, prepare, sequences, write_dataset

HOUR = 3_600_000


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["by time", "given"])
def test_spark_gives_the_rows_of_duckdb(tmp_path: Path, mode: str):
    pytest.importorskip("pyspark", reason="engine=spark needs pyspark")
    if shutil.which("java") is None:
        pytest.skip("engine=spark needs Java on the path")
    events, actions = crowded_log(5, users=60, span_ms=72, unit_ms=HOUR)
    if mode == "given":
        for place, event in enumerate(events):
            event["split"] = ("train", "validation", "test")[place % 3]
    for event in events:
        event.update(user_id=f"u{event['user_id']}", market=("de", "us", None)[event["position"] or 0])
    for action in actions:
        action["user_id"] = f"u{action['user_id']}"
    dataset = write_dataset(tmp_path / "d", events, actions=actions, files=3)
    end = "split.end=2026-01-04"
    one = prepare(dataset, tmp_path / "duckdb", end)
    other = prepare(dataset, tmp_path / "spark", end, "engine=spark", "threads=1", "memory_limit_gb=1")
    assert sequences(other) == sequences(one)
    assert other.manifest == one.manifest
    assert other.hash == one.hash


def test_a_missing_directory_to_spill_to_is_named(tmp_path: Path):
    dataset = write_dataset(tmp_path / "d", crowded_log(1, users=3)[0])
    with pytest.raises(ConfigError, match="temp_directory=/nowhere"):
        prepare(dataset, tmp_path / "p", "temp_directory=/nowhere")
