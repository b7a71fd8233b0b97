"""Import and prepare the real KuaiRand-Pure log: counts that others have measured on it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import shopreel
from data.contract import open_dataset
from data.held_out import HeldOutRules, truth_of_split
from data.records import Rows
from data.schema import LABEL_BIT
from tests.data.logs import prepare

pytestmark = [pytest.mark.realdata, pytest.mark.slow]


def test_the_fifth_of_may(real_data: Path, tmp_path: Path):
    raw = real_data / "kuairand-pure" / "data"
    if not raw.is_dir():
        pytest.skip(f"no KuaiRand-Pure at {raw}")
    dataset = tmp_path / "dataset"
    shopreel.run_command("import", ["source=kuairand", f"raw={raw}", f"out={dataset}"])
    days = ("split.validation=2022-05-04", "split.test=2022-05-05", "split.end=2022-05-06")
    prepared = prepare(dataset, tmp_path / "prepared", *days)
    counts = prepared.manifest["counts"]
    assert len(prepared.catalogue) == 7583 + 1
    assert counts["impressions"]["test"] == 13_103
    assert counts["labels"]["click"]["train"]["known"] == 150_055  # the older log says nothing of clicks
    long_view = counts["labels"]["long_view"]["test"]
    assert (long_view["truth_users"], long_view["truth_videos"]) == (3108, 3962)

    rows = Rows(prepared.users, prepared.catalogue, prepared.surfaces, prepared.markets)
    truth = truth_of_split(
        open_dataset(dataset), "test", gain="long_view", rules=HeldOutRules.of(prepared.manifest), rows=rows
    )
    assert truth.num_rows == 3962
    assert len(truth["request_id"].unique()) == 3108

    steps = examples = 0
    for shard in prepared.shards:
        table = pq.read_table(shard)
        time = table["step_time_ms"].combine_chunks()
        begin = time.offsets.to_numpy()
        increasing = np.diff(time.values.to_numpy()) >= 0
        increasing[begin[1:-1] - 1] = True
        assert increasing.all()
        known = table["example_known"].combine_chunks().values.to_numpy()
        true = table["example_true"].combine_chunks().values.to_numpy()
        assert not (true & ~known).any()  # no actions table: nothing comes true in an open window
        assert set(np.unique(known & LABEL_BIT["purchase"])) == {0}
        steps += len(time.values)
        examples += len(known)
    assert examples == sum(counts["impressions"].values())
    assert steps >= examples
