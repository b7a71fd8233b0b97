"""The outcome towers: their place in the vectors, what a moment may know, and features they leave out."""

import numpy as np
import torch

from models.embeddings import FeatureBatch
from models.inference import UserEncoder, collate_steps, embed_catalogue
from models.two_tower import TwoTower
from tests.models.test_two_tower import history, request, shape, user_table, video_table

DIM, OUTCOME = 8, 4


def model_of(weight: float, **changes) -> TwoTower:
    torch.manual_seed(0)
    model = TwoTower(shape(dim=DIM, outcome_dim=OUTCOME, trend=2, **changes)).eval()
    for parameter in model.outcome_towers.parameters():  # layers that begin as nothing too
        torch.nn.init.normal_(parameter, std=0.3)
    model.outcome_towers.weight.fill_(weight)
    return model


def log_odds(model: TwoTower, length: int) -> np.ndarray:
    """Of the catalogue for a user with so many steps, from the pieces."""
    towers = model.outcome_towers
    with torch.no_grad():
        video_NE = towers.videos(FeatureBatch.of(video_table()))
        features = FeatureBatch.of(user_table().take(np.array([request(length).user_row])))
        states_BSE = towers.states(collate_steps([history(length)], 6), video_NE, features)
        return (towers.users(states_BSE[:, length]) @ video_NE.T)[0].numpy()


def scores(model: TwoTower, length: int) -> np.ndarray:
    learnt_NL = embed_catalogue(model, video_table())
    final_NX = np.concatenate([learnt_NL, np.ones((len(learnt_NL), 2), np.float32)], axis=1)
    users = UserEncoder(model, user_table(), final_NX).encode([request(length)])
    assert users.shape == (1, model.shape.width) == (1, DIM + OUTCOME + 1 + 2)
    return (users @ final_NX.T)[0]


def test_log_odds_times_their_weight_are_added_to_the_score():
    for length in (0, 1, 4):
        without, twice = scores(model_of(0.0), length), scores(model_of(2.0), length)
        expected = 2.0 * log_odds(model_of(2.0), length)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(twice - without, expected, rtol=1e-3, atol=1e-5)


def test_a_moment_knows_what_came_of_the_steps_before_it_and_no_more():
    model = model_of(1.0)
    towers = model.outcome_towers
    video_NE = towers.videos(FeatureBatch.of(video_table()))
    features = FeatureBatch.of(user_table().take(np.array([1])))
    past, other = collate_steps([history(6)], 6), collate_steps([history(6)], 6)
    other.actions_BS[0, 3] = 0
    one, two = (towers.states(steps, video_NE, features) for steps in (past, other))
    assert torch.equal(one[0, :4], two[0, :4])
    assert (one[0, 4:] - two[0, 4:]).abs().max(1).values.min() > 1e-4


def test_features_whose_rows_the_model_hands_out_or_of_too_many_rows_are_left_out():
    towers = model_of(1.0, managed=("video_id",)).outcome_towers
    assert towers.video_tower.tables.names == ["tags"]
    huge = TwoTower(shape(outcome_dim=2, video_rows={"video_id": 500_001, "tags": 6})).outcome_towers
    assert huge.video_tower.tables.names == ["tags"]
    assert TwoTower(shape(outcome_dim=0)).outcome_towers is None
