"""Malformed tables: one readable line naming the file, what is wrong and the mend."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import ConfigError, ContractError
from evaluation.hits import find_hits
from evaluation.inputs import open_runs
from evaluation.truth import read_truth
from tests.evaluation.worlds import run_table, truth_table, write

LISTS = {"r1": [1, 2, 3], "r2": [3, 2, 1]}
GAINS = {"r1": {1: 1.0}, "r2": {1: 1.0, 3: 2.0}}


def replaced(table: pa.Table, name: str, values: object, kind: pa.DataType | None = None) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))


# ruff: noqa: E501
RUN_FAULTS: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "missing column": (lambda t: t.drop_columns(["rank"]), "column rank is missing"),
    "wrong type": (lambda t: replaced(t, "rank", list("123456")), "column rank is string, must be an integer"),
    "float ids": (lambda t: replaced(t, "video_id", [1.0] * 6), "column video_id is double"),
    "null": (lambda t: replaced(t, "video_id", [1, None, 3, 3, 2, 1]), "column video_id has nulls"),
    "duplicate video": (lambda t: replaced(t, "video_id", [1, 2, 1, 3, 2, 1]), "'r1' ranks a video twice"),
    "rank gap": (lambda t: replaced(t, "rank", [1, 2, 4, 1, 2, 3]), "'r1' has ranks that are not 1, 2, 3"),
    "rank from 0": (lambda t: replaced(t, "rank", [1, 2, 3, 0, 1, 2]), "'r2' has ranks that are not 1, 2, 3"),
    "rank twice": (lambda t: replaced(t, "rank", [1, 2, 3, 1, 1, 2]), "'r2' has ranks that are not 1, 2, 3"),
    "nan score": (lambda t: replaced(t, "score", [1, 0, np.nan, 1, 1, 1]), "'r1' has a score that is not a finite"),
    "other ids": (lambda t: replaced(t, "video_id", list("123321")), "video_id is string, in the truth int64"),
    "other requests": (lambda t: replaced(t, "request_id", [1, 1, 1, 2, 2, 2]), "request_id is int64, in the truth string"),
    "one request in two places": (
        lambda t: pa.concat_tables([t, t]),
        "has ranks that are not 1, 2, 3, … without gap or repeat",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", RUN_FAULTS)
def test_run_is_refused(tmp_path: Path, fault: str) -> None:
    spoil, message = RUN_FAULTS[fault]
    truth = read_truth(write(truth_table(GAINS), tmp_path / "truth.parquet"))
    path = write(spoil(run_table(LISTS)), tmp_path / "run.parquet")
    with pytest.raises(ContractError) as caught:
        find_hits("run", open_runs("run", path)[0].table, truth)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


TRUTH_FAULTS: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "missing column": (lambda t: t.drop_columns(["user_id"]), "column user_id is missing"),
    "zero gain": (lambda t: replaced(t, "gain", [1.0, 0.0, 2.0]), "'r2' has a gain that is not above 0"),
    "nan gain": (lambda t: replaced(t, "gain", [1.0, 2.0, np.nan]), "'r2' has a gain that is not above 0"),
    "duplicate": (lambda t: replaced(t, "video_id", [1, 3, 3]), "'r2' names a video twice"),
    "two users": (lambda t: replaced(t, "user_id", ["a", "b", "c"]), "'r2' has two users"),
    "empty": (lambda t: t.slice(0, 0), "no rows"),
}


@pytest.mark.parametrize("fault", TRUTH_FAULTS)
def test_truth_is_refused(tmp_path: Path, fault: str) -> None:
    spoil, message = TRUTH_FAULTS[fault]
    with pytest.raises(ContractError) as caught:
        read_truth(write(spoil(truth_table(GAINS)), tmp_path / "truth.parquet"))
    assert message in str(caught.value)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        open_runs("run", str(tmp_path / "nowhere.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no Parquet file in this folder"):
        open_runs("run", str(tmp_path / "empty"))
    whole = tmp_path / "run.parquet"
    pq.write_table(run_table(LISTS), whole)
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(ContractError, match="not a readable Parquet file"):
        open_runs("run", str(tmp_path / "cut.parquet"))


def test_stage_column_splits_a_file_in_pipeline_order(tmp_path: Path) -> None:
    table = pa.concat_tables(
        [
            run_table(LISTS, stage=pa.array(["feed"] * 6)),
            run_table(LISTS, stage=pa.array(["exact"] * 6)),
        ]
    )
    sources = open_runs("run", write(table, tmp_path / "all.parquet"))
    assert [source.name for source in sources] == ["exact", "feed"]
    truth = read_truth(write(truth_table(GAINS), tmp_path / "truth.parquet"))
    assert [find_hits("run", s.table, truth, s.where).rows for s in sources] == [6, 6]


def test_same_names_take_their_folder(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        write(run_table(LISTS), tmp_path / folder / "run.parquet")
    sources = open_runs("run", [str(tmp_path / name / "run.parquet") for name in ("old", "new")])
    assert [source.name for source in sources] == ["old/run", "new/run"]
    named = open_runs(
        "run", {"before": str(tmp_path / "old"), "after": str(tmp_path / "new" / "run.parquet")}
    )
    assert [source.name for source in named] == ["before", "after"]
