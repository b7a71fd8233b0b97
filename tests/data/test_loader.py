"""The training loader: every target once, with exactly the history it may know; exact resume."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import SET_QUERIES, LoaderPosition, SequenceLoader
from data.prepared import SEQUENCES
from data.schema import LABEL_BIT
from data.targets import TargetWeights
from data.vocabulary import Vocabulary

CLICK, BUY = LABEL_BIT["click"], LABEL_BIT["purchase"]
VIDEOS = 40
WEIGHTS = TargetWeights({"click": 1.0, "purchase": 3.0}, impression=0.0)


def make_world(folder, *, users=30, longest=45, shards=3, seed=0, ordered=True):
    """Prepared sequences in which step s of user u has watch_ms = 1000·u + s: a fingerprint."""
    g = np.random.default_rng(seed)
    truth = {}
    rows = []
    train_count = np.zeros(VIDEOS + 1, np.int64)
    for user in range(1, users + 1):
        n = int(g.integers(1, longest))
        video = g.integers(1, VIDEOS + 1, n)
        time = np.sort(g.integers(0, n, n)) if ordered else np.zeros(n, np.int64)  # slates share a time
        true = np.where(g.random(n) < 0.5, CLICK, 0) | np.where(g.random(n) < 0.1, BUY, 0)
        split = np.sort(g.choice(3, n, p=[0.8, 0.1, 0.1]))
        train_count += np.bincount(video[split == 0], minlength=VIDEOS + 1)
        key = split * 10**6 + time
        known = np.searchsorted(key, key)  # steps strictly before
        watch = 1000 * user + np.arange(n)
        rows.append(
            {
                "user_row": user, "step_video": video, "step_time_ms": time, "step_actions": true,
                "step_known": np.full(n, CLICK | BUY), "step_watch_ms": watch, "step_surface": np.zeros(n),
                "example_video": video, "example_time_ms": time, "example_history_end": known,
                "example_true": true, "example_known": np.full(n, CLICK | BUY), "example_watch_ms": watch,
                "example_order_value_minor": np.full(n, -1), "example_split": split,
                "example_surface": np.zeros(n), "example_market": np.zeros(n),
                "example_position": np.full(n, -1),
            }
        )  # fmt: skip
        for i in range(n):
            if split[i] == 0 and true[i]:
                truth[(user, i)] = (int(video[i]), int(known[i]), 3.0 if true[i] & BUY else 1.0)
    paths = []
    for number in range(shards):
        part = rows[number::shards]
        arrays = [
            pa.array([r[f.name] if f.name == "user_row" else r[f.name].astype(np.int64) for r in part]).cast(
                f.type
            )
            for f in SEQUENCES
        ]
        paths.append(folder / f"part-{number}.parquet")
        pq.write_table(pa.table(arrays, schema=SEQUENCES), paths[-1])
    prepared = SimpleNamespace(
        path=folder, name=str(folder), shards=paths, catalogue=Vocabulary.build(pa.array(np.arange(VIDEOS))),
        manifest={"dataset": {"ordered": ordered}}, video_train_count=train_count,
    )  # fmt: skip
    return prepared, truth


def loader_of(prepared, **changes) -> SequenceLoader:
    options = dict(tokens=120, max_steps=10, n_uniform=None, seed=5)
    return SequenceLoader(prepared, WEIGHTS, **(options | changes))


def targets(batch):
    """(user, video, weight, fingerprints of the history) of every target of a batch."""
    query_P = batch.query_of_target_P
    for window, position, video, weight in zip(
        batch.query_window_Q[query_P],
        batch.query_position_Q[query_P],
        batch.target_video_P,
        batch.target_weight_P,
        strict=True,
    ):
        assert position <= batch.length_B[window]
        history = batch.watch_ms_BS[window, :position].tolist()
        yield int(batch.user_row_B[window]), int(batch.video_rows[video]), float(weight), history


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), max_steps=st.integers(1, 50), n_uniform=st.sampled_from([None, 0, 7]))
def test_every_target_once_with_the_newest_known_steps(tmp_path_factory, seed, max_steps, n_uniform):
    prepared, truth = make_world(tmp_path_factory.mktemp("w"), seed=seed)
    loader = loader_of(prepared, max_steps=max_steps, n_uniform=n_uniform)
    left = dict(truth)
    for batch in loader.epoch():
        assert len(batch.length_B) * (batch.length_B.max() + 1) <= max(120, max_steps + 1)
        for user, video, weight, history in targets(batch):
            newest = [
                key
                for key, (v, known, w) in left.items()
                if (key[0], v, w) == (user, video, weight)
                and history == [1000 * user + i for i in range(known - len(history), known)]
                and len(history) >= min(known, max_steps // 2)
            ]
            assert newest, "a target whose history is not the newest steps known before it"
            del left[newest[0]]
    assert not left
    assert loader.position == LoaderPosition(1, 0, 0)
    assert loader.queries_total == len(truth)


def fingerprint(batch):
    correction = None if batch.log_correction is None else batch.log_correction.tobytes()
    names = ("user_row_B", "video_BS", "target_video_P")
    return (*(getattr(batch, name).tobytes() for name in names), correction)


def test_resume_at_any_position_gives_the_same_batches(tmp_path):
    prepared, _ = make_world(tmp_path)
    loader = loader_of(prepared, n_uniform=5)
    trace = [(fingerprint(b), loader.position) for _ in range(2) for b in loader.epoch()]
    for stop in (0, 1, len(trace) // 3, len(trace) - 2):
        again = loader_of(prepared, n_uniform=5)
        again.position = trace[stop][1]
        rest = [fingerprint(b) for b in again.epoch()]
        while len(rest) < len(trace) - stop - 1:
            rest += [fingerprint(b) for b in again.epoch()]
        assert rest == [t[0] for t in trace[stop + 1 :]]


def test_epochs_and_seeds_differ(tmp_path):
    prepared, _ = make_world(tmp_path)
    loader = loader_of(prepared)
    first, second = [[fingerprint(b) for b in loader.epoch()] for _ in range(2)]
    other = [fingerprint(b) for b in loader_of(prepared, seed=6).epoch()]
    assert first != second
    assert first != other


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_targets_and_the_number_of_batches(tmp_path, world):
    prepared, truth = make_world(tmp_path)
    batches = [list(loader_of(prepared, rank=r, world=world).epoch()) for r in range(world)]
    assert len({len(b) for b in batches}) == 1
    weight = sum(float(b.target_weight_P.sum()) for rank in batches for b in rank)
    assert weight == pytest.approx(sum(t[2] for t in truth.values()))


def test_moments_of_a_set_ask_for_all_that_their_order_puts_after_them(tmp_path):
    prepared, truth = make_world(tmp_path, ordered=False)
    loader = loader_of(prepared, max_steps=50)
    size = np.bincount([user for user, _ in truth])
    prefixes: dict[int, set[int]] = {}
    for _ in range(6):
        asked = np.zeros(len(size), int)
        for batch in loader.epoch():
            assert batch.examples <= SET_QUERIES * len(batch.length_B)
            for query in range(batch.examples):
                window, position = batch.query_window_Q[query], batch.query_position_Q[query]
                user, own = int(batch.user_row_B[window]), slice(*batch.target_offsets[query : query + 2])
                known = batch.watch_ms_BS[window, :position]
                assert {int(key) // 1000 for key in known} <= {user}
                # before and after are the whole set, and each of the targets weighs a share of its root
                assert position + (own.stop - own.start) == size[user]
                weighed = {weight for (owner, _), (_, _, weight) in truth.items() if owner == user}
                assert set(np.round(batch.target_weight_P[own] * (own.stop - own.start) ** 0.5, 4)) <= weighed
                asked[user] += 1
                prefixes.setdefault(user, set()).add(tuple(known))
        np.testing.assert_array_equal(asked, np.minimum(size, SET_QUERIES))
        assert loader.queries_total == asked.sum()
    assert max(len(different) for different in prefixes.values()) > SET_QUERIES


def test_no_target_is_refused_by_name(tmp_path):
    prepared, _ = make_world(tmp_path)
    with pytest.raises(ValueError, match=r"no training impression.*save"):
        SequenceLoader(
            prepared, TargetWeights({"save": 1.0}, 0.0), tokens=10, max_steps=5, n_uniform=None, seed=0
        )


@pytest.mark.parametrize("n_uniform", [None, 200])
def test_a_video_that_training_never_showed_is_no_candidate(tmp_path, n_uniform):
    prepared, _ = make_world(tmp_path, users=6, longest=8)
    never = np.flatnonzero(prepared.video_train_count[1:] == 0) + 1
    assert len(never)
    for batch in loader_of(prepared, n_uniform=n_uniform).epoch():
        assert not np.isin(batch.video_rows, never).any()


def test_impression_weight_and_the_largest_label_win():
    mask = np.array([0, CLICK, CLICK | BUY, LABEL_BIT["hide"]])
    assert replace(WEIGHTS, impression=0.25).of(mask).tolist() == [0.25, 1.0, 3.0, 0.25]


def test_outcomes_of_targets_are_engaged_ignored_or_unknown():
    true, known = np.array([CLICK, 0, 0, BUY, 0]), np.array([CLICK, CLICK, 0, BUY, BUY])
    assert WEIGHTS.outcome(true, known).tolist() == [1, 0, -1, 1, 0]
    clicks = TargetWeights({"click": 1.0, "purchase": 0.0}, impression=0.1)
    assert clicks.outcome(true, known).tolist() == [1, 0, -1, -1, -1]


def test_an_ignored_impression_is_no_positive_but_a_contrast(tmp_path):
    prepared, truth = make_world(tmp_path)
    for impression, ignored in ((0.0, False), (0.1, False), (0.0, True), (0.1, True)):
        loader = SequenceLoader(
            prepared, replace(WEIGHTS, impression=impression), tokens=120, max_steps=10, n_uniform=None,
            seed=5, ignored=ignored,
        )  # fmt: skip
        batches = list(loader.epoch())
        weight = np.concatenate([batch.target_weight_P for batch in batches])
        contrast = np.concatenate([batch.target_contrast_P for batch in batches])
        assert (weight > 0).sum() == len(truth)  # every label is known here: what was not engaged was ignored
        np.testing.assert_array_equal(weight == 0, contrast < 0)
        assert (contrast < 0).any() == ignored
        if ignored:
            np.testing.assert_array_equal(contrast[weight > 0], weight[weight > 0])
            assert contrast[contrast < 0].min() >= -1.0
            assert -contrast[contrast < 0].sum() <= weight.sum() + 1e-3
        else:
            assert not contrast.any()


def test_an_impression_of_which_nothing_is_known_counts_as_an_impression(tmp_path):
    prepared, truth = make_world(tmp_path)
    weights = TargetWeights({"save": 1.0}, impression=0.1)  # nobody knows whether anybody saved anything
    loader = SequenceLoader(prepared, weights, tokens=120, max_steps=10, n_uniform=None, seed=5, ignored=True)
    batches = list(loader.epoch())
    assert sum(len(batch.target_weight_P) for batch in batches) > len(truth)
    assert {float(weight) for batch in batches for weight in batch.target_weight_P} == {np.float32(0.1)}
    assert not any(batch.target_contrast_P.any() for batch in batches)


def test_what_came_of_a_target_is_what_lists_are_judged_by(tmp_path):
    prepared, _ = make_world(tmp_path)
    weights = replace(WEIGHTS, impression=0.1)
    for gain, known in ((BUY, True), (LABEL_BIT["save"], False), (0, False)):
        loader = SequenceLoader(
            prepared, weights, tokens=120, max_steps=10, n_uniform=None, seed=5, ignored=True, gain=gain
        )
        batches = list(loader.epoch())
        came = np.concatenate([batch.target_outcome_P for batch in batches])
        assert set(came.tolist()) == ({-1, 1} if known else {0})
        if known:  # a purchase weighs more than anything else
            weight = np.concatenate([batch.target_weight_P for batch in batches])
            np.testing.assert_array_equal(came == 1, weight == 3.0)
