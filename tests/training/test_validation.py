"""Validation in training: masks of the held-out requests, metrics against brute force, no side effects."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.compose import compose
from data.history import UserHistory, UserRequest
from data.schema import LABEL_BIT
from models.two_tower import TwoTower
from tests.data.logs import DAY_MS, at, prepare, write_dataset
from tests.training.running import SMALL
from tests.training.worlds import checkerboard, taste
from training.config import TrainConfig
from training.retrieval import recipe_for, shape_of
from training.retrieval_validation import held_vectors
from training.validation import HeldOut, gain_mask, held_out, rank_metrics

USERS, VIDEOS, STEPS = 30, 24, 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return checkerboard(tmp_path_factory.mktemp("v") / "p", users=USERS, videos=VIDEOS, steps=STEPS)


def request() -> UserRequest:
    return UserRequest(user_row=0, history=UserHistory.empty(), time_ms=0)


def brute_force(held: HeldOut, score_UN: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, one user and one place at a time."""
    rows = []
    for user, (seen, truth) in enumerate(zip(held.seen, held.truth, strict=True)):
        hidden = {*seen.tolist(), *held.absent.tolist()}
        left = [row for row in range(1, score_UN.shape[1]) if row not in hidden]
        ranked = sorted(left, key=lambda row: (-score_UN[user, row], row))[:k]
        gains = [row in set(truth.tolist()) for row in ranked]
        dcg = sum(1 / np.log2(place + 2) for place, hit in enumerate(gains) if hit)
        ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(truth))))
        rows.append((dcg / ideal, sum(gains) / len(truth), float(any(gains))))
    return dict(zip((f"ndcg@{k}", f"recall@{k}", f"hit@{k}"), np.mean(rows, axis=0), strict=True))


@pytest.mark.parametrize("k", [1, 5, 100])
def test_metrics_equal_brute_force_with_ties(k):
    g = np.random.default_rng(3)
    users, videos, dim = 40, 30, 4
    # few distinct values: many ties
    user_UD, video_ND = (g.integers(-2, 3, (n, dim)).astype(np.float32) for n in (users, videos + 1))
    seen = [g.choice(np.arange(1, videos + 1), g.integers(0, 15), replace=False) for _ in range(users)]
    absent = np.array([0, 7, 19])
    rest = [np.setdiff1d(np.arange(1, videos + 1), [*rows, *absent]) for rows in seen]
    truth = [g.choice(rows, g.integers(1, 9), replace=False) for rows in rest]
    held = HeldOut([request() for _ in range(users)], seen, truth, absent)
    found = rank_metrics(held, user_UD, video_ND, k)
    assert found == pytest.approx(brute_force(held, user_UD @ video_ND.T, k))


def test_no_user_gives_zeros():
    empty = HeldOut([], [], [])
    assert rank_metrics(empty, np.zeros((0, 2), np.float32), np.zeros((3, 2), np.float32), 5) == {
        "ndcg@5": 0.0, "recall@5": 0.0, "hit@5": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(("split", "known"), [(1, STEPS - 2), (2, STEPS - 1)])
def test_a_request_knows_and_masks_what_came_before_its_split(prepared, split, known):
    held = held_out(prepared, split, LABEL_BIT["click"], max_users=1000, max_steps=100)
    assert len(held.requests) == USERS
    for one, seen, truth in zip(held.requests, held.seen, held.truth, strict=True):
        assert len(one.history) == known
        assert sorted(seen) == sorted(one.history.video_row)
        assert len(truth) == 1
        assert taste(truth[0]) == taste(one.user_row)
        assert truth[0] not in seen
        assert (one.history.time_ms < one.time_ms).all()


def test_the_newest_steps_are_kept_and_users_are_capped(prepared):
    every = held_out(prepared, 1, LABEL_BIT["click"], max_users=1000, max_steps=100)
    held = held_out(prepared, 1, LABEL_BIT["click"], max_users=7, max_steps=3)
    assert len(held.requests) == 7
    for short, long in zip(held.requests, every.requests, strict=False):
        np.testing.assert_array_equal(short.history.video_row, long.history.video_row[-3:])


def test_users_without_the_gain_are_left_out(prepared):
    assert held_out(prepared, 1, LABEL_BIT["like"], max_users=1000, max_steps=9).requests == []


def test_gain_masks(prepared):
    assert gain_mask(prepared, "auto") == gain_mask(prepared, "any") == LABEL_BIT["click"]
    assert gain_mask(prepared, "like") == LABEL_BIT["like"]


def test_validating_consumes_no_randomness_and_leaves_the_model_training(prepared):
    recipe = compose("train", [*SMALL, "prepared=x", "out=y"], TrainConfig).model
    model = TwoTower(shape_of(recipe, prepared)).train()
    held = held_out(prepared, 1, LABEL_BIT["click"], max_users=1000, max_steps=9)
    before = torch.get_rng_state()
    first, second = (held_vectors(model, prepared, held).metrics(5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_take_keeps_requests_with_their_masks(prepared):
    held = held_out(prepared, 1, LABEL_BIT["click"], max_users=1000, max_steps=9)
    part = held.take(np.array([4, 1]))
    assert [one.user_row for one in part.requests] == [held.requests[i].user_row for i in (4, 1)]
    assert part.truth == [held.truth[4], held.truth[1]]
    assert part.seen[1] is held.seen[1]
    assert part.absent is held.absent


def test_videos_that_nobody_was_shown_by_the_end_of_the_split_are_absent(tmp_path):
    shown = [(1, 10, 0), (1, 20, 1), (2, 20, 0), (2, 10, 1), (1, 30, 2), (2, 30, 2)]
    events = [
        {"user_id": user, "video_id": video, "event_time": at(day * DAY_MS + 5), "click": True}
        for user, video, day in shown
    ]
    dataset = write_dataset(
        tmp_path / "log", events, videos=[{"video_id": video} for video in (10, 20, 30, 40)]
    )
    by_day = prepare(dataset, tmp_path / "days", "split.validation=2026-01-02", "split.test=2026-01-03")
    held = {split: held_out(by_day, split, LABEL_BIT["click"], 9, 9) for split in (1, 2)}
    assert held[1].absent.tolist() == [0, *by_day.catalogue.rows([30, 40])]
    assert held[2].absent.tolist() == [0, *by_day.catalogue.rows([40])]


def test_without_days_only_the_unknown_row_is_absent(prepared):
    assert held_out(prepared, 1, LABEL_BIT["click"], 9, 9).absent.tolist() == [0]


def test_batches_of_a_log_without_order_are_larger(prepared):
    recipe = compose("train", [*SMALL, f"prepared={prepared.path}", "out=x"], TrainConfig).model
    assert recipe_for(recipe, prepared) is recipe
    dataset = prepared.manifest["dataset"] | {"ordered": False}
    larger = recipe_for(recipe, replace(prepared, manifest=prepared.manifest | {"dataset": dataset}))
    assert larger.tokens == 8 * recipe.tokens
    assert larger.optimizer.learning_rate == pytest.approx(8**0.5 * recipe.optimizer.learning_rate)
