"""What a ranker is before its first step: shape, watch bins, scales and biases, from data and recipe."""

import math
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from data.prepared import Prepared
from data.ranking_loader import RankingFeatures, RankingLoader, funnel_parents
from data.schema import LABEL_BIT
from data.sequences import Sequences
from models.devices import to_device
from models.embeddings import dense_widths, table_rows
from models.ranker import Ranker, RankerShape
from models.watch import WatchBins
from training.ranking_config import RankerConfig
from training.ranking_validation import PurchaseLoader

#: Batches from which the scale of the statistics is taken.
SCALE_BATCHES = 32
#: Purchases that a market needs before its mean order value counts for half.
ORDER_PRIOR = 3.0
#: Batches of purchases from which the order head takes what prices say, and its belief that they say nothing.
ORDER_BATCHES, ORDER_RIDGE = 8, 10.0


def watch_bins(recipe: RankerConfig, prepared: Prepared, loader: RankingLoader) -> WatchBins | None:
    """Quantiles of watch time by duration over the training impressions; None without any."""
    duration, watch = [], []
    for shard in prepared.shards:
        sequences = Sequences.read(shard)
        chosen = loader.chosen(sequences)
        watched = sequences.examples["example_watch_ms"][chosen].astype(np.int64)
        seen = watched >= 0
        duration.append(prepared.video_raw["duration_ms"][sequences.examples["example_video"][chosen][seen]])
        watch.append(watched[seen])
    watches = np.concatenate(watch)
    if len(watches) < recipe.watch_bins or recipe.watch_bins < 2:
        return None
    return WatchBins.fit(np.concatenate(duration), watches, recipe.watch_groups, recipe.watch_bins)


def shape_of(
    recipe: RankerConfig, prepared: Prepared, features: RankingFeatures, bins: WatchBins | None
) -> RankerShape:
    """The model's shape: tables from the ``FeatureSpec``, heads from what the log knows."""
    spec = features.spec
    order_values = positions = 0
    for shard in prepared.shards:
        examples = Sequences.read(shard).examples
        train = examples["example_split"] == 0
        bought = (examples["example_true"] & LABEL_BIT["purchase"]) > 0
        order_values += int((train & bought & (examples["example_order_value_minor"] > 0)).sum())
        positions = max(positions, int(examples["example_position"][train].max(initial=-1)) + 1)
    return RankerShape(
        video_rows=table_rows(prepared.spec, "video"), video_dense=dense_widths(prepared.spec, "video"),
        user_rows=table_rows(prepared.spec, "user"), user_dense=dense_widths(prepared.spec, "user"),
        surfaces=len(prepared.surfaces), markets=len(prepared.markets), tasks=spec.tasks,
        parents=funnel_parents(prepared, spec.tasks), watch_bins=0 if bins is None else bins.mean_ms.shape[1],
        watch_groups=0 if bins is None else len(bins.mean_ms),
        order_value="purchase" in spec.tasks and order_values > 0, order_columns=spec.product_columns,
        positions=min(positions, 200),
        user_statistics=len(spec.user_names), candidate_statistics=len(spec.candidate_names),
        field_dim=recipe.field_dim, dim=recipe.dim, width=recipe.width, heads=recipe.heads,
        tastes=recipe.tastes, cross_layers=recipe.cross_layers, cross_rank=recipe.cross_rank,
        experts=recipe.experts, hidden=recipe.hidden, dropout=recipe.dropout,
        attention_steps=min(recipe.attention_steps, recipe.max_steps),
        use_time=spec.use_time,
    )  # fmt: skip


def heads_of(shape: RankerShape) -> list[str]:
    """Names of all heads; a funnel step names what it is conditional on."""
    names = [
        task if parent < 0 else f"{task}|{shape.tasks[parent]}"
        for task, parent in zip(shape.tasks, shape.parents, strict=True)
    ]
    return [*names, *["watch"] * (shape.watch_bins > 0), *["order_value"] * shape.order_value]


@torch.no_grad()
def begin(model: Ranker, loader: RankingLoader) -> None:
    """Bring every statistic to mean 0 and variance 1 over the first batches, every head to its base rate (or
    its ratio to that of the step before), and order values to those of training.
    """
    users, candidates = [], []
    for number, batch in enumerate(loader.epoch()):
        if number == SCALE_BATCHES:
            break
        users.append(batch.user_statistics_BF)
        candidates.append(batch.candidate_statistics_BG)
    for name, parts in (("user", users), ("candidate", candidates)):
        values = np.concatenate(parts).astype(np.float64)
        scale = 1.0 / np.maximum(values.std(0), 1e-3)
        getattr(model, f"{name}_mean").copy_(torch.from_numpy(values.mean(0)))
        getattr(model, f"{name}_scale").copy_(torch.from_numpy(scale))
    if model.order_out is not None:
        values, markets = _order_values(loader.prepared)
        values = np.log(values)
        bought = np.bincount(markets, minlength=model.shape.markets)
        total = np.bincount(markets, values, model.shape.markets) + ORDER_PRIOR * values.mean()
        mean = total / (bought + ORDER_PRIOR)
        model.order_mean.copy_(torch.from_numpy(mean))
        model.order_scale.fill_(float(np.clip((values - mean[markets]).std(), 0.1, 1.5)))
        _begin_order_head(model, loader)
    rate = loader.features.spec.base_rate
    for place, parent in enumerate(model.shape.parents):
        own = rate[place] / rate[parent] if parent >= 0 else rate[place]
        model.user_linear.bias[place] = math.log(own / max(1.0 - own, 1e-3))


def _begin_order_head(model: Ranker, loader: RankingLoader) -> None:
    """Ridge regression of order values on what is known of the products: steps of gradient alone, each from
    the few purchases of a batch, would not get there within a few epochs.
    """
    assert model.order_out is not None
    device = model.order_mean.device
    purchases = PurchaseLoader(loader.prepared, loader.features, split=0, batch_size=4096, seed=loader.seed)
    columns, targets = [], []
    for batch in islice(purchases.epoch(), ORDER_BATCHES):
        statistics = model.scaled_candidate(to_device(batch.candidate_statistics_BG, device))
        columns.append(statistics[:, slice(*model.shape.order_columns)].double())
        mean = model.order_mean[to_device(batch.requests.market, device)]
        targets.append((to_device(batch.order_value_B, device).double().log() - mean) / model.order_scale)
    if not targets:
        return
    x_NP, y_N = torch.cat(columns), torch.cat(targets)
    centre_P, middle = x_NP.mean(0), y_N.mean()
    x_NP, y_N = x_NP - centre_P, y_N - middle
    gram_PP = x_NP.T @ x_NP + ORDER_RIDGE * torch.eye(x_NP.shape[1]).to(x_NP)
    weight_P = torch.linalg.solve(gram_PP, x_NP.T @ y_N)
    spread = (y_N - x_NP @ weight_P).square().mean().sqrt().clamp_min(0.1)
    model.order_products[0] = weight_P
    model.order_out.bias.copy_(torch.stack([middle - centre_P @ weight_P, spread.log()]))


def _order_values(prepared: Prepared) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Values above 0 of training's purchases, in minor units, and the row of each one's market."""
    found, markets = [], []
    for shard in prepared.shards:
        examples = Sequences.read(shard).examples
        value = examples["example_order_value_minor"]
        bought = (examples["example_true"] & LABEL_BIT["purchase"]) > 0
        chosen = (examples["example_split"] == 0) & bought & (value > 0)
        found.append(value[chosen].astype(np.float64))
        markets.append(examples["example_market"][chosen].astype(np.int64))
    return np.concatenate(found), np.concatenate(markets)
