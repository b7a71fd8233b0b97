"""Bags in TorchRec's form, and the names that parameters keep (parity of whole runs is in test_parity)."""

import itertools

import numpy as np
import pytest
import torch

from models.embeddings import FeatureBatch

pytestmark = pytest.mark.slow  # torchrec takes seconds to import


def bags_of(lists: dict[str, list[list[int]]]) -> FeatureBatch:
    bags = {
        name: (
            torch.tensor([row for bag in rows for row in bag], dtype=torch.int64),
            torch.tensor(np.r_[0, np.cumsum([len(bag) for bag in rows])], dtype=torch.int64),
        )
        for name, rows in lists.items()
    }
    return FeatureBatch(bags, {}, len(next(iter(lists.values()))))


def test_the_example_of_the_docstring():
    from training.torchrec_tables import to_jagged

    features = bags_of({"video_tags": [[3, 5], []], "video_creator": [[7], [8]]})
    jagged = to_jagged(features, ["video_tags", "video_creator"], 2)
    assert jagged.keys() == ["video_tags", "video_creator"]
    assert jagged.values().tolist() == [3, 5, 7, 8]
    assert jagged.lengths().tolist() == [2, 0, 1, 1]
    padded = to_jagged(features, ["video_tags", "video_creator"], 3)
    assert padded.values().tolist() == [3, 5, 7, 8]
    assert padded.lengths().tolist() == [2, 0, 0, 1, 1, 0]


def test_features_follow_the_names_and_no_bag_is_mixed():
    from training.torchrec_tables import to_jagged

    g = np.random.default_rng(1)
    lists = {name: [g.integers(0, 99, g.integers(0, 4)).tolist() for _ in range(5)] for name in "abc"}
    jagged = to_jagged(bags_of(lists), ["c", "a", "b"], 5)
    assert len(jagged.lengths()) == 3 * 5
    assert int(jagged.lengths().sum()) == len(jagged.values())
    for name, rows in lists.items():
        values, offsets = jagged[name].values().tolist(), jagged[name].offsets().tolist()
        assert [values[a:b] for a, b in itertools.pairwise(offsets)] == rows


def test_names_of_the_portable_model():
    from training.torchrec_tables import plain_name

    assert plain_name("video_tower.tables.collection.embedding_bags.video_id.weight") == (
        "video_tower.tables.weights.video_id"
    )
    assert plain_name("user_out.weight") == "user_out.weight"
