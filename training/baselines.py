"""Fit a counting baseline on prepared data: the same targets, splits and validation as the towers."""

import itertools
import time

import numpy as np
from rich.console import Console

from data.atomic import refuse_existing, staged_directory
from data.errors import ConfigError
from data.prepared import Prepared
from data.sequences import Sequences
from data.targets import TargetWeights
from models.baselines import (
    Baseline,
    Engagement,
    fit_ease,
    fit_ials,
    fit_item_knn,
    fit_popularity,
)
from training.checkpoint import Progress
from training.config import (
    BaselineConfig,
    EaseConfig,
    IalsConfig,
    ItemKnnConfig,
    PopularityConfig,
    TrainConfig,
)
from training.run_directory import fingerprint_of, write_run
from training.validation import gain_mask, held_out, rank_scores

#: EASE inverts a dense matrix of this many videos squared: 20,000 take 3.2 GB and minutes.
EASE_LIMIT = 20_000


def train_baseline(config: TrainConfig, recipe: BaselineConfig, prepared: Prepared) -> None:
    """Fit, validate by full ranking, and write the run directory."""
    started = time.monotonic()
    refuse_existing(config.out, overwrite=config.overwrite)
    weights = TargetWeights(dict(recipe.target.weights), recipe.target.impression)
    users = [user for shard in prepared.shards for user in engagements(Sequences.read(shard), weights)]
    if not any(len(user.rows) for user in users):
        named = ", ".join(prepared.tasks) or "none"
        raise ConfigError(
            f"{prepared.name}: no training impression has a true label that model.target weighs "
            f"(labels: {named}); give one of them a weight in model.target.weights, or prepare a log that "
            "says what was liked"
        )
    baseline = fit(recipe, users, len(prepared.catalogue), config.seed)
    baseline.targets = weights
    gain = gain_mask(prepared, recipe.validation.gain)
    held = held_out(prepared, 1, gain, recipe.validation.max_users, 10**6)
    known = [baseline.engaged(request.history) for request in held.requests]
    metrics = rank_scores(held, lambda begin, end: baseline.scores(known[begin:end]), recipe.validation.k)
    metric = f"ndcg@{recipe.validation.k}"
    seconds = time.monotonic() - started
    progress = Progress(seconds=seconds, best_metric=metrics[metric], best_epoch=0, stopped="epochs")
    with staged_directory(config.out, overwrite=config.overwrite) as out:
        baseline.save(out / "model")
        write_run(out, config, prepared, fingerprint_of(config, prepared), progress, metric)
    shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    if not held.requests:
        shown = f"has no user with an unseen positive, so {metric} tells nothing"
    # replay counts popularity itself, over windows that it chooses
    ranked = "" if isinstance(recipe, PopularityConfig) else f" … baselines=[{config.out}]"
    Console().print(
        f"{recipe.name}: validation {shown}, model in {config.out}/model\n"
        f"next: shopreel train model=two_tower prepared={config.prepared} out=RUN, then publish and "
        f"shopreel replay{ranked}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def fit(recipe: BaselineConfig, users: list[Engagement], size: int, seed: int) -> Baseline:
    """The configured counting model over ``size`` catalogue rows."""
    match recipe:
        case PopularityConfig():
            return fit_popularity(users, size)
        case ItemKnnConfig():
            return fit_item_knn(
                users, size, neighbours=recipe.neighbours, shrink=recipe.shrink, recency=recipe.recency
            )
        case EaseConfig():
            if size > EASE_LIMIT:
                raise ConfigError(
                    f"model=ease inverts a matrix of {size} videos squared; above {EASE_LIMIT} use model=ials"
                )
            return fit_ease(users, size, ridge=recipe.ridge)
        case IalsConfig():
            return fit_ials(
                users, size, rank=recipe.rank, ridge=recipe.ridge, confidence=recipe.confidence,
                iterations=recipe.iterations, seed=seed,
            )  # fmt: skip
    raise ConfigError(f"model={recipe.name}: no such baseline")


def engagements(sequences: Sequences, weights: TargetWeights) -> list[Engagement]:
    """What each user row engaged with in the training split."""
    examples = sequences.examples
    weight = weights.of(examples["example_true"])
    keep = np.flatnonzero((examples["example_split"] == 0) & (weight > 0) & (examples["example_video"] > 0))
    bounds = np.searchsorted(sequences.example_rows()[keep], np.arange(sequences.num_rows + 1))
    video, weight = examples["example_video"][keep].astype(np.int64), weight[keep]
    return [Engagement(video[a:b], weight[a:b]) for a, b in itertools.pairwise(bounds)]
