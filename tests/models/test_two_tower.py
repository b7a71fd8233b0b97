"""The towers: what a state may know, padding, unknown ids, and the portable form."""

import numpy as np
import pytest
import torch

from data.errors import ContractError
from data.features import EncodedTable
from data.history import UserHistory, UserRequest
from data.schema import LABEL_BIT, LABELS
from models.embeddings import FeatureBatch
from models.inference import UserEncoder, collate_steps, embed_catalogue
from models.layers import BlockKind
from models.portable import load_two_tower, save_two_tower
from models.sequence import log_bucket
from models.similarity import Similarity
from models.two_tower import TwoTower, TwoTowerShape

VIDEOS, USERS = 12, 4


def shape(**changes) -> TwoTowerShape:
    base = dict(
        video_rows={"video_id": VIDEOS + 1, "tags": 6}, video_dense={"content": 3}, user_rows={"market": 3},
        user_dense={}, surfaces=2, dim=8, layers=2, heads=2, dropout=0.5, block=BlockKind.ligr, max_steps=6,
        use_time=True, use_position=True, similarity=Similarity.dot, outcomes=True,
        outcome_dim=4,
    )  # fmt: skip
    return TwoTowerShape(**(base | changes))


def video_table() -> EncodedTable:
    offsets = np.arange(VIDEOS + 2, dtype=np.int64)
    rows = np.arange(VIDEOS + 1, dtype=np.int64)
    tags = (
        np.tile([1, 2, 3, 4, 5], 5)[: 2 * VIDEOS],
        np.r_[0, np.arange(0, 2 * VIDEOS + 1, 2)].astype(np.int64),
    )
    dense = np.random.default_rng(0).normal(size=(VIDEOS + 1, 3)).astype(np.float32)
    dense[0] = 0
    return EncodedTable(
        VIDEOS + 1, bags={"video_id": (rows, offsets), "tags": tags}, dense={"content": dense}
    )


def user_table() -> EncodedTable:
    return EncodedTable(
        USERS + 1,
        bags={"market": (np.array([0, 1, 2, 1, 2], np.int64), np.arange(USERS + 2, dtype=np.int64))},
    )


def history(length: int, seed: int = 0) -> UserHistory:
    g = np.random.default_rng(seed)
    return UserHistory(
        video_row=g.integers(1, VIDEOS + 1, length),
        time_ms=np.cumsum(g.integers(0, 10**7, length)),
        actions=np.full(length, LABEL_BIT["click"], np.int32),
        known=np.full(length, LABEL_BIT["click"] | LABEL_BIT["like"], np.int32),
        watch_ms=g.integers(-1, 10**5, length).astype(np.int32),
        surface_row=g.integers(0, 2, length).astype(np.int32),
    )


def model_of(**changes) -> TwoTower:
    torch.manual_seed(0)
    model = TwoTower(shape(**changes))
    for parameter in model.parameters():  # away from the zero initialisations
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def request(length: int, user_row: int = 1, seed: int = 0) -> UserRequest:
    return UserRequest(user_row=user_row, history=history(length, seed), time_ms=10**9, surface_row=0)


def states(model: TwoTower, requests: list[UserRequest]) -> torch.Tensor:
    steps = collate_steps([r.history for r in requests], model.shape.max_steps)
    users = FeatureBatch.of(user_table().take(np.array([r.user_row for r in requests])))
    return model.encode_states(steps, torch.from_numpy(embed_catalogue(model, video_table())), users)


@pytest.mark.parametrize("block", list(BlockKind))
def test_a_state_knows_exactly_the_steps_before_it(block):
    model = model_of(block=block)
    base = request(5)
    before = states(model, [base])
    for changed in range(5):
        other = request(5)
        other.history.video_row[changed] = other.history.video_row[changed] % VIDEOS + 1
        after = states(model, [other])
        same = (before - after).abs().amax(dim=(0, 2)) < 1e-6
        assert same[: changed + 1].all(), "a state saw the future"
        assert not same[changed + 1 :].any(), "a state missed its past"


