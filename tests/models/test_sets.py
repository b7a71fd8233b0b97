"""The towers of a log without order: what comes first changes nothing, and a state knows its prefix alone."""

import numpy as np
import torch

from models.embeddings import FeatureBatch
from models.inference import collate_steps, embed_catalogue
from tests.models.test_two_tower import history, model_of, user_table, video_table


def states(model, past, user_rows):
    video_ND = torch.from_numpy(embed_catalogue(model, video_table()))
    features = FeatureBatch.of(user_table().take(np.array(user_rows)))
    return model.encode_states(collate_steps(past, 6), video_ND, features).detach()


def test_the_order_of_a_set_changes_nothing():
    model = model_of(use_position=False, use_time=False)
    past, turned = history(5), history(5)
    for name in ("video_row", "actions", "known", "watch_ms", "surface_row"):
        setattr(turned, name, getattr(past, name)[::-1].copy())
    one, two = (states(model, [steps], [1])[:, -1] for steps in (past, turned))
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one, states(model, [history(5, seed=1)], [1])[:, -1])


def test_a_state_is_the_sum_of_its_prefix_over_the_root_of_its_length():
    model = model_of(use_position=False, use_time=False)
    past = history(4)
    video_ND = torch.from_numpy(embed_catalogue(model, video_table()))[:, : model.shape.dim]
    start = states(model, [history(0)], [2])[0, 0]
    for length in range(5):
        total = start + video_ND[past.video_row[:length]].sum(0)
        torch.testing.assert_close(states(model, [past], [2])[0, length], total / (length + 1) ** 0.5)
