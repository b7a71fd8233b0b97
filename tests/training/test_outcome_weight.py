"""How much the outcome towers count: all of it where they know better, nothing where they know nothing."""

import numpy as np
import pytest

from data.history import UserHistory, UserRequest
from models.layers import BlockKind
from models.similarity import Similarity
from models.two_tower import TwoTowerShape
from training.outcome_weight import SHARES, outcome_weight
from training.retrieval_validation import HeldVectors
from training.validation import HeldOut

USERS, VIDEOS, DIM, OUTCOME = 400, 200, 6, 5
SHAPE = TwoTowerShape(
    video_rows={}, video_dense={}, user_rows={}, user_dense={}, surfaces=1, dim=DIM, layers=1, heads=1,
    dropout=0.0, block=BlockKind.ligr, max_steps=1, use_time=False, use_position=True,
    similarity=Similarity.dot, outcomes=True, outcome_dim=OUTCOME - 1,
)  # fmt: skip


def world(found: float, liked: float, seed: int = 0) -> HeldVectors:
    """Users who take what has the highest ``found`` × the towers' score + ``liked`` × the outcome towers'."""
    g = np.random.default_rng(seed)
    user_UX, video_NX = (g.normal(size=(n, DIM + OUTCOME)).astype(np.float32) for n in (USERS, VIDEOS + 1))
    weight_X = np.r_[np.full(DIM, found), np.full(OUTCOME, liked)]
    score_UN = (user_UX * weight_X) @ video_NX.T + g.gumbel(size=(USERS, VIDEOS + 1))
    score_UN[:, 0] = -np.inf
    truth = [np.sort(np.argsort(-score_N)[:3]) for score_N in score_UN]
    nobody = UserRequest(user_row=0, history=UserHistory.empty(), time_ms=0, surface_row=0)
    seen = [np.zeros(0, np.int64)] * USERS
    return HeldVectors(HeldOut([nobody] * USERS, seen, truth), USERS, user_UX, video_NX)


def unit_of(towers: HeldVectors) -> float:
    own, apart = (
        (towers.user_BD[:256, part] @ towers.video_ND[:, part].T).std(axis=1).sum()
        for part in (slice(0, DIM), slice(DIM, None))
    )
    return own / apart


def test_what_tells_nothing_counts_nothing():
    share, _ = outcome_weight(world(2.0, 0.0), SHAPE, 1.0, None, 20)
    assert share <= min(SHARES)


def test_what_tells_all_counts_as_much_as_can_be():
    towers = world(0.0, 2.0)
    share, weight = outcome_weight(towers, SHAPE, 1.0, None, 20)
    assert share == max(SHARES)
    assert weight == pytest.approx(share * unit_of(towers))


def test_of_two_that_tell_the_same_both_count():
    towers = world(1.0, 1.0)
    before = towers.user_BD.copy()
    assert 0.5 <= outcome_weight(towers, SHAPE, 1.0, None, 20)[0] <= 2.0
    np.testing.assert_array_equal(towers.user_BD, before)


def test_a_share_that_is_given_is_a_ratio_of_deviations():
    towers = world(1.0, 1.0)
    share, weight = outcome_weight(towers, SHAPE, 1.0, 0.5, 20)
    assert share == 0.5
    assert weight == pytest.approx(0.5 * unit_of(towers))
    assert outcome_weight(towers, SHAPE, 1.0, 0.0, 20) == (0.0, 0.0)
