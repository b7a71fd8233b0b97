"""Retrieval against a plain numpy brute force, in worlds small enough to check by eye."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ContractError
from serving.exact import ExactSearch, Hits
from serving.exact_device import DeviceExactSearch
from serving.index import ApproximateIndex, IndexKind, IndexParameters, choose_kind, recall_of
from serving.retriever import Retriever

HNSW = IndexParameters(kind=IndexKind.hnsw, k=20, links=16, build_width=80)
IVF = IndexParameters(kind=IndexKind.ivf, k=20, lists=32)
IVF_SCAN = IndexParameters(kind=IndexKind.ivf_scan, k=20, lists=32)
SCAN = IndexParameters(kind=IndexKind.scan, k=20)


def brute_force(vectors_ND, user_D, k, exclude=(), eligible=None):
    """The definition, written out: best score first, lower row first among equals, row 0 never."""
    scores = (vectors_ND.astype(np.float64) @ user_D.astype(np.float64)).astype(np.float32)
    unwanted = set(np.asarray(exclude).tolist())
    rows = [
        row
        for row in range(1, len(vectors_ND))
        if row not in unwanted and (eligible is None or eligible[row])
    ]
    rows.sort(key=lambda row: (-scores[row], row))
    return Hits(np.array(rows[:k], np.int64), scores[rows[:k]])


def same(hits, wanted):
    np.testing.assert_array_equal(hits.video_row, wanted.video_row)
    np.testing.assert_array_equal(hits.score, wanted.score)


def clustered(videos, dim=16, seed=0, clusters=40, normed=True):
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((clusters, dim))
    vectors = centre[rng.integers(clusters, size=videos + 1)] + 0.6 * rng.standard_normal((videos + 1, dim))
    users = centre[rng.integers(clusters, size=64)] + 0.6 * rng.standard_normal((64, dim))
    if normed:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    else:
        vectors *= rng.lognormal(0.0, 0.4, (videos + 1, 1))
    return vectors.astype(np.float32), users.astype(np.float32)


@pytest.fixture(scope="module", params=["hnsw", "ivf", "scan", "ivf_scan"])
def built(request):
    vectors, users = clustered(4000)
    parameters = {"hnsw": HNSW, "ivf": IVF, "scan": SCAN, "ivf_scan": IVF_SCAN}[request.param]
    index, recall = ApproximateIndex.build(vectors, parameters).tuned(vectors, users[:16], users[16:32], 0.99)
    assert recall >= 0.99
    return vectors, users, index


@given(st.data())
def test_exact_search_is_brute_force(data):
    videos, dim, users = (
        data.draw(st.integers(0, 30)),
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(1, 4)),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # small integers give many exact ties, also across the k-th place
    vectors = rng.integers(-2, 3, (videos + 1, dim)).astype(np.float32)
    user = rng.integers(-2, 3, (users, dim)).astype(np.float32)
    k = data.draw(st.integers(1, 40))
    exclude = [rng.integers(-1, videos + 3, rng.integers(0, 8)) for _ in range(users)]
    eligible = rng.random(videos + 1) < 0.7 if data.draw(st.booleans()) else None
    for search in (ExactSearch(vectors), DeviceExactSearch(vectors, torch.device("cpu"))):
        found = search.search(user, k, exclude=exclude, eligible=eligible)
        for hits, user_D, rows in zip(found, user, exclude, strict=True):
            same(hits, brute_force(vectors, user_D, k, rows, eligible))


def test_equal_videos_far_apart_come_in_row_order():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5001, 33)).astype(np.float32)
    vectors[[7, 1234, 2500, 4999]] = 3 * vectors[7]
    user = vectors[[7]]
    (alone,) = ExactSearch(vectors).search(user, 3)
    assert alone.video_row.tolist() == [7, 1234, 2500]
    many = ExactSearch(vectors).search(
        np.concatenate([user, rng.standard_normal((300, 33)).astype(np.float32)]), 3
    )
    same(many[0], alone)
    device = DeviceExactSearch(vectors, torch.device("cpu")).search(user, 3)
    same(device[0], alone)


def test_index_scores_and_order_are_those_of_brute_force(built):
    vectors, users, index = built
    retriever = Retriever(vectors, index)
    for hits, user in zip(retriever.search(users, 20), users, strict=True):
        wanted = brute_force(vectors, user, 20)
        assert len(hits.video_row) == 20
        scores = dict(
            zip(*[array.tolist() for array in brute_force(vectors, user, len(vectors))], strict=True)
        )
        assert hits.score.tolist() == [scores[row] for row in hits.video_row.tolist()]
        assert len(set(hits.video_row.tolist()) & set(wanted.video_row.tolist())) >= 15
        assert (np.diff(hits.score) <= 0).all()


def test_recall_holds_on_users_it_was_not_tuned_on(built):
    vectors, users, index = built
    truth = [brute_force(vectors, user, 20).score for user in users[32:]]
    assert recall_of(index.search(users[32:], 20), truth, vectors, users[32:]) >= 0.97


def test_tuning_stops_at_the_first_width_that_reaches_the_target():
    vectors, users = clustered(4000)
    index = ApproximateIndex.build(vectors, IVF)
    low, low_recall = index.tuned(vectors, users, users, 0.3)
    high, high_recall = index.tuned(vectors, users, users, 1.0)
    assert low.parameters.width < high.parameters.width <= IVF.lists
    assert 0.3 <= low_recall < high_recall == 1.0


def test_unnormalised_vectors_reach_the_target_too():
    vectors, users = clustered(4000, normed=False)
    assert ApproximateIndex.build(vectors, IVF).tuned(vectors, users, users, 0.99)[1] >= 0.99
    # a graph of raw inner products loses short vectors for good: it stays below 1 however wide the search
    whole = ApproximateIndex.build(vectors, replace(HNSW, width=4000))
    truth = [brute_force(vectors, user, 20).score for user in users]
    assert recall_of(whole.search(users, 20), truth, vectors, users) == 1.0


def test_tuning_gives_up_where_brute_force_is_as_cheap():
    vectors, users = clustered(400, clusters=400)
    index, recall = ApproximateIndex.build(vectors, HNSW).tuned(vectors, users, users, 1.1)
    assert recall <= 1.0
    assert index.effort(HNSW.k, 1.0) >= 1.0


def test_recall_counts_equal_videos_as_found_and_repeats_once():
    vectors = np.array([[0], [2], [2], [2], [1]], np.float32)
    user = np.ones((1, 1), np.float32)
    truth = [np.array([2, 2], np.float32)]
    assert recall_of([np.array([2, 3])], truth, vectors, user) == 1.0
    assert recall_of([np.array([3, 3])], truth, vectors, user) == 0.5
    assert recall_of([np.array([4, 3])], truth, vectors, user) == 0.5
    assert recall_of([np.array([], np.int64)], [np.array([], np.float32)], vectors, user) == 1.0


def test_excluded_videos_never_return_and_k_is_always_filled(built):
    vectors, users, index = built
    retriever = Retriever(vectors, index)
    best = [brute_force(vectors, user, 500).video_row for user in users]
    counts = [0, 3, 60, 500]
    exclude = [rows[: counts[i % 4]] for i, rows in enumerate(best)]
    for hits, rows in zip(retriever.search(users, 20, exclude=exclude), exclude, strict=True):
        assert len(hits.video_row) == 20
        assert not set(hits.video_row.tolist()) & {0, -1, *rows.tolist()}


def test_when_almost_all_is_excluded_the_rest_still_comes(built):
    vectors, users, index = built
    left = np.array([5, 77, 3999])
    unseen = np.setdiff1d(np.arange(len(vectors)), left)
    (hits,) = Retriever(vectors, index).search(users[:1], 20, exclude=[unseen])
    same(hits, brute_force(vectors, users[0], 20, unseen))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.6])
def test_only_eligible_videos_return(built, share):
    vectors, users, index = built
    eligible = np.random.default_rng(1).random(len(vectors)) < share
    found = Retriever(vectors, index).search(users, 20, eligible=eligible)
    overlap = 0
    for hits, user in zip(found, users, strict=True):
        wanted = brute_force(vectors, user, 20, eligible=eligible)
        assert len(hits.video_row) == len(wanted.video_row)
        assert eligible[hits.video_row].all()
        overlap += len(np.intersect1d(hits.video_row, wanted.video_row))
    assert overlap >= 0.95 * sum(
        len(brute_force(vectors, user, 20, eligible=eligible).score) for user in users
    )


def test_unfilled_places_of_faiss_do_not_escape():
    vectors, users = clustered(200)
    index = ApproximateIndex.build(vectors, replace(IVF, lists=16, width=1))
    for rows in index.search(users, 150):
        assert 0 < len(rows) <= 150
        assert rows.min() >= 1


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "rebuild"]), st.integers(1, 24)), max_size=12))
def test_adds_and_removes_show_at_once_in_any_order(steps):
    rng = np.random.default_rng(0)
    vectors = rng.integers(-3, 4, (13, 3)).astype(np.float32)
    users = rng.integers(-3, 4, (3, 3)).astype(np.float32)
    retriever = Retriever(vectors)
    current = dict(enumerate(vectors))
    del current[0]
    for step, row in steps:
        if step == "add":
            current[row] = rng.integers(-3, 4, 3).astype(np.float32)
            retriever.add(np.array([row]), current[row][None])
        elif step == "remove":
            current.pop(row, None)
            retriever.remove(np.array([row]))
        else:
            retriever.rebuild()
        table = np.zeros((30, 3), np.float32)
        eligible = np.zeros(30, bool)
        for known, vector in current.items():
            table[known], eligible[known] = vector, True
        for hits, user in zip(retriever.search(users, 8, exclude=[np.array([2])] * 3), users, strict=True):
            same(hits, brute_force(table, user, 8, exclude=[2], eligible=eligible))
        rows = np.array(list(current), np.int64)
        np.testing.assert_array_equal(retriever.vectors_of(rows), table[rows])


def test_the_index_is_rebuilt_with_what_was_added_and_without_what_was_removed(built):
    vectors, users, index = built
    retriever = Retriever(vectors, index)
    new = 5 * users[:8] / np.linalg.norm(users[:8], axis=1, keepdims=True)
    rows = np.arange(len(vectors), len(vectors) + 8)
    retriever.add(rows, new)
    retriever.remove(np.array([1, 2, 3]))
    before = retriever.search(users[:8], 5)
    assert [hits.video_row[0] for hits in before] == rows.tolist()
    retriever.rebuild()
    assert retriever.size == len(vectors) + 8
    after = retriever.search(users[:8], 5)
    assert [(hits.video_row[0], hits.score[0]) for hits in after] == [
        (h.video_row[0], h.score[0]) for h in before
    ]
    assert not {1, 2, 3} & {row for hits in after for row in hits.video_row}
    retriever.remove(rows)
    assert not {row for hits in retriever.search(users[:8], 5) for row in hits.video_row} & set(rows.tolist())


def test_a_change_made_while_rebuilding_is_kept(monkeypatch):
    vectors = np.eye(6, 3, dtype=np.float32)
    retriever = Retriever(vectors)
    retriever.add(np.array([6, 7, 8]), np.full((3, 3), [[4], [5], [6]], np.float32))
    started, proceed = threading.Event(), threading.Event()

    class Slow(ExactSearch):
        def __init__(self, vectors_ND):
            super().__init__(vectors_ND)
            started.set()
            assert proceed.wait(10)

    monkeypatch.setattr("serving.retriever.ExactSearch", Slow)
    builder = threading.Thread(target=retriever.rebuild)
    builder.start()
    assert started.wait(10)
    retriever.remove(np.array([7, 2]))
    retriever.add(np.array([8, 9]), np.full((2, 3), [[-1], [9]], np.float32))
    proceed.set()
    builder.join()
    (hits,) = retriever.search(np.ones((1, 3), np.float32), 20)
    assert dict(zip(hits.video_row.tolist(), hits.score.tolist(), strict=True)) == {
        9: 27, 6: 12, 1: 1, 3: 0, 4: 0, 5: 0, 8: -3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "vectors"),
    [([0], [[1.0, 1]]), ([3, 3], [[1.0, 1], [2, 2]]), ([4], [[np.nan, 1]]), ([4], [[1.0, 1, 1]])],
)
def test_what_cannot_be_added_is_refused(rows, vectors):
    retriever = Retriever(np.eye(3, 2, dtype=np.float32))
    with pytest.raises(ValueError, match="must be"):
        retriever.add(np.array(rows), np.array(vectors, np.float32))


def test_a_saved_index_answers_the_same_and_a_wrong_one_is_refused(built, tmp_path: Path):
    vectors, users, index = built
    index.save(tmp_path / "index.faiss")
    parameters = IndexParameters.from_json(index.parameters.to_json())
    loaded = ApproximateIndex.load(tmp_path / "index.faiss", parameters, vectors.shape)
    for mine, theirs in zip(loaded.search(users, 20), index.search(users, 20), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ContractError, match="publish again"):
        ApproximateIndex.load(tmp_path / "index.faiss", parameters, (vectors.shape[0] + 1, vectors.shape[1]))
    other = replace(parameters, kind=IndexKind.ivf if parameters.kind is IndexKind.hnsw else IndexKind.hnsw)
    with pytest.raises(ContractError, match="the manifest says"):
        ApproximateIndex.load(tmp_path / "index.faiss", other, vectors.shape)
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(ContractError, match="not a FAISS index"):
        ApproximateIndex.load(tmp_path / "noise", parameters, vectors.shape)


def test_the_rule_for_the_kind():
    limits = {"exact_below": 200_000, "scan_below": 5_000_000}
    assert choose_kind(199_999, **limits) is IndexKind.exact
    assert choose_kind(200_000, **limits) is IndexKind.scan
    assert choose_kind(5_000_000, **limits) is IndexKind.ivf_scan


def test_empty_catalogue_and_no_users():
    assert [
        len(hits.score)
        for hits in Retriever(np.zeros((1, 4), np.float32)).search(np.ones((2, 4), np.float32), 5)
    ] == [0, 0]
    assert Retriever(np.zeros((3, 4), np.float32)).search(np.ones((0, 4), np.float32), 5) == []
