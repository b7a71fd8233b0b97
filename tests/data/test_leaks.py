"""Columns computed from outcomes are found; honest ones, however strong, are not."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from data import leaks
from data.encoding import encode
from data.feature_building import FeatureSettings, build_spec
from data.features import Side
from data.leaks import Impressions, _separation, find_leaks
from data.schema import LABEL_BIT

CLICK = LABEL_BIT["click"]
SETTINGS = FeatureSettings(max_id_rows=9999, max_category_rows=9999, min_count=1, buckets=16, ngram_rows=64)
USERS = pa.table({"user_id": np.arange(50), "age": np.random.default_rng(1).uniform(9, 90, 50)})
N_VIDEOS, N = 400, 8000


def world(rate, **columns):
    """``find_leaks`` over impressions of videos that are clicked at ``rate`` each, with further columns."""
    g = np.random.default_rng(0)
    videos = pa.table({"video_id": np.arange(N_VIDEOS), **columns})
    video, user = g.integers(0, N_VIDEOS, N), g.integers(0, 50, N)
    true = np.where(g.random(N) < rate[video], CLICK, 0).astype(np.int32)
    sample = Impressions(user + 1, video + 1, true, np.full(N, CLICK, np.int32))
    built = build_spec(
        videos,
        USERS,
        None,
        video_trained=np.ones(N_VIDEOS, bool),
        user_trained=np.ones(50, bool),
        settings=SETTINGS,
    )
    encoded = {
        Side.video: encode(built.spec, Side.video, videos, None, built.vocabularies),
        Side.user: encode(built.spec, Side.user, USERS, None, built.vocabularies),
    }
    found = find_leaks(sample, built.spec, encoded, {Side.video: videos, Side.user: USERS})
    return {leak.column: leak for leak in found}


HONEST = np.random.default_rng(2).beta(1, 3, N_VIDEOS)
DECIDED = (np.random.default_rng(3).random(N_VIDEOS) < 0.3).astype(float)


def test_a_strong_but_honest_column_is_no_leak():
    assert world(HONEST, quality=HONEST, kind=[f"{rate:.1f}" for rate in HONEST]) == {}


def test_ids_are_no_leak_even_where_every_video_has_its_one_outcome():
    assert world(DECIDED) == {}


@pytest.mark.parametrize(
    "column",
    [
        DECIDED,
        -DECIDED,
        [bool(value) for value in DECIDED],
        [["yes", "seen"] if value else ["no"] for value in DECIDED],
        [1.5 if value else None for value in DECIDED],
        pa.array([[0.0, value] for value in DECIDED], pa.list_(pa.float32(), 2)),
        [f"{value:.0f}-{place % 7}" for place, value in enumerate(DECIDED)],
    ],
    ids=["number", "turned", "flag", "list", "null tells", "vector", "category"],
)
def test_a_column_computed_from_outcomes_is_found(column):
    leak = world(DECIDED, honest=HONEST, planted=column)["planted"]
    assert leak.table == "videos"
    assert leak.label == "click"
    assert leak.auc > 0.99


def test_long_lists_are_looked_at_for_fewer_impressions(monkeypatch):
    lists = [["yes", *"abcdefgh"] if value else ["no", *"abcdefgh"] for value in DECIDED]
    looked: list[int] = []
    take = leaks.take_bags
    monkeypatch.setattr(leaks, "take_bags", lambda bag, rows: looked.append(len(rows)) or take(bag, rows))
    monkeypatch.setattr(leaks, "MOST_VALUES", 9000)
    assert world(DECIDED, tags=lists)["tags"].auc > 0.99
    assert max(looked) <= 1000


def test_no_verdict_without_both_outcomes():
    assert world(np.zeros(N_VIDEOS), planted=DECIDED) == {}
    assert world(np.ones(N_VIDEOS), planted=DECIDED) == {}


@pytest.mark.parametrize("levels", [3, 1000])
def test_separation_is_the_area_under_the_roc_curve(levels):
    g = np.random.default_rng(levels)
    score = g.integers(0, levels, 5000).astype(float)
    positive = g.random(5000) < score / levels
    known = g.random(5000) < 0.8
    score[g.random(5000) < 0.1] = np.nan
    use = known & ~np.isnan(score)
    assert _separation(score, positive, known) == pytest.approx(roc_auc_score(positive[use], score[use]))
    assert _separation(-score, positive, known) == pytest.approx(roc_auc_score(positive[use], score[use]))
