"""Prediction metrics: parity with scikit-learn, brute force, one class, unknown labels, spooling to disk."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from data.errors import ContractError
from evaluation import spool
from evaluation.arrays import Floats
from evaluation.classification import BinaryStats, binary_stats
from evaluation.money import gmv_names, gmv_sums
from evaluation.predictions import Measured, measure, open_predictions
from evaluation.watch import WatchStats, watch_stats, xauc
from tests.evaluation.worlds import write

SCORES = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1e-300, 1 - 1e-16]), st.floats(0, 1))
ROWS = st.lists(st.tuples(st.integers(0, 4), SCORES, st.booleans()), min_size=1, max_size=60)


def stats_of(user: Any, score: Any, label: Any, batch: int = 17) -> BinaryStats:
    user_N, score_N, label_N = np.asarray(user, np.uint64), np.asarray(score, float), np.asarray(label, bool)
    parts = [slice(i, i + batch) for i in range(0, len(user_N), batch)]
    return binary_stats(iter([(user_N[p], score_N[p], label_N[p]) for p in parts]), len(user_N))


@given(ROWS)
@settings(max_examples=150)
def test_agrees_with_scikit_learn(rows: list[tuple[int, float, bool]]) -> None:
    user, score, label = (np.array(column) for column in zip(*rows, strict=True))
    ours = stats_of(user, score, label).exact
    assert ours["log_loss"] == pytest.approx(
        sk.log_loss(label, score, labels=[False, True]), rel=1e-9, abs=1e-12
    )
    if label.all() or not label.any():
        assert np.isnan(ours["auc"])
        assert np.isnan(ours["ne"])
    else:
        assert ours["auc"] == pytest.approx(sk.roc_auc_score(label, score))
        base = sk.log_loss(label, np.full(len(label), label.mean()), labels=[False, True])
        assert ours["ne"] == pytest.approx(ours["log_loss"] / base)
    if label.any():
        assert ours["pr_auc"] == pytest.approx(sk.average_precision_score(label, score))
    else:
        assert np.isnan(ours["pr_auc"])
    weighted = [
        (sk.roc_auc_score(label[user == u], score[user == u]), (user == u).sum())
        for u in np.unique(user)
        if 0 < label[user == u].sum() < (user == u).sum()
    ]
    if weighted:
        values, weights = zip(*weighted, strict=True)
        assert ours["gauc"] == pytest.approx(np.average(values, weights=weights))
    else:
        assert np.isnan(ours["gauc"])


def test_calibration_error_agrees_with_scikit_learn() -> None:
    random = np.random.default_rng(2)
    score = random.random(3000) ** 2
    label = random.random(3000) < score**1.5
    rate, mean = calibration_curve(label, score, n_bins=15, strategy="quantile")
    stats = stats_of(np.arange(3000) % 50, score, label)
    assert stats.exact["ece"] == pytest.approx(np.abs(rate - mean).mean(), rel=1e-2)
    assert stats.exact["calibration"] == pytest.approx(score.sum() / label.sum())


def test_no_rows_is_nan() -> None:
    stats = stats_of([], [], [])
    assert all(np.isnan(value) for value in stats.exact.values())
    assert stats.users == 0


def test_on_disk_equals_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    rows = 30_000
    user = random.integers(0, 900, rows)
    score = random.beta(1, 20, rows)
    label = random.random(rows) < score
    predicted, watched = (
        random.gamma(2, 5000, rows),
        random.gamma(2, 5000, rows) * (random.random(rows) < 0.7),
    )
    in_memory = stats_of(user, score, label, batch=4000)
    watch_memory = watch_of(user, predicted + watched, watched, batch=4000)
    monkeypatch.setattr(spool, "MEMORY_ROWS", 3000)
    on_disk = stats_of(user, score, label, batch=4000)
    watch_disk = watch_of(user, predicted + watched, watched, batch=4000)
    assert on_disk.users == in_memory.users == 900
    for name in ("gauc", "log_loss", "ne", "calibration"):
        assert on_disk.exact[name] == pytest.approx(in_memory.exact[name], rel=1e-12)
    assert abs(on_disk.exact["auc"] - in_memory.exact["auc"]) <= on_disk.auc_error < 1e-5
    assert on_disk.exact["pr_auc"] == pytest.approx(in_memory.exact["pr_auc"], abs=1e-4)
    assert on_disk.exact["ece"] == pytest.approx(in_memory.exact["ece"], rel=0.05)
    assert watch_disk.exact["mae"] == pytest.approx(watch_memory.exact["mae"], rel=1e-12)
    assert abs(watch_disk.exact["xauc"] - watch_memory.exact["xauc"]) <= watch_disk.xauc_error


def watch_of(user: Any, predicted: Floats, watched: Floats, batch: int = 1000) -> WatchStats:
    word = np.asarray(user, np.uint64)
    parts = [slice(i, i + batch) for i in range(0, len(word), batch)]
    return watch_stats(iter([(word[p], predicted[p], watched[p]) for p in parts]), len(word))


MS = st.sampled_from([0.0, 1.0, 5.0, 1e3, 1e3 + 1e-9, 7.5, 1e12])


@given(st.lists(st.tuples(MS, MS), min_size=1, max_size=25))
@settings(max_examples=150)
def test_xauc_is_the_share_of_ordered_pairs(rows: list[tuple[float, float]]) -> None:
    won = [
        0.5 if a[0] == b[0] else float((a[0] < b[0]) == (a[1] < b[1]))
        for a, b in combinations(rows, 2)
        if a[1] != b[1]
    ]
    predicted, watched = (np.array(column) for column in zip(*rows, strict=True))
    expected = np.mean(won) if won else np.nan
    assert xauc(predicted, watched) == pytest.approx(expected, nan_ok=True)
    stats = watch_of(np.zeros(len(rows)), predicted, watched)
    assert stats.exact["mae"] == pytest.approx(sk.mean_absolute_error(watched, predicted))
    assert stats.exact["rmse"] == pytest.approx(sk.root_mean_squared_error(watched, predicted))
    assert stats.exact["bias"] == pytest.approx((predicted - watched).mean())


def test_gmv_worked_example() -> None:
    request = np.array([1, 1, 1, 2, 2], np.uint64)
    predicted = np.array([900.0, 500, 100, 50, 80])
    ordered = np.array([0.0, 700, 300, 40, 0])
    words = np.arange(5, dtype=np.uint64)
    batch = (request, request, words, predicted, ordered)
    sums, cutoffs = gmv_sums(iter([batch]), 5, [1, 2, 50], seed=0)
    assert cutoffs == [1, 2]
    values = dict(zip(gmv_names([1, 2]), sums.value(), strict=True))
    assert values["gmv@2"] == (700 + 40) / 2
    assert values["gmv_share@2"] == 740 / 1040
    assert values["gmv_bias@2"] == pytest.approx((900 + 500 + 50 + 80 - 740) / 740)
    assert values["gmv@1"] == 0
    assert np.isnan(values["gmv_bias@1"])


def table(**columns: Any) -> pa.Table:
    base = {"user_id": pa.array(["ü", "b", "b", "ü"]), "request_id": pa.array(["1", "2", "2", "1"])}
    return pa.table({**base, **columns})


def found_in(rows: pa.Table, folder: Path) -> Measured:
    return measure(open_predictions("new", write(rows, folder / "p.parquet")), [10], replicates=200, seed=0)


def test_unknown_labels_take_no_part(tmp_path: Path) -> None:
    rows = table(
        p_click=[0.9, 0.85, 0.8, None],
        label_click=pa.array([True, False, True, None]),
        p_like=[0.5, 0.5, 0.5, 0.5],
        label_like=pa.array([None] * 4, pa.bool_()),
        p_share=[0.1, 0.1, 0.1, 0.1],
        watch_ms=pa.array([10, None, 30, 50]),
        predicted_watch_ms=[20.0, 7.0, 30.0, 10.0],
    )
    data = open_predictions("new", write(rows, tmp_path / "p.parquet"))
    found = measure(data, [10], replicates=200, seed=0)
    assert found.estimates["auc/click"].value == 0.5
    assert found.estimates["auc/click"].n == 2
    assert np.isnan(found.estimates["auc/like"].value)
    assert found.estimates["mae/watch"].value == pytest.approx((10 + 0 + 40) / 3)
    assert data.warnings == ["new: p_share has no label_share and was not measured"]
    assert found.warnings == ["new: label_like is unknown in every row; nothing was measured"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"p_click": [0.1, np.nan, 0.2, 0.3]}, "p_click holds nan, must be in"),
        ({"p_click": [0.1, 1.5, 0.2, 0.3]}, "p_click holds 1.5, must be in"),
        ({"p_click": [0.1, None, 0.2, 0.3]}, "column p_click has nulls"),
        ({"p_click": ["a", "b", "c", "d"]}, "column p_click is string, must be a number"),
        ({"p_click": [0.1] * 4, "label_click": [1, 0, 1, 0]}, "column label_click is int64, must be bool"),
        ({"p_click": [0.1] * 4, "user_id": [1.5] * 4}, "column user_id is double"),
        (
            {"watch_ms": [1] * 4, "predicted_watch_ms": [1.0, np.inf, 1, 1]},
            "predicted_watch_ms has NaN or infinity",
        ),
        ({"other": [1] * 4}, "nothing to measure"),
    ],
)
def test_refusals(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    labels = {"label_click": [True, False, True, False]} if "p_click" in columns else {}
    rows = table(**{**labels, **columns})
    with pytest.raises(ContractError) as caught:
        found_in(rows, tmp_path)
    assert message in str(caught.value)


def test_mixed_currencies_are_refused(tmp_path: Path) -> None:
    rows = table(
        video_id=["a", "b", "c", "d"], predicted_order_value_minor=[1.0] * 4,
        order_value_minor=[100, 0, 0, 50], currency=["EUR", None, None, "SEK"],
    )  # fmt: skip
    with pytest.raises(ContractError, match="currency mixes EUR, SEK"):
        found_in(rows, tmp_path)


@pytest.mark.slow
def test_coverage_of_auc_and_entropy() -> None:
    from evaluation.resampling import binary_replicates, interval

    truth, covered = {}, {"auc": 0, "ne": 0, "gauc": 0}

    def world(seed: int, users: int) -> BinaryStats:
        random = np.random.default_rng([11, seed])
        user = np.repeat(np.arange(users), 1 + np.arange(users) % 7)
        logit = random.normal(-1, 0.8, users)[user] + random.normal(0, 1, len(user))
        label = random.random(len(user)) < 1 / (1 + np.exp(-logit))
        return stats_of(user, 1 / (1 + np.exp(-logit - random.normal(0, 0.5, len(user)))), label, 10**6)

    truth = world(10**6, 300_000).exact
    for seed in range(200):
        stats = world(seed, 400)
        [draws] = binary_replicates([stats], 400, seed)
        for name in covered:
            found = interval(stats.exact[name], draws[name], stats.users)
            covered[name] += found.low <= truth[name] <= found.high
    assert all(0.92 <= count / 200 <= 0.98 for count in covered.values()), covered
