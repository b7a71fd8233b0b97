"""The ranker from training to replay on a small simulated market: one definition of every number."""

import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import shopreel
from data.history import UserHistory, UserRequest
from data.prepared import Prepared
from data.ranking_loader import RankingLoader, build_features
from data.sequences import Sequences
from models.bundle import Bundle
from models.ranker_export import can_export
from models.value import ValueFormula
from serving import compiled
from serving.golden import check_golden
from serving.pipeline import Pipeline, RankRequest, Stage

#: One market is simulated, learnt and published for all of them.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """Dataset, prepared data, both runs, and a bundle with a ranker."""
    home = tmp_path_factory.mktemp("market")
    sizes = ["users=150", "videos=120", "products=40", "days=6", "seed=3"]
    shopreel.run_command("simulate", [f"out={home}/dataset", *sizes])
    shopreel.run_command(
        "prepare",
        [f"dataset={home}/dataset", f"out={home}/prepared", "split.validation=2026-03-06",
         "split.test=2026-03-07", "memory_limit_gb=0.5"],
    )  # fmt: skip
    for model, further in (("two_tower", []), ("ranker", ["model.max_steps=20", "model.batch_size=256"])):
        shopreel.run_command(
            "train",
            [f"model={model}", f"prepared={home}/prepared", f"out={home}/{model}", "model.max_epochs=1",
             "model.dim=16", "threads=1", *further],
        )  # fmt: skip
    shopreel.run_command(
        "publish",
        [f"two_tower={home}/two_tower", f"ranker={home}/ranker", f"dataset={home}/dataset",
         f"out={home}/bundles",
         "memory_limit_gb=0.5"],
    )  # fmt: skip
    return home


@pytest.fixture(scope="module")
def bundle(market):
    return Bundle.open(market / "bundles")


def requests_with_history(market, split):
    """Impressions of a split as requests the server would get, and the training path's own batch."""
    prepared = Prepared.open(market / "prepared")
    features = build_features(prepared, half_life_days=(3.0, 30.0), max_steps=20)
    loader = RankingLoader(prepared, features, split=split, batch_size=40, seed=0)
    sequences = Sequences.read(prepared.shards[0])
    chosen = loader.chosen(sequences)[::17][:40]
    rows = sequences.example_rows()[chosen]
    requests = []
    for row, place in zip(rows, chosen, strict=True):
        begin = sequences.step_offsets[row]
        end = begin + sequences.examples["example_history_end"][place]
        steps = {name.removeprefix("step_"): column[begin:end] for name, column in sequences.steps.items()}
        history = UserHistory(
            steps["video"],
            steps["time_ms"],
            steps["actions"],
            steps["known"],
            steps["watch_ms"],
            steps["surface"],
        )
        requests.append(
            UserRequest(
                int(sequences.user_row[row]),
                history,
                int(sequences.examples["example_time_ms"][place]),
                int(sequences.examples["example_surface"][place]),
            )
        )
    return requests, loader.batch(sequences, chosen)


@pytest.mark.parametrize("split", [1, 2])
def test_serving_computes_the_numbers_of_training(market, bundle, split):
    """No skew: features of the training loader (all counts) against those of the bundle (counts kept)."""
    requests, batch = requests_with_history(market, split)
    logged = bundle.ranker.predict(batch)
    for place, request in enumerate(requests):
        user = bundle.ranker.prepare_user(request, int(batch.requests.market[place]))
        said = bundle.ranker.score(user, batch.video_B[place : place + 1])
        statistics = bundle.ranker.features.candidates(
            user.requests, user.outcome_BSC, batch.video_B[None, place : place + 1]
        )
        np.testing.assert_allclose(statistics[0, 0], batch.candidate_statistics_BG[place], atol=1e-5)
        for task in bundle.ranker.tasks:
            assert said.probabilities[task][0] == pytest.approx(logged.probabilities[task][place], abs=1e-5)
        assert said.value[0] == pytest.approx(logged.value[place], abs=1e-4)


def test_a_score_depends_neither_on_companions_nor_on_order_nor_on_padding(market, bundle):
    requests, _ = requests_with_history(market, 2)
    request = max(requests, key=lambda r: len(r.history))
    user = bundle.ranker.prepare_user(request)
    rows = np.arange(len(bundle.catalogue))
    together = bundle.ranker.score(user, rows)
    backwards = bundle.ranker.score(user, rows[::-1])
    np.testing.assert_allclose(together.value, backwards.value[::-1], atol=1e-5)
    alone = [bundle.ranker.score(user, rows[r : r + 1]).value[0] for r in (0, 1, 17)]
    np.testing.assert_allclose(together.value[[0, 1, 17]], alone, atol=1e-5)
    assert len(bundle.ranker.score(user, rows[:0]).value) == 0
    new = UserRequest(0, UserHistory.empty(), request.time_ms, 0)
    assert np.isfinite(bundle.ranker.score(bundle.ranker.prepare_user(new), rows).value).all()


def test_probabilities_are_calibrated_probabilities_and_the_funnel_narrows(market, bundle):
    _, batch = requests_with_history(market, 2)
    said = bundle.ranker.predict(batch).probabilities
    assert all(((p >= 0) & (p <= 1)).all() for p in said.values())
    for task, parent in zip(bundle.ranker.tasks, bundle.ranker.model.shape.parents, strict=True):
        if parent >= 0:
            assert (said[task] <= said[bundle.ranker.tasks[parent]] + 1e-7).all()


