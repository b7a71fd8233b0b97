"""Towers in a feed that shows at random: nothing tells what is liked but what came of it."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from data.compose import compose
from data.prepared import Prepared
from data.schema import LABEL_BIT
from data.trend import training_trend
from models.portable import load_two_tower
from models.two_tower import TwoTower
from tests.data.logs import DAY_MS, at, prepare, write_dataset
from tests.training.running import SMALL, train
from training.config import TrainConfig
from training.retrieval import RetrievalObjective, build_loader, shape_of
from training.retrieval_validation import held_vectors
from training.validation import held_out

USERS, VIDEOS, TOPICS, DAYS = 120, 200, 4, 9


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Users click on videos of the topic they name, three times in four, and rarely on others."""
    g = np.random.default_rng(0)
    events = []
    for user in range(USERS):
        for place, video in enumerate(g.choice(VIDEOS, 6 * DAYS, replace=False)):
            chance = 0.75 if video % TOPICS == user % TOPICS else 0.05
            events.append(
                {"user_id": user, "video_id": int(video), "click": bool(g.random() < chance),
                 "event_time": at(place // 6 * DAY_MS + place * 1000 + user)}
            )  # fmt: skip
    content = g.normal(size=(TOPICS, 8))[np.arange(VIDEOS) % TOPICS] + 0.3 * g.normal(size=(VIDEOS, 8))
    videos = pa.table(
        {
            "video_id": pa.array(np.arange(VIDEOS)),
            "content_embedding": pa.array(content.astype(np.float32).tolist(), pa.list_(pa.float32(), 8)),
        }
    )
    users = pa.table(
        {"user_id": pa.array(np.arange(USERS)), "interest": [f"topic {u % TOPICS}" for u in range(USERS)]}
    )
    root = tmp_path_factory.mktemp("feed")
    dates = ("split.validation=2026-01-08", "split.test=2026-01-09")
    return prepare(write_dataset(root / "log", events, videos=videos, users=users), root / "prepared", *dates)


def test_what_came_of_impressions_is_learnt_and_counts(feed: Prepared, tmp_path):
    words = (f"prepared={feed.path}", f"out={tmp_path / 'run'}", "model.co_engagement.rank=0")
    assert train(*words, "model.max_epochs=12", "model.patience=12") == 0
    model = load_two_tower(tmp_path / "run" / "model")
    assert float(model.outcome_towers.weight) > 0
    held = held_out(feed, 1, LABEL_BIT["click"], 1000, 16)
    trend_NK = training_trend(feed).at(0, np.arange(VIDEOS + 1))
    vectors = held_vectors(model, feed, held, trend_NK)
    of_outcomes = slice(model.shape.dim, model.shape.learnt)
    scores = {
        "outcomes": vectors.user_BD[:, of_outcomes] @ vectors.video_ND[:, of_outcomes].T,
        "served": vectors.user_BD @ vectors.video_ND.T,
    }
    user_topic = (np.array([r.user_row for r in held.requests]) - 1) % TOPICS
    video_topic = (np.arange(VIDEOS + 1) - 1) % TOPICS
    for name, score_UN in scores.items():
        top_UK = np.argsort(-score_UN[:, 1:], axis=1)[:, :10] + 1
        assert (video_topic[top_UK] == user_topic[:, None]).mean() > 0.9, name


def test_what_came_is_learnt_where_the_other_towers_learn_nothing_from_what_was_ignored(feed: Prepared):
    recipe = compose("train", [*SMALL, "prepared=x", "out=y"], TrainConfig).model
    model = TwoTower(shape_of(recipe, feed))
    model.ignored_bias = None
    objective = RetrievalObjective(feed, torch.device("cpu"), 0.0, training_trend(feed))
    objective.loss(model, next(build_loader(recipe, feed, 1).epoch())).backward()
    assert model.outcome_towers.video_bias.weight.grad.abs().sum() > 0
