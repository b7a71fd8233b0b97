"""The ranker's numbers where the right answer is known: tastes, prices, offers, languages, weekends."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from data.features import EncodedTable
from data.ranking_loader import RankingLoader, build_features
from data.ranking_spec import RankingSpec, translation
from data.taste_regression import MAX_WIDTH, content_directions, taste_vectors
from data.vocabulary import Vocabulary
from tests.data.logs import DAY_MS, at, prepare, write_dataset


def test_a_planted_taste_is_found_and_no_history_has_none():
    g = np.random.default_rng(0)
    content = g.standard_normal((2, 200, 8)).astype(np.float32)
    content /= np.linalg.norm(content, axis=2, keepdims=True)
    content[1, 50:] = 0  # padding
    taste = g.standard_normal(8)
    outcome = (content @ taste + 0.1 * g.standard_normal((2, 200)))[..., None].astype(np.float32)
    outcome[1, 50:] = 0
    found = taste_vectors(content, outcome, np.array([200, 50]))
    for user, most in ((0, 0.97), (1, 0.9)):
        cosine = found[user, 0] @ taste / np.linalg.norm(found[user, 0]) / np.linalg.norm(taste)
        assert cosine > most
    np.testing.assert_allclose(found[1, 1], content[1].sum(0) / 66, rtol=1e-4)
    assert (
        taste_vectors(np.zeros((1, 3, 8), np.float32), np.zeros((1, 3, 1), np.float32), np.zeros(1, int)) == 0
    ).all()


def test_content_keeps_its_angles_when_it_is_wide():
    g = np.random.default_rng(1)
    wide = g.standard_normal((40, 400)).astype(np.float32)
    wide[1] = wide[2] * 3
    wide[0] = 0
    table = EncodedTable(40, {}, {"content": wide})
    found = content_directions(table)
    assert found.shape == (40, MAX_WIDTH)
    assert (found[0] == 0).all()
    assert found[1] @ found[2] == pytest.approx(1.0, abs=1e-5)
    assert abs(found[3:] @ found[2]).max() < 0.7
    np.testing.assert_array_equal(found, content_directions(table))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """One user buys cheap things; prices in two currencies, offers in two markets, two languages."""
    folder = tmp_path_factory.mktemp("shop")
    events = [
        {"user_id": user, "video_id": 1 + (day + slot) % 8, "event_time": at(day * DAY_MS + slot * 3_600_000),
         "market": "us" if user < 3 else "jp", "click": slot % 2 == 0,
         "product_click": slot % 2 == 0 and (day + slot) % 8 < 4}
        for user in range(1, 6) for day in range(6) for slot in range(4)
    ]  # fmt: skip
    videos = [
        {
            "video_id": v,
            "duration_ms": 9000,
            "language": "en" if v % 2 else "ja",
            "product_ids": [v] if v < 8 else [],
        }
        for v in range(1, 9)
    ]
    products = [
        {"product_id": v, "price_minor": v * (100 if v % 2 else 15_000),
         "currency": "USD" if v % 2 else "JPY", "markets": ["us"] if v < 5 else ["us", "jp"]}
        for v in range(1, 8)
    ]  # fmt: skip
    users = [
        {"user_id": u, "market": "us" if u < 3 else "jp", "language": "en" if u < 3 else "ja"}
        for u in range(1, 6)
    ]
    dataset = write_dataset(folder / "dataset", events, videos=videos, products=products, users=users)
    return prepare(
        dataset,
        folder / "prepared",
        "split.validation=2026-01-05",
        "split.test=2026-01-06",
        "leak_check=false",
    )


def test_products_are_compared_with_the_request_and_what_the_user_pays(shop):
    features = build_features(shop, half_life_days=(3.0,), max_steps=64)
    spec = features.spec
    batch = next(RankingLoader(shop, features, split=0, batch_size=999, seed=0, shuffle=False).epoch())
    named = {name: batch.candidate_statistics_BG[:, place] for place, name in enumerate(spec.candidate_names)}
    video = shop.catalogue.ids(batch.video_B).to_numpy()
    market = shop.markets.ids(batch.requests.market).to_pylist()
    sold = np.array([v < 8 and (m == "us" or v >= 5) for v, m in zip(video, market, strict=True)], float)
    np.testing.assert_array_equal(named["sold_here"], sold)
    np.testing.assert_allclose(named["products"], np.log1p((video < 8).astype(np.float32)), rtol=1e-6)
    speaks_english = np.array([m == "us" for m in market])
    np.testing.assert_array_equal(
        named["own_language"], np.where(speaks_english == (video % 2 == 1), 1.0, -1.0)
    )
    np.testing.assert_array_equal(named["price_known"], video < 8)
    # quantiles are of one currency each: 90,000 yen stand where 7 dollars do, not far above them
    price = {v: float(named["price"][video == v].max()) for v in set(video.tolist())}
    assert price[7] > price[5] > price[3] > price[1] > 0
    assert price[6] > price[4] > price[2] > 0
    assert abs(price[7] - price[6]) < 0.3
    # everybody shops among the cheaper half, so the dear is above the usual and the cheap below
    assert (named["price_above_usual"][video == 7] > 0.2).all()
    assert (named["price_above_usual"][video == 1] < 0).all()
    np.testing.assert_allclose(named["price_apart"], np.abs(named["price_above_usual"]), rtol=1e-6)
    assert (named["price_above_usual"][video == 8] == 0).all()


def test_a_weekend_is_one_in_the_logs_own_time_zone():
    spec = RankingSpec(
        tasks=("click",), base_rate=(0.5,), matched=(), counted=(), half_life_days=(3.0,), max_steps=4,
        day_zero_ms=1_651_593_600_000, use_time=True,  # Wednesday 4 May 2022, midnight in UTC+8
    )  # fmt: skip
    saturday = spec.day_zero_ms + 3 * DAY_MS
    moments = np.array([saturday - 1, saturday, saturday + 2 * DAY_MS - 1, saturday + 2 * DAY_MS])
    assert spec.weekend(moments).tolist() == [False, True, True, False]
    assert not replace(spec, use_time=False).weekend(moments).any()


def test_rows_are_translated_by_value():
    one, two = Vocabulary.build(pa.array(["us", "jp", "xx"])), Vocabulary.build(pa.array(["de", "jp", "us"]))
    rows = translation(one, two)
    assert rows[0] == 0
    assert [rows[int(one.rows(pa.array([name]))[0])] for name in ("us", "jp", "xx")] == [
        *two.rows(pa.array(["us", "jp"])).tolist(), 0,
    ]  # fmt: skip
    assert translation(one, None) == () == translation(one, Vocabulary.build(pa.array([1, 2])))
    assert translation(one, Vocabulary.build(pa.array(["zz"]))) == ()
