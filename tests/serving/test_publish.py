"""Publishing: what passes the gates goes live whole; what does not leaves nothing behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import shopreel
from data.dataset import Dataset, read_info
from data.engine import Engine, open_engine
from data.split import Split, SplitMode
from data.vocabulary import Vocabulary
from models.bundle import EVERYWHERE, Bundle
from serving.collapse import collapse_report, gini
from serving.golden import check_golden
from serving.held_out import user_requests
from serving.pipeline import Pipeline, RankRequest
from serving.popularity import count_positives, most_popular
from tests.serving.conftest import Published


@pytest.fixture
def run(published: Published, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(published.run, tmp_path / "run"))


def publish(published: Published, out: Path, *further: str, run: Path | None = None) -> int:
    words = [
        f"two_tower={run or published.run}",
        f"dataset={published.market}",
        f"out={out}",
        "sample_users=60",
    ]
    return shopreel.main(["publish", *words, "min_distinct_share=0.001", *further])


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line of a refusal, on stderr after the notes on progress."""
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("shopreel publish: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def reweigh(run: Path, change) -> None:
    """Replace every weight by ``change(name, weight)``."""
    file = run / "model" / "model.safetensors"
    save_file(
        {name: np.asarray(change(name, weight), weight.dtype) for name, weight in load_file(file).items()},
        file,
    )


def test_the_same_content_has_the_same_name_and_other_content_another(
    published: Published, tmp_path: Path, capsys
):
    out = tmp_path / "bundles"
    assert publish(published, out) == 0
    printed = capsys.readouterr().out
    first = (out / "CURRENT").read_text().strip()
    assert first in printed
    assert f"next: shopreel replay bundle={out}/CURRENT" in printed.replace("\n", "")
    assert publish(published, out, "activate=false", "recall_target=0.9") == 0
    assert "not live" in capsys.readouterr().out
    assert (out / "CURRENT").read_text().strip() == first
    assert publish(published, out) == 0
    assert len([path for path in out.iterdir() if path.name.startswith("bundle-")]) == 2
    assert (out / "CURRENT").read_text().strip() == first
    assert {path.name[:7] for path in out.iterdir()} == {"CURRENT", "bundle-"}


@pytest.mark.parametrize(
    ("kind", "further"),
    [("ivf", "index.ivf_lists=16"), ("hnsw", "index.hnsw_links=4"), ("scan", "index.seed=1")],
)
def test_an_approximate_index_is_published_with_its_recall(
    published: Published, tmp_path: Path, kind: str, further: str
):
    target = "recall_target=0.8"  # of 300 videos a graph may look at few before brute force is cheaper
    assert publish(published, tmp_path, f"index.kind={kind}", further, "k=10", target) == 0
    bundle = Bundle.open(tmp_path)
    measured = bundle.manifest.measured["index"]
    assert bundle.manifest.index["parameters"]["kind"] == kind
    assert 0.8 <= measured["recall"] <= 1.0
    assert measured["tuned"]["width"] > 0
    assert (bundle.path / "index.faiss").is_file()
    pipeline = Pipeline(bundle)
    assert check_golden(pipeline) == 16
    dataset = Dataset(published.market, read_info(published.market))
    (batch,) = user_requests(bundle, dataset, "test", gain=None, k=10, rules=False, memory_limit_gb=1.0)
    exact = Pipeline(Bundle.open(published.bundles)).rank(batch.requests)
    overlap = 0
    for mine, truth in zip(pipeline.rank(batch.requests), exact, strict=True):
        scores = dict(zip(truth.video_row.tolist(), truth.score.tolist(), strict=True))
        shared = [row for row in mine.video_row.tolist() if row in scores]
        overlap += len(shared)
        found = dict(zip(mine.video_row.tolist(), mine.score.tolist(), strict=True))
        np.testing.assert_allclose([found[row] for row in shared], [scores[row] for row in shared], atol=1e-5)
    assert overlap >= 0.75 * 10 * len(exact)


def spoil_collapsed(run: Path) -> list[str]:
    # only the bias of the last layer speaks: one vector for every user
    reweigh(run, lambda name, weight: weight * (name in ("user_out.bias",) or name.startswith("video_tower")))
    return ["min_distinct_share=0.5"]


def spoil_nan(run: Path) -> list[str]:
    reweigh(
        run, lambda name, weight: weight * np.float32("nan") if name.startswith("video_tower") else weight
    )
    return []


def spoil_user_nan(run: Path) -> list[str]:
    reweigh(run, lambda name, weight: weight * np.float32("nan") if name.startswith("user_out") else weight)
    return []


def spoil_unfinished(run: Path) -> list[str]:
    shutil.rmtree(run / "model")
    return []


def spoil_kind(run: Path) -> list[str]:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"kind": "ease"}))
    return []


