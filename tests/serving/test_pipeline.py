"""The pipeline against arithmetic done by hand on the same bundle, and what it does when a part fails."""

from dataclasses import replace

import numpy as np
import pytest

from data.dataset import Dataset, read_info
from data.history import UserHistory, UserRequest
from models.bundle import EVERYWHERE, Bundle
from serving.held_out import rank_all, user_requests
from serving.pipeline import POPULARITY, TWO_TOWER, Pipeline, RankRequest, Stage
from tests.serving.conftest import Published


@pytest.fixture(scope="module")
def bundle(published: Published) -> Bundle:
    return Bundle.open(published.bundles)


@pytest.fixture(scope="module")
def requests(published: Published, bundle: Bundle) -> list[RankRequest]:
    dataset = Dataset(published.market, read_info(published.market))
    batches = user_requests(bundle, dataset, "test", gain=None, k=30, rules=False, memory_limit_gb=1.0)
    return [request for batch in batches for request in batch.requests]


@pytest.fixture
def pipeline(bundle: Bundle) -> Pipeline:
    return Pipeline(bundle)


def by_hand(bundle, request, candidates):
    """Rows and scores of the best of ``candidates``, sorted in plain Python."""
    (user,) = bundle.encoder.encode([request.user]).astype(np.float64)
    scores = (bundle.video_vectors.astype(np.float64) @ user).astype(np.float32)
    unwanted = {0, *request.exclude_rows.tolist()}
    rows = sorted((row for row in candidates if row not in unwanted), key=lambda row: (-scores[row], row))
    return rows[: request.k], scores[rows[: request.k]]


def failing(encode, bad_row):
    """The encoder, but it cannot bear one user."""

    def encode_or_raise(requests):
        if any(request.user_row == bad_row for request in requests):
            raise RuntimeError("planted")
        return encode(requests)

    return encode_or_raise


def test_every_list_is_the_exact_one(bundle, pipeline, requests):
    everything = range(len(bundle.catalogue))
    for request, answer in zip(requests, pipeline.rank(requests, stages=True), strict=True):
        rows, scores = by_hand(bundle, request, everything)
        assert answer.video_row.tolist() == rows
        np.testing.assert_allclose(answer.score, scores, atol=1e-5)
        assert answer.source == (TWO_TOWER,) * len(rows)
        assert answer.degraded == ()
        for stage in (Stage.exact, Stage.index, Stage.feed):
            assert answer.stages[stage].video_row.tolist() == rows


def test_an_answer_does_not_depend_on_its_company(pipeline, requests):
    together = pipeline.rank(requests)
    for answers in (rank_all(pipeline, requests, size=1), rank_all(pipeline, requests, size=7)):
        for mine, theirs in zip(together, answers, strict=True):
            np.testing.assert_array_equal(mine.video_row, theirs.video_row)
            np.testing.assert_allclose(mine.score, theirs.score, atol=1e-6)


def test_lists_of_different_length_in_one_batch(bundle, pipeline, requests):
    mixed = [replace(request, k=1 + number % 40) for number, request in enumerate(requests)]
    for request, answer in zip(mixed, pipeline.rank(mixed), strict=True):
        assert answer.video_row.tolist() == by_hand(bundle, request, range(len(bundle.catalogue)))[0]


def test_scores_of_any_videos_are_those_of_the_ranked_list(bundle, pipeline, requests):
    answers = pipeline.rank(requests[:5])
    for request, answer in zip(requests[:5], answers, strict=True):
        shuffled = np.random.default_rng(0).permutation(answer.video_row)
        scores = dict(zip(answer.video_row.tolist(), answer.score.tolist(), strict=True))
        wanted = [scores[row] for row in shuffled.tolist()]
        np.testing.assert_allclose(pipeline.score(request.user, shuffled), wanted, atol=1e-5)
    unknown = pipeline.score(requests[0].user, np.array([0, len(bundle.catalogue) + 9]))
    assert np.isfinite(unknown).all()
    assert unknown[0] == unknown[1]
    assert pipeline.score(requests[0].user, np.empty(0, np.int64)).shape == (0,)


def test_an_unknown_user_without_a_history_gets_a_list(pipeline):
    nobody = UserRequest(0, UserHistory.empty(), 0, 0)
    (answer,) = pipeline.rank([RankRequest(nobody, 10, rules=False)])
    assert len(answer.video_row) == 10
    assert answer.degraded == ()


def test_given_candidates_are_ranked_and_nothing_else(bundle, pipeline, requests):
    allowed = np.array([5, 5, 0, 17, -1, 3, 250])
    request = replace(requests[0], allowed_rows=allowed, exclude_rows=np.array([17]))
    (answer,) = pipeline.rank([request])
    assert answer.video_row.tolist() == by_hand(bundle, request, [5, 3, 250])[0]
    (beside,) = pipeline.rank([requests[1]])
    mixed = pipeline.rank([request, requests[1]])
    assert mixed[0].video_row.tolist() == answer.video_row.tolist()
    assert mixed[1].video_row.tolist() == beside.video_row.tolist()


