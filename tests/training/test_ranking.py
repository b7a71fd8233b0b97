"""Training the ranker: no leak, heads teach what is shared, chance stays chance, equal seeds equal bits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import shopreel
from data.prepared import Prepared
from data.ranking_loader import RankingLoader, build_features, requests_of
from data.sequences import Sequences
from models.embeddings import FeatureBatch
from models.ranker import Ranker
from tests.data.logs import DAY_MS, at, prepare, write_dataset
from training.model_config import OptimizerConfig
from training.placement import OneProcess, Task
from training.ranker_start import begin, shape_of, watch_bins
from training.ranking import update_rule
from training.ranking_config import CalibrationKind, RankerConfig, ValueConfig
from training.ranking_objective import RankingObjective
from training.ranking_validation import PurchaseLoader, auc

SPLIT = ["split.validation=2026-01-05", "split.test=2026-01-06"]
SMALL = ["model.dim=8", "model.width=16", "model.field_dim=4", "model.hidden=8", "model.cross_rank=8",
         "model.max_steps=12", "model.watch_bins=4", "model.watch_groups=2", "model.batch_size=128",
         "threads=1"]  # fmt: skip


@pytest.fixture(scope="module")
def coin_world(tmp_path_factory):
    """A log in which every outcome is a toss of a coin: whoever predicts it has seen it."""
    folder = tmp_path_factory.mktemp("coins")
    g = np.random.default_rng(11)
    events = [
        {
            "user_id": user, "video_id": int(g.integers(1, 40)), "surface": ("feed", "search")[g.integers(2)],
            "event_time": at(int(g.integers(0, 6 * DAY_MS))), "watch_ms": int(g.integers(0, 9000)),
            "position": int(g.integers(0, 5)), "click": bool(click := g.random() < 0.5),
            "product_click": bool(click and g.random() < 0.5), "purchase": bool(g.random() < 0.3),
            "order_value_minor": int(g.integers(100, 900)),
        }
        for user in range(1, 101)
        for _ in range(50)
    ]  # fmt: skip
    videos = [{"video_id": v, "creator_id": v % 7, "duration_ms": 10_000} for v in range(1, 40)]
    dataset = write_dataset(folder / "dataset", events, videos=videos)
    return prepare(dataset, folder / "prepared", *SPLIT)


def train(prepared: Prepared, out, *overrides: str):
    shopreel.run_command(
        "train",
        ["model=ranker", f"prepared={prepared.path}", f"out={out}", "model.max_epochs=2", *SMALL, *overrides],
    )
    return out


def recipe() -> RankerConfig:
    return RankerConfig(
        name="ranker", field_dim=4, dim=8, width=16, heads=2, tastes=3, cross_layers=2, cross_rank=8,
        experts=3, hidden=8, dropout=0.0, id_dropout=0.0, id_rows=20, max_steps=12, attention_steps=8,
        half_life_days=[3.0], watch_bins=4, watch_groups=2, watch_weight=1.0,
        order_weight=1.0, counterfactual_weight=0.0,
        calibration=CalibrationKind.platt, train_days=0, batch_size=256, max_epochs=1, patience=1,
        value=ValueConfig(version="1", watch_s=0.0, gmv=0.0, tasks={}),
    )  # fmt: skip


def test_labels_of_chance_are_not_predicted_and_equal_seeds_give_equal_bits(coin_world, tmp_path):
    first, second = (train(coin_world, tmp_path / name) for name in ("a", "b"))
    for name in ("model.safetensors", "counts.safetensors", "calibration.json"):
        assert (first / "model" / name).read_bytes() == (second / "model" / name).read_bytes()
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    found = [line["validation/auc/click"] for line in lines if "validation/auc/click" in line]
    assert len(found) == 2
    assert all(abs(value - 0.5) < 0.06 for value in found)


def test_an_example_sees_nothing_of_its_own_moment_or_later(coin_world):
    features = build_features(coin_world, half_life_days=(3.0,), max_steps=12)
    sequences = Sequences.read(coin_world.shards[0])
    chosen = np.arange(len(sequences.examples["example_video"]))
    requests = requests_of(sequences, chosen, 12)
    valid = np.arange(requests.video.shape[1]) < requests.length[:, None]
    assert (requests.step_time_ms < requests.time_ms[:, None])[valid].all()
    before = features.impressions(sequences, chosen)
    for column in ("example_true", "example_known", "example_watch_ms"):
        sequences.examples[column] = np.zeros_like(sequences.examples[column])
    after = features.impressions(sequences, chosen)
    np.testing.assert_array_equal(before.user_statistics_BF, after.user_statistics_BF)
    np.testing.assert_array_equal(before.candidate_statistics_BG, after.candidate_statistics_BG)


def test_every_heads_loss_reaches_what_is_shared(coin_world):
    settings = recipe()
    features = build_features(coin_world, half_life_days=(3.0,), max_steps=12)
    loader = RankingLoader(coin_world, features, split=0, batch_size=256, seed=1)
    bins = watch_bins(settings, coin_world, loader)
    torch.manual_seed(0)
    model = Ranker(shape_of(settings, coin_world, features, bins))
    assert model.shape.tasks == ("click", "product_click", "purchase")
    assert model.shape.parents == (-1, 0, -1), "the log sells without a click: no funnel there"
    objective = RankingObjective.of(coin_world, features, bins, settings, torch.device("cpu"))
    batch = next(loader.epoch())
    heads = list(objective.losses(model, batch))
    assert heads == ["click", "product_click", "purchase", "watch", "order_value"]
    shared = ("videos.out", "attention.query", "attention.key_value", "user_first", "candidate_first",
              "cross.down.0", "cross.up.1", "experts.experts", "experts.gates", "surface_embedding",
              "outcome", "recency_embedding")  # fmt: skip
    for head in heads[:-1]:
        model.zero_grad()
        objective.losses(model, batch)[head].backward()
        silent = [
            name
            for name, parameter in model.named_parameters()
            if name.startswith(shared) and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
        ]
        assert not silent, f"{head} teaches nothing to {', '.join(silent)}"
    # few impressions know an order's value: it must not bend what all heads read
    model.zero_grad()
    objective.losses(model, batch)["order_value"].backward()
    taught = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert taught == {"order_out.weight", "order_out.bias", "order_products"}


def test_positions_are_a_bias_of_training_alone(coin_world):
    settings = recipe()
    features = build_features(coin_world, half_life_days=(3.0,), max_steps=12)
    loader = RankingLoader(coin_world, features, split=0, batch_size=64, seed=1)
    bins = watch_bins(settings, coin_world, loader)
    model = Ranker(shape_of(settings, coin_world, features, bins))
    assert model.shape.positions == 5
    unknown = model.position_embedding(torch.zeros(1, dtype=torch.int64))
    assert (unknown == 0).all()


def test_before_its_first_step_every_head_says_its_base_rate(coin_world):
    settings = recipe()
    features = build_features(coin_world, half_life_days=(3.0,), max_steps=12)
    loader = RankingLoader(coin_world, features, split=0, batch_size=256, seed=1)
    model = Ranker(shape_of(settings, coin_world, features, watch_bins(settings, coin_world, loader)))
    begin(model, RankingLoader(coin_world, features, split=0, batch_size=256, seed=1))
    click, product_click, purchase = features.spec.base_rate
    bias = torch.sigmoid(model.user_linear.bias.detach()).tolist()
    assert bias == pytest.approx([click, product_click / click, purchase], rel=1e-4)
    logs = np.log(np.arange(100, 900))
    assert float(model.order_mean[0]) == pytest.approx(logs.mean(), rel=0.02)
    assert float(model.order_scale) == pytest.approx(logs.std(), rel=0.05)
    statistics = torch.zeros(1, 1, model.shape.candidate_statistics)
    wild = model._order(torch.full((1, 1, settings.hidden), 1e6), statistics, model.order_mean[:1]).detach()
    assert torch.isfinite(wild).all()
    assert float(wild[0, 0, 0]) <= logs.mean() + 3.1 * logs.std()


def test_before_its_first_step_the_order_head_knows_what_prices_say(tmp_path):
    g = np.random.default_rng(7)
    price = np.exp(g.normal(7, 0.8, 60)).astype(int)
    events = [
        {
            "user_id": user, "video_id": (video := int(g.integers(1, 61))), "click": bool(g.random() < 0.5),
            "event_time": at(int(g.integers(0, 6 * DAY_MS))), "purchase": bool(g.random() < 0.2),
            "order_value_minor": int(price[video - 1] * g.lognormal(0, 0.2)),
        }
        for user in range(1, 51)
        for _ in range(40)
    ]  # fmt: skip
    world = prepare(
        write_dataset(
            tmp_path / "d", events,
            videos=[{"video_id": v, "duration_ms": 10_000, "product_ids": [v]} for v in range(1, 61)],
            products=[{"product_id": v, "price_minor": int(price[v - 1]), "currency": "EUR"}
                      for v in range(1, 61)],
        ), tmp_path / "p", *SPLIT,
    )  # fmt: skip
    settings = recipe()
    features = build_features(world, half_life_days=(3.0,), max_steps=12)
    loader = RankingLoader(world, features, split=0, batch_size=256, seed=1)
    model = Ranker(shape_of(settings, world, features, watch_bins(settings, world, loader)))
    begin(model, loader)
    held = next(PurchaseLoader(world, features, split=2, batch_size=4096, seed=0, shuffle=False).epoch())
    statistics = model.scaled_candidate(torch.from_numpy(held.candidate_statistics_BG))[:, None]
    said = model._order(
        torch.zeros(held.examples, 1, settings.hidden), statistics, model.order_mean[held.requests.market]
    )
    paid = np.log(held.order_value_B)
    assert np.std(paid) > 0.7
    error = said[:, 0, 0].detach().numpy() - paid
    assert np.std(error) < 0.4
    assert float(said[:, 0, 1].detach().exp().mean()) == pytest.approx(np.std(error), rel=0.25)


def test_values_of_large_features_are_hidden_in_the_stated_share(coin_world):
    settings = recipe()
    settings.id_dropout = 0.7
    features = build_features(coin_world, half_life_days=(3.0,), max_steps=12)
    objective = RankingObjective.of(coin_world, features, None, settings, torch.device("cpu"))
    assert objective.rare >= {"video_id"}
    assert "video_creator_id" not in objective.rare, "seven creators are not many"
    table = FeatureBatch.of(coin_world.video_table.take(np.arange(1, 40).repeat(100)))
    hidden = objective.hide_ids(table)
    shown = {name: (values > 0).float().mean() for name, (values, _) in hidden.bags.items()}
    assert float(shown["video_id"]) == pytest.approx(0.3, abs=0.03)
    assert float(shown["video_creator_id"]) == 1.0
    # a row shows all of them or none
    objective.rare |= {"video_creator_id"}
    hidden = objective.hide_ids(table)
    videos, creators = (hidden.bags[name][0] > 0 for name in ("video_id", "video_creator_id"))
    assert torch.equal(videos, creators)


def test_auc_counts_ties_half():
    assert auc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, True, False, True])) == pytest.approx(0.875)


def test_a_log_of_positives_alone_is_refused(tmp_path, capsys):
    events = [
        {"user_id": u, "video_id": v, "event_time": at((u + v) * DAY_MS // 4), "click": True}
        for u in range(1, 5)
        for v in range(1, 20)
    ]
    prepared = prepare(write_dataset(tmp_path / "d", events), tmp_path / "p", *SPLIT)
    code = shopreel.main(["train", "model=ranker", f"prepared={prepared.path}", f"out={tmp_path / 'run'}"])
    assert code == 2
    assert "no label is known both true and false" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dear_order_makes_no_other_head_learn_less(coin_world):
    settings = recipe()
    settings.optimizer = OptimizerConfig(
        learning_rate=0.001, weight_decay=0.1, dense_table_rows=1000, table_learning_rate=0.02,
        warmup_steps=1, clip_norm=1.0,
    )  # fmt: skip
    features = build_features(coin_world, half_life_days=(3.0,), max_steps=12)
    loader = RankingLoader(coin_world, features, split=0, batch_size=64, seed=1)
    bins = watch_bins(settings, coin_world, loader)
    torch.manual_seed(0)
    model = Ranker(shape_of(settings, coin_world, features, bins))
    begin(model, RankingLoader(coin_world, features, split=0, batch_size=256, seed=1))
    objective = RankingObjective.of(coin_world, features, bins, settings, torch.device("cpu"))
    placement = OneProcess(Task(model, lambda batch: objective.loss(model, batch)), update_rule(settings))
    batch = next(loader.epoch())
    found = []
    for times in (1, 10**6):
        model.zero_grad()
        torch.manual_seed(1)
        placement.loss(replace(batch, order_value_B=batch.order_value_B * times)).backward()
        placement.optimizers.clip(0.1)
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    order = {name for name in found[0] if name.startswith("order_")}
    assert order
    norm = torch.stack([gradient.norm() for name, gradient in found[0].items() if name not in order]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-3)
    for name in found[0].keys() - order:
        assert torch.equal(found[0][name], found[1][name]), name
    assert found[1]["order_out.bias"].norm() > 3 * found[0]["order_out.bias"].norm()
