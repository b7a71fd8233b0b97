"""Planted faults are named in the right stage and slice, and the waterfall adds up."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from evaluation.hits import find_hits
from evaluation.inputs import open_runs
from evaluation.ranking import score_requests
from evaluation.truth import read_truth
from evaluation.waterfall import best_order, video_waterfall, waterfall
from shopreel import main
from tests.evaluation.market import Pipeline


def report_of(folder: Path, *overrides: str) -> dict[str, Any]:
    out = folder / "out"
    words = ["evaluate", f"run={folder}", f"out={out}", "replicates=300", *overrides]
    assert main(words) == 0
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def blamed(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(finding["stage"], finding["slice"]) for finding in report["findings"]}


def test_a_healthy_pipeline_is_not_blamed(tmp_path: Path) -> None:
    assert blamed(report_of(Pipeline().write(tmp_path))) == set()


def test_index_with_recall_of_nine_tenths(tmp_path: Path) -> None:
    report = report_of(Pipeline(index_recall=0.9).write(tmp_path))
    assert blamed(report) == {("index", "")}
    assert re.search("keeps (89|90|91)% of", report["findings"][0]["text"])


def test_ranker_bad_for_one_market(tmp_path: Path) -> None:
    report = report_of(Pipeline(bad_market="BR").write(tmp_path))
    assert blamed(report) == {("ranker", "market = BR")}
    [worst] = [v for v in report["slices"]["feed"]["market"].items() if v[1]["p"] < 0.05 and v[1]["gap"] < 0]
    assert worst[0] == "BR"


def test_feed_rule_that_drops_the_best_video(tmp_path: Path) -> None:
    report = report_of(Pipeline(drop_first=0.9).write(tmp_path))
    assert ("feed", "") in blamed(report)
    assert {stage for stage, _ in blamed(report)} == {"feed"}
    told = report["findings"][0]["text"]
    assert re.search(r"keeps (8|9|10|11|12)% of [\d,]+ right videos that the ranker put first", told)


def test_campaigns_that_displace_right_videos(tmp_path: Path) -> None:
    report = report_of(Pipeline(campaign=True).write(tmp_path))
    assert blamed(report) == {("campaign", "")}
    assert report["stages"]["steps"]["feed"]["value"] == pytest.approx(0, abs=1e-12)


def test_all_faults_at_once(tmp_path: Path) -> None:
    report = report_of(Pipeline(index_recall=0.9, bad_market="JP", drop_first=0.9).write(tmp_path))
    assert {("index", ""), ("ranker", "market = JP"), ("feed", "")} <= blamed(report)


def test_new_model_worse_in_one_market_is_named_by_the_comparison(tmp_path: Path) -> None:
    old = Pipeline(seed=1, ranker_noise=2.5).write(tmp_path / "old")
    new = Pipeline(seed=1, ranker_noise=0.2, bad_market="DE").write(tmp_path / "new")
    report = report_of(new, f"baseline={old / 'run_ranker.parquet'}")
    assert "ranker is better than baseline/ranker" in report["comparisons"][0]["verdict"]
    assert ("ranker", "market = DE") in blamed(report)
    [text] = [f["text"] for f in report["findings"] if f["text"].startswith("ranker is worse than")]
    assert "market = DE" in text


def test_steps_add_up_for_every_request_and_slice(tmp_path: Path) -> None:
    folder = Pipeline(users=150, index_recall=0.8, drop_first=0.5, campaign=True).write(tmp_path)
    truth = read_truth(folder / "truth.parquet")
    stages = {s.name: find_hits("run", s.table, truth) for s in open_runs("run", str(folder))}
    feed = open_runs("run", str(folder / "run_feed.parquet"))[0].table
    stages["feed_without_campaigns"] = find_hits(
        "run", feed, truth, ds.field("source") != "campaign", renumber=True
    )
    for metric in ("ndcg@20", "recall@10", "map@10", "mrr@5"):
        fall = waterfall(stages, truth, metric)
        assert fall is not None
        assert fall.steps == ["tower", "index", "filter", "ranker", "feed", "campaign"]
        shown_R = score_requests(stages["feed"], truth, [metric])[:, 0]
        assert fall.final_R == pytest.approx(shown_R)
        assert 1 + fall.step_RP.sum(axis=1) == pytest.approx(shown_R)
    videos = video_waterfall(stages, truth, 10)
    assert 1 + videos.step_RP.sum() / len(videos.final_R) == pytest.approx(videos.final_R.mean())


def test_best_order_is_an_upper_bound(tmp_path: Path) -> None:
    folder = Pipeline(users=100).write(tmp_path)
    truth = read_truth(folder / "truth.parquet")
    [source] = open_runs("run", str(folder / "run_exact.parquet"))
    hits = find_hits("run", source.table, truth)
    names = ["ndcg@20", "recall@20", "mrr@20", "map@20"]
    best = score_requests(best_order(hits, truth), truth, names)
    assert (best >= score_requests(hits, truth, names) - 1e-12).all()
    assert best[:, 1] == pytest.approx(np.bincount(hits.request_H, minlength=100) / 4)
