"""The linear model beside trained towers: validation weighs it, and what it chose is what is served."""

import json

import numpy as np
import pytest

from data.compose import compose
from data.schema import LABEL_BIT
from models.inference import embed_catalogue, final_vectors
from models.portable import load_two_tower
from tests.training.running import SMALL, train
from tests.training.worlds import checkerboard
from training.co_engagement import LEAST_GAIN, CoEngagementFit
from training.config import TrainConfig, TwoTowerConfig
from training.retrieval_validation import HeldVectors, held_vectors
from training.validation import held_out

USERS, VIDEOS, STEPS, K = 60, 40, 12, 5
GAIN = LABEL_BIT["click"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return checkerboard(tmp_path_factory.mktemp("c") / "p", users=USERS, videos=VIDEOS, steps=STEPS)


def beside(prepared, *words: str) -> CoEngagementFit:
    recipe = compose("train", [*SMALL, f"prepared={prepared.path}", "out=x", *words], TrainConfig).model
    assert isinstance(recipe, TwoTowerConfig)
    return CoEngagementFit(recipe, prepared, seed=1)


def towers(prepared, user_of) -> HeldVectors:
    """Towers of which user vector u and the videos' one-hot vectors give scores ``user_of(truth)``."""
    held = held_out(prepared, 1, GAIN, 1000, 16)
    user_BD = np.stack([user_of(truth) for truth in held.truth]).astype(np.float32)
    return HeldVectors(held, len(held.truth), user_BD, np.eye(VIDEOS + 1, dtype=np.float32))


def noise(prepared) -> HeldVectors:
    g = np.random.default_rng(0)
    return towers(prepared, lambda _: g.normal(size=VIDEOS + 1))


def test_it_is_chosen_where_towers_know_nothing_and_not_where_they_know_all(prepared):
    choice = beside(prepared).choose(noise(prepared), K)
    alone = noise(prepared).metrics(K)
    assert choice.rank > 0
    assert choice.metrics[f"ndcg@{K}"] > LEAST_GAIN * alone[f"ndcg@{K}"]
    perfect = towers(prepared, lambda truth: 9.0 * np.isin(np.arange(VIDEOS + 1), truth))
    choice = beside(prepared).choose(perfect, K)
    assert (choice.rank, choice.share, choice.metrics[f"ndcg@{K}"]) == (0, 0.0, 1.0)
    assert beside(prepared).weighed(choice, perfect, splits=1) is None


@pytest.mark.parametrize("words", ["model.co_engagement.rank=0", "model.co_engagement.max_videos=39"])
def test_it_can_be_left_out(prepared, words):
    assert not beside(prepared, words).wanted
    assert beside(prepared).wanted


def test_what_was_chosen_is_what_is_served(prepared, tmp_path):
    """The portable model has validation's metrics to the last digit, and its record says so."""
    # towers that have learnt next to nothing: the linear model helps
    words = ("model.max_epochs=1", "model.optimizer.learning_rate=1e-6", "model.co_engagement.rank=16")
    assert train(f"prepared={prepared.path}", f"out={tmp_path}/run", f"model.validation.k={K}", *words) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    model = load_two_tower(tmp_path / "run" / "model")
    assert model.shape.co_engagement == record["co_engagement"]["rank"] > 0
    held = held_out(prepared, 1, GAIN, 1000, 16)
    metrics = held_vectors(model, prepared, held).metrics(K)
    assert metrics[f"ndcg@{K}"] == pytest.approx(record["best"]["value"], abs=1e-6)
    learnt_ND = embed_catalogue(model, prepared.video_table)
    video_ND = final_vectors(model, prepared.video_table, learnt_ND, None)
    assert video_ND.shape == (VIDEOS + 1, model.shape.width)
    assert not video_ND[0, model.shape.learnt :].any()


def test_refitting_counts_validation_too(prepared):
    """The served linear model was fitted on the validation click, and not on the test click."""
    seen = [beside(prepared)._directions(splits).singular_C for splits in (1, 2)]
    assert (seen[1] ** 2).sum() > (seen[0] ** 2).sum()
    one, two = (beside(prepared)._directions(splits).vectors(8) for splits in (1, 2))
    assert not np.allclose(np.abs(one), np.abs(two))