def test_hard_rules_limit_the_feed_and_not_the_stages_before_it(bundle, pipeline, requests):
    markets = [market for market in pipeline.facts.market_names.known.to_pylist()]
    assert len(markets) > 1
    ruled = [replace(request, rules=True, market=markets[n % 2]) for n, request in enumerate(requests)]
    shortened = 0
    for request, free, answer in zip(ruled, requests, pipeline.rank(ruled, stages=True), strict=True):
        eligible = pipeline.facts.eligible(request.market)
        assert not eligible.all()
        rows, _ = by_hand(bundle, request, np.flatnonzero(eligible).tolist())
        assert answer.video_row.tolist() == rows == answer.stages[Stage.feed].video_row.tolist()
        whole = by_hand(bundle, free, range(len(bundle.catalogue)))[0]
        assert answer.stages[Stage.exact].video_row.tolist() == whole
        assert answer.stages[Stage.index].video_row.tolist() == whole
        shortened += whole != rows
    assert shortened > 0


def test_one_user_whom_the_encoder_cannot_bear_degrades_alone(bundle, pipeline, requests, monkeypatch):
    well = pipeline.rank(requests)
    bad = requests[3].user.user_row
    monkeypatch.setattr(bundle.encoder, "encode", failing(bundle.encoder.encode, bad))
    for number, (answer, before) in enumerate(zip(pipeline.rank(requests), well, strict=True)):
        if number != 3:
            np.testing.assert_array_equal(answer.video_row, before.video_row)
            assert answer.degraded == ()
            continue
        assert answer.degraded == ("user_encoder",)
        assert set(answer.source) == {POPULARITY}
        top = bundle.popularity[requests[3].market].video_row.tolist()
        seen = set(requests[3].exclude_rows.tolist())
        assert answer.video_row.tolist() == [row for row in top if row not in seen][:30]


def test_a_vector_that_is_not_a_number_degrades_too(bundle, pipeline, requests, monkeypatch):
    encode = bundle.encoder.encode

    def broken(users):
        vectors = encode(users)
        vectors[0, 3] = np.nan
        return vectors

    monkeypatch.setattr(bundle.encoder, "encode", broken)
    answers = pipeline.rank(requests[:4])
    assert [answer.degraded for answer in answers] == [("user_encoder",), (), (), ()]
    with pytest.raises(ValueError, match="not finite"):
        pipeline.score(requests[0].user, np.array([1]))


def test_without_retrieval_the_popular_videos_of_the_market_come_first(
    bundle, pipeline, requests, monkeypatch
):
    def broken(*_, **__):
        raise RuntimeError("planted")

    monkeypatch.setattr(pipeline.retriever, "search", broken)
    market = next(market for market in bundle.popularity if market != EVERYWHERE)
    request = RankRequest(requests[0].user, len(bundle.catalogue), np.array([1, 2, 3]), market=market)
    (answer,) = pipeline.rank([request])
    assert answer.degraded == ("retrieval",)
    eligible = pipeline.facts.eligible(market)
    mine = [row for row in bundle.popularity[market].video_row.tolist() if row > 3 and eligible[row]]
    others = [row for row in bundle.popularity[EVERYWHERE].video_row.tolist() if row > 3 and eligible[row]]
    assert answer.video_row.tolist() == mine + [row for row in others if row not in set(mine)]


def test_a_video_added_or_removed_counts_from_the_next_request(bundle, pipeline, requests):
    (vector,) = bundle.encoder.encode([requests[0].user])
    new = len(bundle.catalogue)
    (before,) = pipeline.rank(requests[:1])
    pipeline.retriever.add(np.array([new]), 100 * vector[None] / np.linalg.norm(vector))
    pipeline.retriever.remove(before.video_row[:2])
    (after,) = pipeline.rank(requests[:1])
    assert after.video_row.tolist()[:5] == [new, *before.video_row.tolist()[2:6]]


def test_no_requests():
    assert rank_all(object(), [], size=4) == []


def test_further_candidates_are_scored_beside_what_was_retrieved(bundle, pipeline, requests):
    request = replace(requests[0], k=10)
    (plain,) = pipeline.rank([request])
    everything = by_hand(bundle, replace(request, k=len(bundle.catalogue)), range(len(bundle.catalogue)))[0]
    found, worst = everything[0], everything[-3:]
    excluded = int(request.exclude_rows[0])
    extra = {
        "fresh": np.array([worst[0], found, 0, 10**6]),
        "campaign": np.array([excluded, worst[1], worst[0]]),
    }
    (answer,) = pipeline.rank([replace(request, extra=extra)])
    assert answer.video_row.tolist() == [*plain.video_row.tolist(), worst[0], worst[1]]
    assert answer.source == (*(TWO_TOWER,) * 10, "fresh", "campaign")
    np.testing.assert_allclose(
        answer.score[10:], pipeline.score(request.user, answer.video_row[10:]), atol=1e-6
    )
    beside = pipeline.rank([request, replace(request, extra=extra)])  # nobody's company gets them
    assert beside[0].video_row.tolist() == plain.video_row.tolist()
    assert beside[1].video_row.tolist() == answer.video_row.tolist()