def spoil_prepared(run: Path) -> list[str]:
    record = json.loads((run / "run.json").read_text())
    record["prepared"]["hash"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    return []


def spoil_version(run: Path) -> list[str]:
    model = json.loads((run / "model" / "model.json").read_text())
    (run / "model" / "model.json").write_text(json.dumps(model | {"format_version": 0}))
    return []


def spoil_nothing(run: Path) -> list[str]:
    return ["index.kind=hnsw", "index.hnsw_links=2", "index.hnsw_build_width=1", "recall_target=1.0", "k=50"]


def spoil_everything(run: Path) -> list[str]:
    shutil.rmtree(run)
    return []


REFUSALS = {
    "collapsed": (spoil_collapsed, "collapsed: "),
    "video vectors": (spoil_nan, "video vectors are NaN or infinite; train again"),
    "user vectors": (spoil_user_nan, "user vectors are NaN or infinite; train again"),
    "unfinished": (spoil_unfinished, "no model yet"),
    "another kind": (spoil_kind, "a run of kind 'ease', not two_tower"),
    "other prepared data": (spoil_prepared, "not the data that run.json was trained on"),
    "another version": (spoil_version, "format 0"),
    "recall": (spoil_nothing, "below recall_target=1.0; use index.kind=exact"),
    "no run": (spoil_everything, "no run.json there"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_misses_a_gate_is_refused_and_leaves_nothing(
    published: Published, run: Path, tmp_path: Path, capsys, case
):
    spoil, message = REFUSALS[case]
    further = spoil(run)
    fresh = tmp_path / "fresh"
    assert message in refusal(capsys, publish(published, fresh, *further, run=run))
    assert not fresh.exists()
    standing = Path(shutil.copytree(published.bundles, tmp_path / "standing"))
    before = sorted(path.relative_to(standing) for path in standing.rglob("*"))
    assert publish(published, standing, *further, run=run) == 2
    assert sorted(path.relative_to(standing) for path in standing.rglob("*")) == before
    assert (standing / "CURRENT").read_text().strip() == published.live


def test_a_place_that_is_no_folder_of_bundles_is_refused(published: Published, tmp_path: Path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds notes.txt and no bundle" in refusal(capsys, publish(published, tmp_path))
    assert "is a file" in refusal(capsys, publish(published, tmp_path / "notes.txt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


@pytest.mark.parametrize(
    "word", ["recall_target=0", "recall_target=1.5", "k=0", "index.kind=lsh", "min_distinct_share=2"]
)
def test_overrides_that_make_no_sense(published: Published, tmp_path: Path, capsys, word: str):
    assert word.partition("=")[0] in refusal(capsys, publish(published, tmp_path / "out", word))


def test_a_newer_dataset_needs_leave_and_then_its_new_videos_are_found(
    published: Published, tmp_path: Path, capsys
):
    newer = Path(shutil.copytree(published.market, tmp_path / "newer"))
    videos = pq.read_table(newer / "videos.parquet")
    template = videos.slice(0, 1).to_pylist()[0]
    fresh = max(videos["video_id"].to_pylist()) + 1000
    added = pa.Table.from_pylist([template | {"video_id": fresh}], schema=videos.schema)
    pq.write_table(pa.concat_tables([videos, added]), newer / "videos.parquet")
    words = [f"dataset={newer}"]
    out = tmp_path / "bundles"
    assert "allow_other_dataset=true" in refusal(capsys, publish(published, out, *words))
    assert publish(published, out, *words, "allow_other_dataset=true") == 0
    old, new = Bundle.open(published.bundles), Bundle.open(out)
    assert len(new.catalogue) == len(old.catalogue) + 1
    row = int(new.catalogue.rows([fresh])[0])
    assert row > 0
    assert new.video_train_count[row] == 0
    shared = old.catalogue.known
    learnt = old.encoder.model.shape.dim  # the trend beside it knows more of the log
    np.testing.assert_allclose(
        new.video_vectors[new.catalogue.rows(shared), :learnt],
        old.video_vectors[old.catalogue.rows(shared), :learnt],
        atol=1e-6,
    )
    np.testing.assert_array_equal(
        new.video_train_count[new.catalogue.rows(shared)], old.video_train_count[1:]
    )
    log = Dataset(newer, read_info(newer))
    (batch,) = user_requests(new, log, "test", gain=None, k=1, rules=False, memory_limit_gb=1.0)
    user = batch.requests[0].user
    (answer,) = Pipeline(new).rank([RankRequest(user, len(new.catalogue), rules=False)])
    assert row in answer.video_row


def test_popularity_counts_what_was_liked_before_the_test_split(published: Published):
    bundle = Bundle.open(published.bundles)
    events = pq.read_table(published.market / "events").to_pylist()
    actions = Dataset(published.market, read_info(published.market)).read("actions").to_pylist()
    end = bundle.manifest.split["test_ms"]
    tasks = [task for task in bundle.manifest.dataset["tasks"] if task != "hide"]
    counts = np.zeros(len(bundle.catalogue), np.int64)
    rows = {video: row + 1 for row, video in enumerate(bundle.catalogue.known.to_pylist())}
    for event in events:
        time_ms = event["event_time"].timestamp() * 1000
        if end - 7 * 86_400_000 <= time_ms < end and any(event.get(task) for task in tasks):
            counts[rows[event["video_id"]]] += 1
    for action in actions:
        time_ms = action["action_time"].timestamp() * 1000
        if end - 7 * 86_400_000 <= time_ms < end and action["action"] in tasks:
            counts[rows[action["video_id"]]] += 1
    top = bundle.popularity[EVERYWHERE]
    assert dict(zip(top.video_row.tolist(), top.count.tolist(), strict=True)) == {
        row: int(count) for row, count in enumerate(counts) if count
    }


def test_popularity_of_a_given_split_without_order_takes_all_of_the_earlier_splits(tmp_path: Path):
    moment = pa.array([0] * 5, pa.timestamp("us", "UTC"))
    events = {
        "user_id": [1, 2, 3, 1, 2], "video_id": [7, 7, 8, 8, 9], "event_time": moment,
        "click": [True, True, None, True, True], "split": ["train", "train", "train", "validation", "test"],
    }  # fmt: skip
    pq.write_table(pa.table(events), tmp_path / "events.parquet")
    info = {"schema_version": 1, "name": "sets", "source": "", "licence": "", "ordered": False}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    dataset, catalogue = Dataset(tmp_path, read_info(tmp_path)), Vocabulary.build([7, 8, 9])
    with open_engine(Engine.duckdb, memory_limit_gb=1.0) as session:
        for rank, labels, expected in [
            (1, ["click"], [2, 0, 0]), (2, ["click"], [2, 1, 0]), (3, ["click"], [2, 1, 1]),
            (1, ["like"], [0, 0, 0]), (1, [], [2, 1, 0]),
        ]:  # fmt: skip
            counted = count_positives(
                session,
                dataset,
                catalogue,
                split=Split(mode=SplitMode.given),
                rank=rank,
                labels=labels,
                days=[1, 0],
            )
            assert counted[1][EVERYWHERE].tolist() == counted[0][EVERYWHERE].tolist() == [0, *expected]


@given(st.lists(st.integers(0, 5), max_size=12))
def test_most_popular_is_sorted_and_has_no_zeros(counts):
    top = most_popular(np.array([0, *counts], np.int64))
    expected = sorted(
        (row for row, count in enumerate(counts, 1) if count), key=lambda row: (-counts[row - 1], row)
    )
    assert top.video_row.tolist() == expected


def test_gini_at_its_ends_and_between():
    assert gini(np.array([3, 3, 3, 3])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
    assert gini(np.array([0, 0])) == 0.0


def test_collapse_report_tells_one_list_for_all_from_a_list_for_each():
    vectors = np.eye(41, dtype=np.float32)
    users = np.eye(41, dtype=np.float32)[1:21]
    each = [np.arange(1 + 2 * user, 3 + 2 * user) for user in range(20)]
    same = [np.array([1, 2])] * 20
    good, bad = (collapse_report(lists, 2, vectors, users) for lists in (each, same))
    assert (good.distinct_videos, good.distinct_share, good.overlap, good.exposure_gini) == (
        40,
        1.0,
        0.0,
        0.0,
    )
    assert (bad.distinct_videos, bad.distinct_share, bad.overlap) == (2, 0.05, 1.0)
    assert bad.exposure_gini == pytest.approx(0.95)
    assert good.score_spread > 0.1
    silent = collapse_report(same, 2, np.ones((41, 3), np.float32), np.ones((20, 3), np.float32))
    assert silent.score_spread == silent.user_spread == 0.0
