"""``shopreel train``: prepared data → a trained model, its checkpoints and its metrics.

Reads like a story: join the other processes, open the data, build the model, restore, train, say what
to run next.
"""

import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from data.atomic import staged_directory
from data.errors import ConfigError
from data.loader import SequenceLoader
from data.prepared import Prepared
from data.trend import has_trend, training_trend
from models.portable import save_weights
from models.two_tower import TwoTower
from training.baselines import train_baseline
from training.checkpoint import Progress, load_checkpoint
from training.config import BaselineConfig, TableKind, TrainConfig, TwoTowerConfig
from training.distributed import RankLostError, Ranks, open_ranks
from training.loop import Budget, Parts, fit, is_over
from training.placement import Task, UpdateRule, place, tables_factory
from training.precision import set_products, stepping
from training.process import part_ways, start_process, wants_cuda
from training.ranking import train_ranker
from training.ranking_config import RankerConfig
from training.retrieval import RetrievalObjective, build_loader, shape_of, validate
from training.run_directory import fingerprint_of, open_log, open_run, write_run
from training.validation import HeldOut, gain_mask, held_out

CONFIG = TrainConfig


def run(config: TrainConfig) -> int:
    """Train the configured model; 1 where the job lost one of its processes, else 0."""
    connect, cuda = config.tables is TableKind.torchrec, wants_cuda(config.device)
    try:
        with open_ranks(connect=connect, cuda=cuda, timeout_minutes=config.timeout_minutes) as ranks:
            prepared = Prepared.open(config.prepared)
            match config.model:
                case TwoTowerConfig():
                    train_two_tower(config, config.model, prepared, ranks)
                case _ if ranks.world > 1:
                    raise ConfigError(
                        f"model={config.model.name} trains in one process; start it without torchrun"
                    )
                case RankerConfig():
                    train_ranker(config, config.model, prepared)
                case BaselineConfig():
                    train_baseline(config, config.model, prepared)
                case _:
                    raise ConfigError(f"model={config.model.name}: no such model")
    except RankLostError as lost:
        print(f"shopreel train: {lost}", file=sys.stderr)
        return 1
    return 0


def train_two_tower(config: TrainConfig, recipe: TwoTowerConfig, prepared: Prepared, ranks: Ranks) -> None:
    """Train a two-tower model into ``config.out``."""
    sharded = _sharded(config.tables, ranks)
    device = start_process(config.seed, config.device, config.threads, ranks)
    precision = config.precision.on(device)
    set_products(precision)
    shape = shape_of(recipe, prepared)
    rule = UpdateRule(
        learning_rate=recipe.optimizer.learning_rate,
        weight_decay=recipe.optimizer.weight_decay,
        dense_table_rows=recipe.optimizer.dense_table_rows,
        table_learning_rate=recipe.optimizer.table_learning_rate,
    )
    loader, held = _data(config, recipe, prepared, ranks)
    fingerprint = fingerprint_of(config, prepared, ranks.world)
    out = Path(config.out)
    ranks.on_lead(lambda: open_run(config, prepared, fingerprint))

    tables = tables_factory(ranks, sharded=sharded, dense_table_rows=rule.dense_table_rows)
    model = TwoTower(shape, tables=tables)
    trend = training_trend(prepared) if has_trend(prepared) else None
    trend_NK = None if trend is None else trend.at(0, np.arange(len(prepared.catalogue)))
    objective = RetrievalObjective(prepared, device, recipe.id_dropout, trend)
    task = Task(model, lambda batch: objective.loss(model, batch), ranks, lambda: stepping(precision, device))
    placement = place(task, rule, ranks, device, sharded=sharded)
    part_ways(config.seed, ranks)

    restored = None
    if config.resume:
        restored = load_checkpoint(out / "checkpoints", placement.state(), fingerprint, ranks)
    progress = restored or Progress()

    def keep_best(metrics: dict[str, float]) -> None:
        weights = placement.weights()
        if ranks.lead:
            with staged_directory(out / "model", overwrite=True) as scratch:
                save_weights(shape, weights, scratch, spec_hash=prepared.spec.hash, metrics=metrics)

    parts = Parts(
        model=model,
        placement=placement,
        loader=loader,
        validate=lambda: validate(model, prepared, held, recipe.validation.k, trend_NK, ranks),
        metric=f"ndcg@{recipe.validation.k}",
        keep_best=keep_best,
        checkpoints=out / "checkpoints",
        fingerprint=fingerprint,
        ranks=ranks,
    )
    budget = Budget(
        max_epochs=recipe.max_epochs,
        max_seconds=config.max_minutes * 60,
        patience=recipe.patience,
        checkpoint_steps=config.checkpoint_steps,
        log_steps=config.log_steps,
        warmup_steps=recipe.optimizer.warmup_steps,
        clip_norm=recipe.optimizer.clip_norm,
        plateau_factor=recipe.plateau_factor,
    )
    if is_over(progress, budget):
        if ranks.lead:
            _say_closing(
                f"{out}: finished already, nothing to do ({progress.stopped})", parts, progress, prepared
            )
        return
    with open_log(out, loader.targets_total, progress, ranks) as log:
        log.say(_opening(config, out, restored))
        log.say(
            f"two_tower: {placement.describe()}, {loader.targets_total:,} positives an epoch, "
            f"{len(held.requests):,} validation users, on {device}" + f" × {ranks.world}" * (ranks.world > 1)
        )
        progress = fit(parts, budget, progress, log)
    if ranks.lead:
        write_run(out, config, prepared, fingerprint, progress, parts.metric)
        _say_closing(f"{out}: done ({progress.stopped})", parts, progress, prepared)


def _data(
    config: TrainConfig, recipe: TwoTowerConfig, prepared: Prepared, ranks: Ranks
) -> tuple[SequenceLoader, HeldOut]:
    """The loader of this rank, and the requests that validation ranks; refuses data without either."""
    try:
        loader = build_loader(recipe, prepared, config.seed, ranks.rank, ranks.world)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    gain = gain_mask(prepared, recipe.validation.gain)
    held = held_out(prepared, 1, gain, recipe.validation.max_users, recipe.max_steps)
    if not held.requests:
        raise ConfigError(
            f"{prepared.path}: no user has an unseen positive in the validation split; choose another "
            "model.validation.gain, or prepare again with other split dates"
        )
    return loader, held


def _sharded(tables: TableKind, ranks: Ranks) -> bool:
    """Whether TorchRec holds the tables."""
    if tables is TableKind.plain and ranks.world > 1:
        raise ConfigError(f"tables=plain is for one process, and these are {ranks.world}; use tables=auto")
    return tables is TableKind.torchrec or ranks.world > 1


def _opening(config: TrainConfig, out: Path, restored: Progress | None) -> str:
    """What the run begins with."""
    if restored is None:
        return f"{out}: nothing to resume yet, starting afresh" if config.resume else f"{out}: a new run"
    return f"{out}: resumed at step {restored.step}, epoch {restored.epoch + 1}"


def _say_closing(how: str, parts: Parts, progress: Progress, prepared: Prepared) -> None:
    """How it ended, what came of it, and what to run next."""
    out, dataset = parts.checkpoints.parent, prepared.manifest["dataset"]["path"]
    Console().print(
        f"{how}\nbest {parts.metric} {progress.best_metric:.4f} in epoch {progress.best_epoch + 1}, model in "
        f"{out / 'model'}\nnext: shopreel publish two_tower={out} dataset={dataset} out=BUNDLES",
        highlight=False,
        soft_wrap=True,
    )
