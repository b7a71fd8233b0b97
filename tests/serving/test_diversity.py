"""Diversity against the definition, written out with determinants, and in a world of copies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.diversity import DEPTH, diversified


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 0.9]))
def test_every_choice_adds_the_most_to_score_and_volume(seed, diversity):
    dice = np.random.default_rng(seed)
    score = -np.sort(-dice.standard_normal(7)).astype(np.float32)
    vectors = dice.standard_normal((7, 9)).astype(np.float32)
    order = diversified(score, vectors, diversity)
    assert sorted(order.tolist()) == list(range(7))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    worth = (score - score.mean()) / score.std()

    def objective(chosen):
        sign, log_volume = np.linalg.slogdet((unit[chosen] @ unit[chosen].T).astype(np.float64))
        assert sign > 0
        return (1 - diversity) * worth[chosen].sum() + diversity * log_volume

    for place in range(1, 7):
        before = order[:place].tolist()
        best = max(objective([*before, other]) for other in range(7) if other not in before)
        assert objective([*before, int(order[place])]) == pytest.approx(best, abs=1e-4)


def test_a_copy_comes_after_all_that_are_unlike():
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2, 3]]
    score = np.array([9, 8, 7, 3, 2, 1], np.float32)
    assert diversified(score, vectors, 0.5).tolist() == [0, 3, 4, 5, 1, 2]


def test_without_diversity_and_beyond_its_depth_the_order_stays():
    score = -np.arange(DEPTH + 20, dtype=np.float32)
    vectors = np.random.default_rng(0).standard_normal((DEPTH + 20, 128)).astype(np.float32)
    assert diversified(score, vectors, 0.0).tolist() == list(range(DEPTH + 20))
    moved = diversified(score, vectors, 0.9)
    assert moved[:DEPTH].tolist() != list(range(DEPTH))
    assert sorted(moved[:DEPTH].tolist()) == list(range(DEPTH))
    assert moved[DEPTH:].tolist() == list(range(DEPTH, DEPTH + 20))


def test_equal_scores_and_empty_vectors_do_no_harm():
    assert sorted(diversified(np.zeros(5, np.float32), np.zeros((5, 3), np.float32), 0.5).tolist()) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert diversified(np.zeros(0, np.float32), np.zeros((0, 3), np.float32), 0.5).tolist() == []