@pytest.mark.parametrize("block", list(BlockKind))
def test_padding_and_companions_change_nothing(block):
    model = model_of(block=block)
    encoder = UserEncoder(model, user_table(), embed_catalogue(model, video_table()))
    requests = [request(n, user_row=n % 3, seed=n) for n in (0, 1, 4, 6)]
    together = encoder.encode(requests)
    alone = np.concatenate([encoder.encode([r]) for r in requests])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_only_the_newest_steps_are_read():
    model = model_of()
    encoder = UserEncoder(model, user_table(), embed_catalogue(model, video_table()))
    long = request(9)
    short = UserRequest(user_row=1, history=long.history.last(6), time_ms=10**9, surface_row=0)
    np.testing.assert_allclose(encoder.encode([long]), encoder.encode([short]), atol=1e-6)


def test_no_requests_and_an_unknown_user():
    model = model_of()
    encoder = UserEncoder(model, user_table(), embed_catalogue(model, video_table()))
    assert encoder.encode([]).shape == (0, model.shape.width)
    unknown = UserRequest(user_row=0, history=UserHistory.empty(), time_ms=0, surface_row=0)
    assert np.isfinite(encoder.encode([unknown])).all()


def test_outcomes_time_and_surface_are_read():
    model = model_of()
    base = states(model, [request(4)])
    for field, change in (("actions", 0), ("known", 0), ("watch_ms", 1 << 20), ("surface_row", None)):
        other = request(4)
        column = getattr(other.history, field)
        column[1] = 1 - column[1] if change is None else change
        assert (states(model, [other]) - base).abs().max() > 1e-4, field
    later = request(4)
    later.history.time_ms[2:] += 10**9
    assert (states(model, [later]) - base).abs().max() > 1e-4
    assert torch.equal(
        states(model_of(use_time=False), [later]), states(model_of(use_time=False), [request(4)])
    )


def test_a_taste_knows_which_outcome_belonged_to_which_video():
    """The same videos and the same outcomes, dealt out otherwise: another taste, though no mean differs."""
    model = model_of()
    video_ND = torch.from_numpy(embed_catalogue(model, video_table()))[:, : model.shape.dim]
    video_BS = torch.tensor([[3, 7, 5, 9]])
    liked, not_liked = torch.randn(2, 2 * len(LABELS), generator=torch.Generator().manual_seed(1))
    dealt = [torch.stack(rows)[None] for rows in ([liked, liked, not_liked, not_liked],) * 2]
    dealt[1] = dealt[1].flip(1)
    first, second = (model.history.taste(video_ND, video_BS, outcome_BSL) for outcome_BSL in dealt)
    assert first.shape == (1, 5, 8)
    assert not first[:, 0].any()
    assert (first[:, -1] - second[:, -1]).abs().max() > 1e-3


def test_without_differing_outcomes_there_is_no_taste():
    assert model_of(outcomes=False).history.taste is None
    assert model_of(outcomes=False).ignored_bias is None


def test_cosine_towers_return_unit_vectors():
    model = model_of(similarity=Similarity.cosine)
    videos = embed_catalogue(model, video_table())
    users = UserEncoder(model, user_table(), videos).encode([request(3)])
    dim = model.shape.dim
    np.testing.assert_allclose(np.linalg.norm(videos[1:, :dim], axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(users[:, :dim], axis=1), 1.0, atol=1e-5)


def test_catalogue_vectors_do_not_depend_on_the_batch():
    model = model_of()
    whole = embed_catalogue(model, video_table())
    np.testing.assert_allclose(embed_catalogue(model, video_table(), batch=5), whole, atol=1e-6)


def test_log_buckets_of_the_docstring():
    values = torch.tensor([-1, 0, 1, 2, 3, 4, 7, 8, 10**15])
    assert log_bucket(values, 24).tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 23]


def test_portable_round_trip_and_refusals(tmp_path):
    model = model_of()
    save_two_tower(model, tmp_path, spec_hash="x")
    loaded = load_two_tower(tmp_path)
    np.testing.assert_array_equal(
        embed_catalogue(loaded, video_table()), embed_catalogue(model, video_table())
    )
    record = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(record.replace('"dim": 8', '"dim": 16'))
    with pytest.raises(ContractError, match="shape disagree"):
        load_two_tower(tmp_path)
    (tmp_path / "model.json").write_text(record.replace('"format_version": 5', '"format_version": 99'))
    with pytest.raises(ContractError, match="format 99"):
        load_two_tower(tmp_path)
    (tmp_path / "model.json").write_text(record)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ContractError, match="train and publish again"):
        load_two_tower(tmp_path)
