"""Attribution against a slow reference that follows the sentence in the contract."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.labels import Attribution, causes, label
from data.schema import LABEL_BIT, LABELS

ATTRIBUTION = Attribution({**dict.fromkeys(LABELS, 5), "purchase": 20})
LOGGED = ("click", "purchase")
MASK = sum(LABEL_BIT[name] for name in LOGGED)
END = 40

impression = st.tuples(
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 30),
    st.sampled_from([None, True, False]),
    st.integers(-1, 2),
)
action = st.tuples(
    st.integers(1, 3), st.integers(0, 3), st.integers(0, 39), st.sampled_from(LOGGED), st.integers(-1, 2)
)


def reference(impressions, actions):
    """True and known labels per impression, and whether each action found one, one at a time."""
    true = [{"click"} if click else set() for *_, click, _ in impressions]
    known = [set() if click is None else {"click"} for *_, click, _ in impressions]
    found = []
    for user, video, when, name, request in actions:
        window = ATTRIBUTION.window_ms[name]
        before = [
            (shown, place)
            for place, (u, v, shown, _, _) in enumerate(impressions)
            if (u, v) == (user, video) and shown <= when and video > 0
        ]
        same = [(shown, place) for shown, place in before if impressions[place][4] == request >= 0]
        shown, cause = max(same or before, default=(None, None))
        found.append(cause is not None and when - shown <= window)
        if found[-1]:
            true[cause].add(name)
    for place, (_, video, shown, _, _) in enumerate(impressions):
        known[place] |= {name for name in LOGGED if video > 0 and shown + ATTRIBUTION.window_ms[name] < END}
    return true, known, found


def run(impressions, actions):
    """The same with ``data.labels``."""
    rows = [(u, v, t, LABEL_BIT["click"] * bool(c), LABEL_BIT["click"] * (c is not None), r, False)
            for u, v, t, c, r in impressions]  # fmt: skip
    rows += [(u, v, t, LABEL_BIT[name], LABEL_BIT[name], r, True) for u, v, t, name, r in actions]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    user, video, time_ms, true, known, request, is_action = columns
    cause = causes(user=user, video=video, time_ms=time_ms, is_action=is_action, request=request)
    return label(
        time_ms=time_ms, true=true.astype(np.int32), known=known.astype(np.int32),
        order_value_minor=np.full(len(rows), -1), is_action=is_action, cause=cause, video=video,
        attribution=ATTRIBUTION, logged=MASK, end_ms=END,
    )  # fmt: skip


@given(st.lists(impression, min_size=1, max_size=14), st.lists(action, max_size=14))
def test_labels_follow_the_contract(impressions, actions):
    got = run(impressions, actions)
    true, known, found = reference(impressions, actions)
    count = len(impressions)
    assert got.true[:count].tolist() == [sum(LABEL_BIT[name] for name in names) for names in true]
    assert got.known[:count].tolist() == [sum(LABEL_BIT[name] for name in names) for names in known]
    assert got.attributed.tolist() == found


def test_an_open_window_is_unknown_even_where_it_came_true():
    got = run(
        [(1, 1, 15, None, -1), (1, 2, 25, None, -1), (1, 3, 25, None, -1)], [(1, 2, 26, "purchase", -1)]
    )
    bought = LABEL_BIT["purchase"]
    assert [bool(mask & bought) for mask in got.known[:3]] == [True, False, False]
    assert [bool(mask & bought) for mask in got.true[:3]] == [False, True, False]


def test_the_window_holds_its_last_millisecond():
    for late, expected in ((5, True), (6, False)):
        assert run([(1, 1, 0, None, -1)], [(1, 1, late, "click", -1)]).attributed.tolist() == [expected]


def test_true_wins_over_an_observed_false():
    got = run([(1, 1, 38, False, -1)], [(1, 1, 39, "click", -1)])
    assert got.true[0] == got.known[0] == LABEL_BIT["click"]


def test_the_action_of_a_request_never_goes_to_another_one():
    # shown twice; the action names the first showing, whose window is over
    shown = [(1, 1, 0, None, 7), (1, 1, 10, None, 8)]
    assert run(shown, [(1, 1, 12, "click", 8)]).attributed.tolist() == [True]
    assert run(shown, [(1, 1, 12, "click", 7)]).attributed.tolist() == [False]
    assert (
        run(shown, [(1, 1, 12, "click", 9)]).true.tolist()[1] == LABEL_BIT["click"]
    )  # a request unknown to the log


def test_order_values_add_up_and_an_impression_s_own_value_stays():
    bought = LABEL_BIT["purchase"]
    got = label(
        time_ms=np.array([0, 0, 0, 1, 2, 3]), true=np.array([0, 0, 0, bought, bought, bought], np.int32),
        known=np.zeros(6, np.int32), order_value_minor=np.array([-1, 70, -1, 300, 250, 999]),
        is_action=np.array([0, 0, 0, 1, 1, 1], bool), cause=np.array([0, 0, 1]), video=np.ones(6, np.int64),
        attribution=ATTRIBUTION, logged=MASK, end_ms=END,
    )  # fmt: skip
    assert got.order_value_minor[:3].tolist() == [550, 70, -1]


def test_outcomes_after_an_impression_s_own_end_are_not_known_to_it():
    times, ends = np.array([0, 0, 3]), np.array([3, 4, 40])
    for cause, expected in ((0, False), (1, True)):
        got = label(
            time_ms=times, true=np.array([0, 0, 1], np.int32), known=np.zeros(3, np.int32),
            order_value_minor=np.full(3, -1), is_action=np.array([0, 0, 1], bool), cause=np.array([cause]),
            video=np.ones(3, np.int64), attribution=ATTRIBUTION, logged=MASK, end_ms=ends,
        )  # fmt: skip
        assert got.attributed.tolist() == [expected]
        assert got.known[:2].tolist() == [0, 0]


def test_windows_by_label():
    windows = Attribution.of(default_minutes=30, days={"purchase": 7}).window_ms
    assert windows["click"] == 1_800_000
    assert windows["purchase"] == 604_800_000
    assert set(windows) == set(LABELS)


def test_nothing_to_attribute():
    assert (
        causes(
            user=np.array([1]), video=np.array([1]), time_ms=np.array([0]), is_action=np.array([False])
        ).tolist()
        == []
    )
    with pytest.raises(AssertionError, match="overflow"):
        causes(
            user=np.array([2**60, 2**60]), video=np.array([2**20, 1]), time_ms=np.array([0, 0]),
            is_action=np.array([False, True]),
        )  # fmt: skip
