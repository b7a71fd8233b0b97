"""What validation says of the trend's weights: found in a known world, small where little is known."""

import numpy as np
import pytest

from data.history import UserHistory, UserRequest
from training.retrieval_validation import HeldVectors
from training.trend_shift import trend_shift
from training.validation import HeldOut

VIDEOS, DIM, TREND = 300, 6, 2


def world(users: int, shift_K: np.ndarray, temperature: float, seed: int = 0) -> HeldVectors:
    """Users with tastes and trend weights of their own, who choose by these and all by ``shift_K``."""
    g = np.random.default_rng(seed)
    user_UX = g.normal(size=(users, DIM + TREND)).astype(np.float32)
    video_NX = g.normal(size=(VIDEOS + 1, DIM + TREND)).astype(np.float32)
    score_UN = (user_UX @ video_NX.T + video_NX[:, DIM:] @ shift_K) / temperature
    seen = [g.choice(np.arange(1, VIDEOS + 1), 20, replace=False) for _ in range(users)]
    truth = []
    for score_N, hidden in zip(score_UN, seen, strict=True):
        score_N[[0, *hidden]] = -np.inf
        chance_N = np.exp(score_N - score_N.max())
        truth.append(np.unique(g.choice(VIDEOS + 1, 2, p=chance_N / chance_N.sum())))
    requests = [
        UserRequest(user_row=0, history=UserHistory.empty(), time_ms=0, surface_row=0) for _ in range(users)
    ]
    return HeldVectors(HeldOut(requests, seen, truth), users, user_UX, video_NX)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_shift_that_users_chose_by_is_found(temperature):
    shift_K = np.array([1.5, -2.0])
    towers = world(800, shift_K, temperature)
    found_K = trend_shift(towers, slice(DIM, DIM + TREND), temperature)
    np.testing.assert_allclose(found_K, shift_K, atol=0.25 * temperature)


def test_no_shift_is_found_where_there_is_none_and_none_without_requests():
    columns = slice(DIM, DIM + TREND)
    assert np.abs(trend_shift(world(800, np.zeros(TREND), 1.0), columns, 1.0)).max() < 0.15
    assert not trend_shift(world(0, np.zeros(TREND), 1.0), columns, 1.0).any()


def test_few_requests_move_little():
    far_K = np.array([8.0, -8.0])
    few, many = (trend_shift(world(users, far_K, 1.0), slice(DIM, DIM + TREND), 1.0) for users in (2, 800))
    assert np.abs(few).max() < 0.5 * np.abs(many).max()
