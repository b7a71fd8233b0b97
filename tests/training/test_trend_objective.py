"""The loss under a moving trend: who takes part on a day, and a market that follows fashions alone."""

import numpy as np
import pytest
import torch

from data.compose import compose
from data.prepared import Prepared
from data.trend import training_trend
from models.portable import load_two_tower
from models.two_tower import TwoTower
from tests.data.logs import DAY_MS, at, prepare, write_dataset
from tests.training.running import SMALL, train
from training.config import TrainConfig
from training.retrieval import RetrievalObjective, build_loader, shape_of
from training.retrieval_validation import held_vectors
from training.validation import gain_mask, held_out

DAYS, LASTS, IN_FASHION = 13, 4, 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fashions(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Four videos are in fashion for four days, and a user is shown one of them a day.

    On the first day every video is shown to somebody. One more video appears every day and is forgotten.
    """
    g, shown = np.random.default_rng(0), []
    fashion = g.permutation(DAYS * IN_FASHION).reshape(DAYS, IN_FASHION) + 1
    shown += [(video % 60 + 1, video, 0) for video in fashion.ravel()]
    for day in range(1, DAYS):
        shown += [(user, g.choice(fashion[day // LASTS]), day) for user in range(1, 61)]
        shown.append((day, 1000 + day, day))
    events = [
        {"user_id": int(user), "video_id": int(video), "click": True,
         "event_time": at(int(day) * DAY_MS + 1000 * place)}
        for place, (user, video, day) in enumerate(shown)
    ]  # fmt: skip
    root = tmp_path_factory.mktemp("fashions")
    dates = "split.validation=2026-01-12 split.test=2026-01-13 split.end=2026-01-14"
    return prepare(write_dataset(root / "log", events), root / "prepared", *dates.split())


def objective_of(prepared: Prepared, *further: str):
    recipe = compose("train", [*SMALL, "prepared=x", "out=y", *further], TrainConfig).model
    torch.manual_seed(0)
    model = TwoTower(shape_of(recipe, prepared))
    trend = training_trend(prepared)
    return model, RetrievalObjective(prepared, CPU, 0.0, trend), build_loader(recipe, prepared, 1), trend


@pytest.mark.parametrize("further", [(), ("model.full_softmax_below=1", "model.uniform_negatives=64")])
def test_a_video_that_is_not_out_yet_takes_no_part(fashions: Prepared, further):
    model, objective, loader, trend = objective_of(fashions, *further)
    model.train()
    for batch in loader.epoch():
        day = (batch.query_time_ms_Q - objective.end_ms) // DAY_MS
        early = batch.query_time_ms_Q < objective.end_ms - 5 * DAY_MS
        if not early.any():
            continue
        batch.target_weight_P = batch.target_weight_P * early
        video_VD = model.encode_videos(objective._videos(batch)).detach().requires_grad_()
        model.encode_videos = lambda _, given=video_VD: given
        objective.loss(model, batch).backward()
        later = trend.first_day_N[batch.video_rows] > day[early].max()
        later &= ~np.isin(np.arange(len(batch.video_rows)), batch.video_BS)
        touched = video_VD.grad.abs().sum(1).numpy() > 0
        assert later.any()
        assert not touched[later & (batch.video_rows > 0)].any()
        assert touched[batch.target_video_P[early]].all()
        return
    pytest.fail("no early target")


def test_nothing_but_the_trend_tells_what_comes(fashions: Prepared):
    model, objective, loader, trend = objective_of(fashions)
    held = held_out(fashions, 1, gain_mask(fashions, "any"), 1000, 32)
    rows = np.arange(len(fashions.catalogue))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    model.train()
    for _ in range(2):
        for batch in loader.epoch():
            optimizer.zero_grad()
            objective.loss(model, batch).backward()
            optimizer.step()
    moved = held_vectors(model, fashions, held, trend.at(0, rows)).metrics(4)
    stuck = held_vectors(model, fashions, held, trend.at(-LASTS, rows)).metrics(4)
    # validation is the last day of a fashion
    assert moved["recall@4"] > 0.9
    assert stuck["recall@4"] < moved["recall@4"] - 0.3


def test_the_trend_is_folded_into_the_inner_product(fashions: Prepared):
    """Served score × 1/temperature = learnt part / temperature + weights · trend."""
    model, objective, loader, _ = objective_of(fashions)
    model.log_temperature.data.fill_(0.7)
    batch = next(iter(loader.epoch()))
    seen = {}
    model.finish_users, plain = (lambda *a: seen.setdefault("user", plain(*a))), model.finish_users
    objective.loss(model.eval(), batch)
    user_PD, dim = seen["user"].detach(), model.shape.dim
    weights = model.trend_out.bias.detach() * model.temperature.detach()
    np.testing.assert_allclose(user_PD[:, dim:], weights.expand(len(user_PD), -1), rtol=1e-5)


def test_refitting_keeps_the_trend_weights_that_validation_chose(fashions: Prepared, tmp_path):
    """On the mean over validation's requests, of which the ids of a refitted model know the answers."""
    held = held_out(fashions, 1, gain_mask(fashions, "click"), 1000, 16)
    trend_NK, means = training_trend(fashions).at(0, np.arange(len(fashions.catalogue))), []
    for refit in (0, 2):
        words = [f"model.refit_epochs={refit}", "model.max_epochs=2", f"out={tmp_path / str(refit)}"]
        assert train(f"prepared={fashions.path}", *words) == 0
        model = load_two_tower(tmp_path / str(refit) / "model")
        assert model.trend_shift_K.abs().max() > 1e-3
        vectors = held_vectors(model, fashions, held, trend_NK)
        means.append(vectors.user_BD[:, model.shape.trend_columns].mean(axis=0))
    np.testing.assert_allclose(means[0], means[1], atol=1e-3)
