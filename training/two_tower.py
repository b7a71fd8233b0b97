"""Training of the two-tower model, from prepared data to a portable model.

Three stages. *Selecting* trains on the training split until validation says that more would not help, and
keeps the best model. Then validation *weighs* what the same people saw (``training.co_engagement``) beside
it. *Refitting* goes on from the best model for a few epochs on training and validation together, so that the
model that is served has learnt from all that came before the test split.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from data.atomic import read_json, staged_directory
from data.errors import ConfigError
from data.loader import SequenceLoader
from data.prepared import Prepared
from data.trend import has_trend, training_trend
from models.co_engagement import CoEngagement
from models.portable import save_weights
from models.two_tower import TwoTower
from training.admission import Admission
from training.checkpoint import Progress, load_checkpoint, remove_checkpoints
from training.co_engagement import Choice, CoEngagementFit
from training.config import TableKind, TrainConfig, TwoTowerConfig
from training.distributed import Ranks
from training.loop import Budget, Parts, fit, go_on, is_over
from training.placement import Task, UpdateRule, place, tables_factory
from training.precision import set_products, stepping
from training.process import part_ways, start_process
from training.retrieval import RetrievalObjective, build_loader, max_steps_of, recipe_for, shape_of
from training.retrieval_validation import HeldVectors, held_vectors
from training.run_directory import fingerprint_of, open_log, open_run, write_run
from training.validation import HeldOut, gain_mask, held_out

#: Share of the time after which selecting ends, where refitting is to follow.
SELECTING_SHARE = 0.75


@dataclass(slots=True)
class Stage:
    """What a step trains on: swapped when selecting is over."""

    loader: SequenceLoader
    objective: RetrievalObjective


def train_two_tower(config: TrainConfig, recipe: TwoTowerConfig, prepared: Prepared, ranks: Ranks) -> None:
    """Train a two-tower model into ``config.out``."""
    recipe = recipe_for(recipe, prepared)
    sharded = _sharded(config.tables, ranks)
    device = start_process(config.seed, config.device, config.threads, ranks)
    precision = config.precision.on(device)
    set_products(precision)
    shape = shape_of(recipe, prepared)
    rule = _update_rule(recipe)
    loader, held = _data(config, recipe, prepared, ranks)
    fingerprint = fingerprint_of(config, prepared, ranks.world)
    out = Path(config.out)
    ranks.on_lead(lambda: open_run(config, prepared, fingerprint))

    tables = tables_factory(ranks, sharded=sharded, dense_table_rows=rule.dense_table_rows)
    model = TwoTower(shape, tables=tables)
    trend = training_trend(prepared) if has_trend(prepared) else None
    trend_NK = None if trend is None else trend.at(0, np.arange(len(prepared.catalogue)))
    ignored = recipe.ignored_weight
    stage = Stage(loader, RetrievalObjective(prepared, device, recipe.id_dropout, trend, ignored=ignored))
    task = Task(
        model, lambda batch: stage.objective.loss(model, batch), ranks, lambda: stepping(precision, device)
    )
    placement = place(task, rule, ranks, device, sharded=sharded)
    admission = Admission(
        model, prepared, placement, ranks, admission=recipe.managed.admission,
        eviction=recipe.managed.eviction, seed=config.seed,
    )  # fmt: skip
    part_ways(config.seed, ranks)

    beside = CoEngagementFit(recipe, prepared, config.seed)

    def keep_best(metrics: dict[str, float], linear: CoEngagement | None = None) -> None:
        weights = placement.weights()
        if ranks.lead:
            whole = shape if linear is None else replace(shape, co_engagement=linear.rank)
            weights = weights if linear is None else weights | linear.weights("co_engagement")
            with staged_directory(out / "model", overwrite=True) as scratch:
                save_weights(whole, weights, scratch, spec_hash=prepared.spec.hash, metrics=metrics)

    def vectors() -> HeldVectors:
        return held_vectors(model, prepared, held, trend_NK, ranks)

    goes_on = bool(recipe.refit_epochs or beside.wanted)
    parts = Parts(
        model=model,
        placement=placement,
        before_step=admission.see,
        loader=loader,
        validate=lambda: vectors().metrics(recipe.validation.k, ranks),
        metric=f"ndcg@{recipe.validation.k}",
        keep_best=keep_best,
        checkpoints=out / "checkpoints",
        fingerprint=fingerprint,
        ranks=ranks,
        best=out / "best" if goes_on else None,
    )
    budget, refit_budget = _budgets(config, recipe)

    def load(folder: str) -> Progress | None:
        return load_checkpoint(out / folder, placement.state(), fingerprint, ranks)

    restored = load("checkpoints") if config.resume else None
    progress = restored or Progress()
    selected = is_over(progress, budget)
    refitted = load("refit") if selected and recipe.refit_epochs else None
    last = refitted or progress
    written = selected and read_json(out / "run.json")["best"] is not None
    if written and (not recipe.refit_epochs or (refitted and is_over(refitted, refit_budget))):
        if ranks.lead:
            how = f"{out}: finished already, nothing to do ({last.stopped})"
            _say_closing(how, out, parts.metric, last, prepared)
        return
    with open_log(out, loader.queries_total, last, ranks) as log:
        log.say(_opening(config, out, restored and last))
        log.say(
            f"two_tower: {placement.describe()}, {loader.queries_total:,} moments an epoch, "
            f"{len(held.requests):,} validation users, on {device}" + f" × {ranks.world}" * (ranks.world > 1)
        )
        if not selected:
            # more time than a broken-off run had: what followed its selection is void
            ranks.on_lead(lambda: remove_checkpoints(out / "refit"))
            progress = last = fit(parts, budget, progress, log)
        if goes_on:
            load("best")
        choice = Choice(0, 0.0, {parts.metric: progress.best_metric})
        if beside.wanted:
            with placement.optimizers.averaged():
                choice = beside.choose(vectors(), recipe.validation.k, ranks)
            log.say(beside.describe(choice, parts.metric, progress.best_metric))
        if recipe.refit_epochs:
            refitted = load("refit") if refitted is not None else None
            if refitted is None:
                # at the full rate: one halved again and again would learn little from what is new
                refitted = replace(progress, epoch=0, shard=0, batch=0, plateaus=0, stopped="")
            stage.loader = build_loader(recipe, prepared, config.seed, ranks.rank, ranks.world, splits=2)
            later = training_trend(prepared, 2) if trend is not None else None
            stage.objective = RetrievalObjective(
                prepared, device, recipe.id_dropout, later, splits=2, ignored=ignored
            )
            log.say(
                f"refit: {recipe.refit_epochs} epochs on training and validation, from epoch "
                f"{progress.best_epoch + 1}"
            )
            parts = replace(parts, loader=stage.loader, checkpoints=out / "refit")
            # before the model is: a record that says too much spoils no test
            ranks.on_lead(lambda: write_run(out, config, prepared, fingerprint, splits=2))
            last = go_on(parts, refit_budget, refitted, log)
        if goes_on:
            with placement.optimizers.averaged():
                linear = beside.weighed(
                    choice, vectors(), splits=2 if recipe.refit_epochs else 1, ranks=ranks
                )
                keep_best(choice.metrics, linear)
    if ranks.lead:
        last = replace(last, best_metric=choice.metrics[parts.metric])
        write_run(
            out, config, prepared, fingerprint, last, parts.metric, splits=2 if recipe.refit_epochs else 1,
            co_engagement={"rank": choice.rank, "share": choice.share},
        )  # fmt: skip
        _say_closing(f"{out}: done ({progress.stopped})", out, parts.metric, last, prepared)


def _data(
    config: TrainConfig, recipe: TwoTowerConfig, prepared: Prepared, ranks: Ranks
) -> tuple[SequenceLoader, HeldOut]:
    """The loader of this rank, and the requests that validation ranks; refuses data without either."""
    try:
        loader = build_loader(recipe, prepared, config.seed, ranks.rank, ranks.world)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    gain = gain_mask(prepared, recipe.validation.gain)
    held = held_out(prepared, 1, gain, recipe.validation.max_users, max_steps_of(recipe, prepared))
    if not held.requests:
        raise ConfigError(
            f"{prepared.name}: no user has an unseen positive in the validation split; choose another "
            "model.validation.gain, or prepare again with other split dates"
        )
    return loader, held


def _update_rule(recipe: TwoTowerConfig) -> UpdateRule:
    optimizer = recipe.optimizer
    return UpdateRule(
        learning_rate=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        dense_table_rows=optimizer.dense_table_rows,
        table_learning_rate=optimizer.table_learning_rate,
        average=recipe.average,
    )


def _budgets(config: TrainConfig, recipe: TwoTowerConfig) -> tuple[Budget, Budget]:
    """Of selecting and of refitting; the seconds of the second count from the begin of the run."""
    selecting = Budget(
        max_epochs=recipe.max_epochs,
        max_seconds=config.max_minutes * 60 * (SELECTING_SHARE if recipe.refit_epochs else 1.0),
        patience=recipe.patience,
        checkpoint_steps=config.checkpoint_steps,
        log_steps=config.log_steps,
        warmup_steps=recipe.optimizer.warmup_steps,
        clip_norm=recipe.optimizer.clip_norm,
        plateau_factor=recipe.plateau_factor,
    )
    return selecting, replace(selecting, max_epochs=recipe.refit_epochs, max_seconds=config.max_minutes * 60)


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


def _say_closing(how: str, out: Path, metric: str, progress: Progress, prepared: Prepared) -> None:
    """How it ended, what came of it, and what to run next."""
    dataset = prepared.manifest["dataset"]["path"]
    Console().print(
        f"{how}\nbest {metric} {progress.best_metric:.4f} in epoch {progress.best_epoch + 1}, model in "
        f"{out / 'model'}\nnext: shopreel publish two_tower={out} dataset={dataset} out=BUNDLES",
        highlight=False,
        soft_wrap=True,
    )
