"""Which ids are hidden in a training step: rare ones more often, and by content alone where there is some."""

import numpy as np
import pytest
import torch

from models.embeddings import FeatureBatch
from tests.training.worlds import checkerboard
from training.retrieval import RARE, VIDEO_ID, RetrievalObjective, hidden_share

CPU = torch.device("cpu")


def test_rare_ids_are_hidden_more():
    share = hidden_share(0.1, np.array([0, RARE, 1e9]))
    assert share.tolist() == pytest.approx([1.0, 0.55, 0.1], abs=1e-6)


def test_each_video_is_hidden_as_often_as_its_share(tmp_path):
    prepared = checkerboard(tmp_path / "p")
    prepared.video_train_count[1:] = np.where(np.arange(len(prepared.video_train_count) - 1) % 2, 10**9, 3)
    objective = RetrievalObjective(prepared, CPU, 0.1, None)
    rows = np.array([5, 2, 9, 0, 4, 7])  # not in order, the unknown video among them
    features = FeatureBatch.of(prepared.video_table.take(rows))
    before = features.bags[VIDEO_ID][0].clone()
    torch.manual_seed(0)
    times, hidden = 4000, 0
    for _ in range(times):
        values, offsets = objective._hide_ids(features, rows).bags[VIDEO_ID]
        hidden += (values != before).float()
    assert torch.equal(features.bags[VIDEO_ID][0], before)
    known = before > 0
    expected = torch.from_numpy(hidden_share(0.1, prepared.video_train_count)[rows])
    expected = expected.repeat_interleave(offsets.diff())
    assert (hidden / times)[known].numpy() == pytest.approx(expected[known].numpy(), abs=0.03)
    assert len(set(np.round(expected[known].numpy(), 3))) == 2


def test_without_dropout_or_content_nothing_is_hidden(tmp_path):
    prepared = checkerboard(tmp_path / "p")
    assert RetrievalObjective(prepared, CPU, 0.0, None).hidden_share_N is None
    for name in [name for name in prepared.video_table.bags if name != VIDEO_ID]:
        del prepared.video_table.bags[name]
    assert RetrievalObjective(prepared, CPU, 0.1, None).hidden_share_N is None