def test_the_pipeline_orders_by_value_and_the_formula_can_be_changed_without_training(market, bundle):
    requests, _ = requests_with_history(market, 2)
    request = RankRequest(requests[0], 10, rules=False)
    answer = Pipeline(bundle).rank([request], stages=True)[0]
    assert (np.diff(answer.score) <= 0).all()
    assert not answer.degraded
    assert set(answer.probabilities) == set(bundle.ranker.tasks)
    assert len(answer.stages[Stage.index].video_row) == 10
    np.testing.assert_array_equal(answer.stages[Stage.ranker].video_row, answer.video_row)
    everything = Pipeline(bundle).score(requests[0], np.arange(1, len(bundle.catalogue)))
    assert answer.score[0] == pytest.approx(everything.max(), abs=1e-5)
    only_shares = ValueFormula(version="2", tasks={"share": 1.0})
    other = Pipeline(bundle, value=only_shares).rank([request])[0]
    np.testing.assert_allclose(other.score, other.probabilities["share"], atol=1e-6)


def test_a_broken_ranker_leaves_the_towers_order_and_says_so(bundle, market, monkeypatch):
    requests, _ = requests_with_history(market, 2)
    request = RankRequest(requests[0], 5, rules=False)
    expected = Pipeline(bundle).rank([request], stages=True)[0].stages[Stage.index]
    pipeline = Pipeline(bundle)
    monkeypatch.setattr(pipeline, "predict", lambda *_: 1 / 0)
    answer = pipeline.rank([request])[0]
    assert answer.degraded == ("ranker",)
    np.testing.assert_array_equal(answer.video_row, expected.video_row)


def test_a_ranker_that_would_come_too_late_is_left_out(market, bundle):
    requests, _ = requests_with_history(market, 1)
    request = requests[0]
    timed: list[str] = []

    @contextmanager
    def stage(name):
        timed.append(name)
        yield

    pipeline = Pipeline(bundle, stage=stage)
    late = RankRequest(request, k=10, rules=False, deadline=time.monotonic())
    in_time = replace(late, deadline=time.monotonic() + 60)
    (full,) = pipeline.rank([in_time])
    assert full.degraded == ()
    assert timed == ["encode", "retrieve", "ranker"]
    both = pipeline.rank([in_time, late])  # they are answered together, so that the first deadline counts
    assert [answer.degraded for answer in both] == [("ranker_time",)] * 2
    assert timed[3:] == ["encode", "retrieve"]
    by_tower = bundle.encoder.encode([request])[0]
    np.testing.assert_allclose(both[0].score, bundle.video_vectors[both[0].video_row] @ by_tower, atol=1e-4)
    assert both[0].probabilities == {}


def test_the_ranker_looks_at_as_many_as_the_request_says(market, bundle):
    requests, _ = requests_with_history(market, 2)
    pipeline = Pipeline(bundle)
    few = pipeline.rank([RankRequest(requests[0], k=5, rules=False, candidates=8)])[0]
    found = pipeline.rank([RankRequest(requests[0], k=8, rules=False)], stages=True)[0].stages[Stage.index]
    assert set(few.video_row.tolist()) <= set(found.video_row.tolist())
    many = pipeline.rank([RankRequest(requests[0], k=5, rules=False)])[0]
    assert many.score.sum() >= few.score.sum()


def test_replay_writes_what_evaluation_reads(market, bundle):
    shopreel.run_command(
        "replay",
        [f"bundle={market}/bundles/CURRENT", f"dataset={market}/dataset", f"out={market}/replay",
         "gain=any", "k=20", "baseline=none", "memory_limit_gb=0.5"],
    )  # fmt: skip
    predictions = pq.read_table(market / "replay" / "predictions.parquet")
    manifest = Prepared.open(market / "prepared").manifest
    assert predictions.num_rows == manifest["counts"]["impressions"]["test"]
    for task in bundle.ranker.tasks:
        known = manifest["counts"]["labels"][task]["test"]["known"]
        assert predictions[f"label_{task}"].null_count == predictions.num_rows - known
    assert pq.read_table(market / "replay" / "run_ranker.parquet").num_rows > 0
    _, batch = requests_with_history(market, 2)
    ids = set(bundle.catalogue.ids(batch.video_B).to_pylist())
    assert ids <= set(predictions["video_id"].to_pylist())
    shopreel.run_command(
        "evaluate", [f"predictions={market}/replay/predictions.parquet", f"out={market}/report"]
    )


@pytest.mark.skipif(not can_export(), reason="no C++ compiler to compile the ranker with")
def test_a_compiled_ranker_says_the_same_and_is_compiled_once(market, tmp_path, monkeypatch):
    eager, other = Bundle.open(market / "bundles"), Bundle.open(market / "bundles")
    assert compiled.use_compiled_ranker(other, tmp_path, threads=1)
    (_,) = tmp_path.glob("bundle-*.pt2")
    monkeypatch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compiled.use_compiled_ranker(Bundle.open(market / "bundles"), tmp_path, threads=1)
    check_golden(Pipeline(other))
    request = max(requests_with_history(market, 2)[0], key=lambda r: len(r.history))
    rows = np.arange(len(eager.catalogue))
    said, meant = (b.ranker.score(b.ranker.prepare_user(request), rows) for b in (other, eager))
    np.testing.assert_allclose(said.value, meant.value, atol=1e-4)
    assert not np.array_equal(said.value, meant.value)  # other code, other rounding


def test_a_ranker_that_cannot_be_compiled_stays_as_it_is(market, tmp_path, monkeypatch, caplog):
    bundle = Bundle.open(market / "bundles")
    monkeypatch.setattr(compiled, "can_export", lambda: True)
    monkeypatch.setattr(compiled.sys, "executable", "/bin/false")
    assert not compiled.use_compiled_ranker(bundle, tmp_path, threads=1)
    assert "the ranker is not compiled" in caplog.text
    assert not list(tmp_path.glob("*.pt2"))
    check_golden(Pipeline(bundle))
