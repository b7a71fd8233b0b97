"""The linear model beside the towers: EASE in closed form, histories summed, nothing from padding."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from data.history import UserHistory
from models.co_engagement import CoEngagement, Directions, from_learnt
from models.inference import collate_steps


def seen(users: int, videos: int, seed: int = 0) -> sp.csr_matrix:
    """Row 0, the unknown video, is never seen."""
    matrix = np.random.default_rng(seed).random((users, videos + 1)) < 0.3
    matrix[:, 0] = False
    return sp.csr_matrix(matrix.astype(float))


def history(rows: list[int]) -> UserHistory:
    zeros = np.zeros(len(rows), np.int64)
    return UserHistory(
        video_row=np.array(rows, np.int64), time_ms=zeros, actions=zeros.astype(np.int32),
        known=zeros.astype(np.int32), watch_ms=zeros.astype(np.int32), surface_row=zeros.astype(np.int32),
    )  # fmt: skip


def test_all_directions_are_ease_shared_between_the_two_videos():
    """Steck's closed form, inverse and all: B_ij = −P_ij / P_jj, with √(P_ii P_jj) in the place of P_jj."""
    seen_UR = seen(60, 11)
    directions = Directions.of(seen_UR, 11, seed=0)
    vector_RC = directions.vectors(11)
    ridge = max(directions.singular_C.min() ** 2, 1.0)
    inverse = np.linalg.inv((seen_UR.T @ seen_UR).toarray() + ridge * np.eye(12))
    ease = -inverse / np.diag(inverse)
    root = np.sqrt(np.diag(inverse))
    expected = ease * root[None, :] / root[:, None]
    off_diagonal = ~np.eye(12, dtype=bool)
    np.testing.assert_allclose((vector_RC @ vector_RC.T)[off_diagonal], expected[off_diagonal], atol=1e-5)


def test_fewer_directions_are_the_strongest():
    directions = Directions.of(seen(60, 11), 11, seed=0)
    assert (np.diff(directions.singular_C) <= 0).all()
    fewer = Directions.of(seen(60, 11), 4, seed=0)
    np.testing.assert_allclose(fewer.vectors(4), directions.vectors(4) * sign(fewer, directions), atol=1e-5)


def sign(one: Directions, other: Directions) -> np.ndarray:
    """A direction may point either way."""
    return np.sign((one.direction_RC * other.direction_RC[:, : one.direction_RC.shape[1]]).sum(axis=0))


def test_a_seed_gives_equal_bits():
    first, second = (Directions.of(seen(50, 20), 6, seed=3).vectors(6) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("matrix", [seen(1, 5), sp.csr_matrix((4, 6)), seen(9, 0)])
def test_nothing_to_fit_has_no_directions(matrix):
    vectors = Directions.of(matrix, 8, seed=0).vectors(8)
    assert vectors.shape == (matrix.shape[1], 0)


def test_users_are_weighted_sums_whatever_stands_beside_them():
    g = np.random.default_rng(0)
    vector_RC = g.normal(size=(9, 4)).astype(np.float32)
    vector_RC[0] = 0
    model = CoEngagement.of(vector_RC, np.zeros((3, 4), np.float32))
    model.weight.fill_(0.5)
    rows = [[3, 1, 8, 2], [], [5]]
    user_BC = model.users(collate_steps([history(one) for one in rows], 16), torch.from_numpy(vector_RC))
    expected = [0.5 * vector_RC[one].sum(0) / np.sqrt(max(len(one), 1)) for one in rows]
    np.testing.assert_allclose(user_BC.numpy(), np.stack(expected), atol=1e-6)
    alone = model.users(collate_steps([history([5])], 16), torch.from_numpy(vector_RC))
    np.testing.assert_allclose(alone[0].numpy(), user_BC[2].numpy(), atol=1e-6)


def test_a_video_nobody_saw_and_the_unknown_one_have_zeros():
    seen_UR = seen(40, 8).tolil()
    seen_UR[:, 5] = 0
    vector_RC = Directions.of(seen_UR.tocsr(), 6, seed=0).vectors(6)
    assert not vector_RC[[0, 5]].any()
    assert (np.abs(vector_RC[[1, 2, 3, 4, 6, 7, 8]]).sum(1) > 0).all()


def world(videos: int = 400, dim: int = 6, rank: int = 5, noise: float = 1.0):
    """Learnt vectors, and co-engagement vectors that are a linear map of them plus noise."""
    g = np.random.default_rng(2)
    learnt_ND = g.normal(size=(videos, dim)).astype(np.float32)
    true_DC = g.normal(size=(dim, rank)).astype(np.float32)
    vector_NC = learnt_ND @ true_DC + noise * g.normal(size=(videos, rank)).astype(np.float32)
    return learnt_ND, vector_NC, true_DC


def test_a_video_nobody_saw_gets_what_its_learnt_vector_lets_expect():
    learnt_ND, vector_NC, true_DC = world(noise=0.0)
    map_DC = from_learnt(learnt_ND, vector_NC, np.full(len(learnt_ND), 50))
    np.testing.assert_allclose(map_DC, true_DC, rtol=0.02, atol=0.02)
    vector_NC[7] = 0.0
    model = CoEngagement.of(vector_NC, map_DC)
    said_NC = model.videos(torch.arange(len(vector_NC)), torch.from_numpy(learnt_ND)).numpy()
    np.testing.assert_allclose(said_NC[7], learnt_ND[7] @ true_DC, rtol=0.03, atol=0.03)
    np.testing.assert_array_equal(said_NC[8], vector_NC[8])


def test_expected_vectors_are_as_long_as_those_that_were_seen():
    learnt_ND, vector_NC, _ = world(noise=4.0)
    expected_NC = learnt_ND @ from_learnt(learnt_ND, vector_NC, np.full(len(learnt_ND), 50))
    assert (expected_NC**2).sum() == pytest.approx((vector_NC**2).sum(), rel=1e-4)


def test_videos_that_nobody_saw_teach_nothing():
    learnt_ND, vector_NC, _ = world()
    users_N = np.where(np.arange(len(learnt_ND)) < 300, 9, 0)
    map_DC = from_learnt(learnt_ND, vector_NC, users_N)
    vector_NC[300:] = 1e6
    np.testing.assert_allclose(from_learnt(learnt_ND, vector_NC, users_N), map_DC, rtol=1e-5, atol=1e-6)
    assert not from_learnt(learnt_ND, vector_NC, np.zeros(400)).any()
