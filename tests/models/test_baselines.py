"""The counting models against definitions written out by hand."""

import numpy as np
import pytest

from data.errors import ContractError
from data.history import UserHistory
from data.schema import LABEL_BIT
from data.targets import TargetWeights
from models.baselines import Baseline, Engagement, fit_ease, fit_ials, fit_item_knn, fit_popularity


def users(*rows: list[int]) -> list[Engagement]:
    return [Engagement(np.array(r, np.int64), np.ones(len(r))) for r in rows]


LOG = users([1, 2], [1, 2, 3], [3, 4], [1], [])


def test_popularity_counts_and_is_the_same_for_all():
    model = fit_popularity(LOG, 6)
    scores = model.scores(users([1], []))
    assert scores[0, 1:].tolist() == [3, 2, 2, 1, 0]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.isneginf(scores[:, 0]).all()


def test_item_knn_is_shrunk_cosine():
    scores = fit_item_knn(LOG, 6, neighbours=5, shrink=2.0, recency=1.0).scores(users([1]))[0]
    assert scores[2] == pytest.approx(2 / (np.sqrt(3 * 2) + 2.0))
    assert scores[3] == pytest.approx(1 / (np.sqrt(3 * 2) + 2.0))
    assert scores[1] == scores[4] == scores[5] == 0
    only_best = fit_item_knn(LOG, 6, neighbours=1, shrink=2.0, recency=1.0).scores(users([1]))[0]
    assert only_best[2] == scores[2]
    assert only_best[3] == 0


def test_recency_damps_older_engagements():
    model = fit_item_knn(LOG, 6, neighbours=5, shrink=0.0, recency=0.5)
    newest, older = model.scores(users([4, 1]))[0], model.scores(users([1, 4]))[0]
    assert newest[2] == pytest.approx(2 * older[2])


def test_ease_solves_its_constrained_least_squares():
    """With a zero diagonal, no perturbation of the weights lowers the ridge objective."""
    g = np.random.default_rng(0)
    matrix = (g.random((40, 6)) < 0.4).astype(float)
    log = users(*[list(np.flatnonzero(row) + 1) for row in matrix])
    weights = np.stack([fit_ease(log, 7, ridge=3.0).scores(users([v]))[0, 1:] for v in range(1, 7)]).astype(
        float
    )
    assert np.allclose(np.diag(weights), 0)

    def objective(b: np.ndarray) -> float:
        return float(((matrix - matrix @ b) ** 2).sum() + 3.0 * (b**2).sum())

    for _ in range(20):
        nudge = g.normal(size=weights.shape) * 1e-3
        np.fill_diagonal(nudge, 0.0)
        assert objective(weights + nudge) > objective(weights) - 1e-6


def test_ials_separates_two_tastes_and_folds_new_users_in():
    g = np.random.default_rng(1)
    log = [
        Engagement(rows, np.ones(len(rows)))
        for u in range(60)
        for rows in [g.choice(np.arange(1, 11) + 10 * (u % 2), 5, replace=False)]
    ]
    model = fit_ials(log, 21, rank=4, ridge=0.1, confidence=10.0, iterations=10, seed=0)
    scores = model.scores(users([2, 3], [14, 15], []))
    assert scores[0, 1:11].mean() > scores[0, 11:].mean() + 0.3
    assert scores[1, 11:].mean() > scores[1, 1:11].mean() + 0.3
    assert (scores[2, 1:] == 0).all()


def test_round_trip_keeps_scores_and_weights_and_refuses_strangers(tmp_path):
    model = fit_item_knn(LOG, 6, neighbours=5, shrink=1.0, recency=0.9)
    model.targets = TargetWeights({"click": 1.0, "purchase": 3.0}, 0.0)
    model.save(tmp_path)
    loaded = Baseline.load(tmp_path)
    np.testing.assert_array_equal(loaded.scores(users([1, 3])), model.scores(users([1, 3])))
    history = UserHistory.empty()
    history.video_row = np.array([1, 2, 0, 3])
    history.actions = np.array([LABEL_BIT["purchase"], 0, LABEL_BIT["click"], LABEL_BIT["click"]], np.int32)
    engaged = loaded.engaged(history)
    assert engaged.rows.tolist() == [1, 3]
    assert engaged.weights.tolist() == [3.0, 1.0]
    (tmp_path / "baseline.json").write_text(
        (tmp_path / "baseline.json").read_text().replace("item_knn", "magic")
    )
    with pytest.raises(ContractError, match="train again"):
        Baseline.load(tmp_path)
