"""Training of the two-tower model, from prepared data to a portable model.

Three stages. *Selecting* trains on the training split until validation says that more would not help, and
keeps the best model; each validation first says how much the outcome towers count
(``training.outcome_weight``) and corrects the trend's weights (``training.trend_shift``). Then validation
*weighs* what the same people saw (``training.co_engagement``) beside it. *Refitting* goes on from the best
model for a few epochs on training and validation together, so that the model that is served has learnt from
all that came before the test split.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
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
from training.outcome_weight import outcome_weight
from training.placement import Task, UpdateRule, place, tables_factory
from training.precision import set_products, stepping
from training.process import part_ways, start_process
from training.progress import Log
from training.retrieval import RetrievalObjective, build_loader, max_steps_of, recipe_for, shape_of
from training.retrieval_validation import HeldVectors, held_vectors
from training.run_directory import fingerprint_of, open_log, open_run, write_run
from training.trend_shift import trend_shift
from training.validation import HeldOut, gain_mask, held_out

#: Weight decay of the outcome towers' tables. What is liked differs little, and rare values (creators, title
#: words) would learn their few impressions by heart: the head of a list is where such errors gather.
OUTCOME_TABLE_DECAY = 3.0
#: Share of the time after which selecting ends, where refitting is to follow.
SELECTING_SHARE = 0.75


@dataclass(slots=True)
class Stage:
    """What a step trains on: swapped when selecting is over."""

    loader: SequenceLoader
    objective: RetrievalObjective


def train_two_tower(config: TrainConfig, recipe: TwoTowerConfig, prepared: Prepared, ranks: Ranks) -> None:
    """Train a two-tower model into ``config.out``."""
    TwoTowerTraining(config, recipe_for(recipe, prepared), prepared, ranks).run()


class TwoTowerTraining:
    """The pieces of one run, put together once, and the three stages that use them."""

    def __init__(self, config: TrainConfig, recipe: TwoTowerConfig, prepared: Prepared, ranks: Ranks) -> None:
        self.config, self.recipe, self.prepared, self.ranks = config, recipe, prepared, ranks
        self.out, self.metric = Path(config.out), f"ndcg@{recipe.validation.k}"
        sharded = _sharded(config.tables, ranks)
        self.device = start_process(config.seed, config.device, config.threads, ranks)
        precision = config.precision.on(self.device)
        set_products(precision)
        self.shape = shape_of(recipe, prepared)
        rule = _update_rule(recipe)
        loader, self.held = _data(config, recipe, prepared, ranks)
        self.fingerprint = fingerprint_of(config, prepared, ranks.world)
        ranks.on_lead(lambda: open_run(config, prepared, self.fingerprint))

        tables = tables_factory(ranks, sharded=sharded, dense_table_rows=rule.dense_table_rows)
        model = self.model = TwoTower(self.shape, tables=tables)
        stage = self.stage = Stage(loader, self._objective(splits=1))
        trend = stage.objective.trend
        self.trend = self.shape.trend_columns
        self.trend_NK = None if trend is None else trend.at(0, np.arange(len(prepared.catalogue)))
        task = Task(
            model,
            lambda batch: stage.objective.loss(model, batch),
            ranks,
            lambda: stepping(precision, self.device),
        )
        self.placement = place(task, rule, ranks, self.device, sharded=sharded)
        admission = Admission(
            model, prepared, self.placement, ranks, admission=recipe.managed.admission,
            eviction=recipe.managed.eviction, seed=config.seed,
        )  # fmt: skip
        part_ways(config.seed, ranks)

        self.beside = CoEngagementFit(recipe, prepared, config.seed)
        #: Whether anything follows selecting, which then starts from the best epoch.
        self.goes_on = bool(recipe.refit_epochs or self.beside.wanted)
        self.selecting, self.refitting = _budgets(config, recipe)
        self.parts = Parts(
            model=model,
            placement=self.placement,
            before_step=admission.see,
            loader=loader,
            validate=self._validate,
            metric=self.metric,
            keep_best=self._keep,
            checkpoints=self.out / "checkpoints",
            fingerprint=self.fingerprint,
            ranks=ranks,
            best=self.out / "best" if self.goes_on else None,
        )

    def run(self) -> None:
        """Begin or resume, and go through the stages that are still to be done."""
        refits = self.recipe.refit_epochs > 0
        restored = self._load("checkpoints") if self.config.resume else None
        selected = restored or Progress()
        is_selected = is_over(selected, self.selecting)
        refitted = self._load("refit") if is_selected and refits else None
        last = refitted or selected
        if self._is_written(is_selected, refitted):
            self._say_closing(f"finished already, nothing to do ({last.stopped})", last)
            return
        with open_log(self.out, self.stage.loader.queries_total, last, self.ranks) as log:
            log.say(_opening(self.config, self.out, restored and last))
            log.say(self._describe())
            if not is_selected:
                # more time than a broken-off run had: what followed its selection is void
                self.ranks.on_lead(lambda: remove_checkpoints(self.out / "refit"))
                selected = last = fit(self.parts, self.selecting, selected, log)
            if self.goes_on:
                self._load("best")
            choice = self._weigh(selected, log)
            if refits:
                chosen_K = self._trend_weights()
                last = self._refit(selected, refitted is not None, log)
                self._restore_trend(chosen_K)
            if self.goes_on:
                self._keep_with(choice)
        last = replace(last, best_metric=choice.metrics[self.metric])
        if self.ranks.lead:
            write_run(
                self.out, self.config, self.prepared, self.fingerprint, last, self.metric,
                splits=self._splits, co_engagement={"rank": choice.rank, "share": choice.share},
            )  # fmt: skip
        self._say_closing(f"done ({selected.stopped})", last)

    def _validate(self) -> dict[str, float]:
        """Metrics of the held-out requests, with what they say of the weights of trend and outcome towers."""
        k, temperature = self.recipe.validation.k, float(self.model.temperature.detach())
        outcome_towers, further = self.model.outcome_towers, {}
        self._shift_trend(np.zeros(self.shape.trend))
        if outcome_towers is not None:
            outcome_towers.weight.fill_(1.0)
        vectors = self._vectors()
        if outcome_towers is not None:
            share, weight = outcome_weight(
                vectors, self.shape, temperature, self.recipe.outcome.share, k, self.ranks
            )
            outcome_towers.weight.fill_(weight)
            vectors.user_BD[:, self.shape.dim : self.shape.learnt] *= np.float32(weight)
            further["outcome_share"] = share
        if self.trend_NK is not None:
            shift_K = trend_shift(vectors, self.trend, temperature, self.ranks)
            self._shift_trend(shift_K)
            vectors.user_BD[:, self.trend] += shift_K.astype(np.float32)
        return vectors.metrics(k, self.ranks) | further

    def _weigh(self, selected: Progress, log: Log) -> Choice:
        """How much co-engagement is to count beside the best model; nothing where it is not wanted."""
        if not self.beside.wanted:
            return Choice(0, 0.0, {self.metric: selected.best_metric})
        with self.placement.optimizers.averaged():
            choice = self.beside.choose(self._vectors(), self.recipe.validation.k, self.ranks)
        log.say(self.beside.describe(choice, self.metric, selected.best_metric))
        return choice

    def _refit(self, selected: Progress, is_begun: bool, log: Log) -> Progress:
        """Go on from the best model, on training and validation together."""
        refitted = self._load("refit") if is_begun else None
        if refitted is None:
            # at the full rate: one halved again and again would learn little from what is new
            refitted = replace(selected, epoch=0, shard=0, batch=0, plateaus=0, stopped="")
        seed, ranks = self.config.seed, self.ranks
        self.stage.loader = build_loader(self.recipe, self.prepared, seed, ranks.rank, ranks.world, splits=2)
        self.stage.objective = self._objective(splits=2)
        log.say(
            f"refit: {self.recipe.refit_epochs} epochs on training and validation, from epoch "
            f"{selected.best_epoch + 1}"
        )
        parts = replace(self.parts, loader=self.stage.loader, checkpoints=self.out / "refit")
        # before the model is: a record that says too much spoils no test
        ranks.on_lead(lambda: write_run(self.out, self.config, self.prepared, self.fingerprint, splits=2))
        return go_on(parts, self.refitting, refitted, log)

    def _restore_trend(self, chosen_K: np.ndarray) -> None:
        """Give the trend the mean weights that validation had found best: refitting takes them away."""
        self._shift_trend(np.zeros(self.shape.trend))
        self._shift_trend(chosen_K - self._trend_weights())

    def _trend_weights(self) -> np.ndarray:
        """Mean weights ``[K]`` of the held-out requests for the trend. Collective."""
        if self.trend_NK is None:
            return np.zeros(0)
        with self.placement.optimizers.averaged():
            own_UK = self._vectors().user_BD[:, self.trend].astype(np.float64)
        total = np.array(self.ranks.sum([*own_UK.sum(axis=0), len(own_UK)]))
        weights_K: np.ndarray = total[:-1] / max(total[-1], 1.0)
        return weights_K

    def _shift_trend(self, shift_K: np.ndarray) -> None:
        if self.trend_NK is None:
            return
        with torch.no_grad():
            self.model.trend_shift_K.copy_(torch.from_numpy(shift_K))

    @property
    def _splits(self) -> int:
        """How many splits the served model has learnt from: training, or validation too."""
        return 2 if self.recipe.refit_epochs else 1

    def _objective(self, splits: int) -> RetrievalObjective:
        trend = training_trend(self.prepared, splits) if has_trend(self.prepared) else None
        return RetrievalObjective(
            self.prepared, self.device, self.recipe.id_dropout, trend, splits=splits,
            ignored=self.recipe.ignored_weight,
        )  # fmt: skip

    def _vectors(self) -> HeldVectors:
        return held_vectors(self.model, self.prepared, self.held, self.trend_NK, self.ranks)

    def _keep_with(self, choice: Choice) -> None:
        """Keep the model as it stands, with the co-engagement that was chosen for the best one."""
        with self.placement.optimizers.averaged():
            linear = self.beside.weighed(choice, self._vectors(), splits=self._splits, ranks=self.ranks)
            self._keep(choice.metrics, linear)

    def _keep(self, metrics: dict[str, float], linear: CoEngagement | None = None) -> None:
        weights = self.placement.weights()
        if self.ranks.lead:
            shape = self.shape if linear is None else replace(self.shape, co_engagement=linear.rank)
            weights = weights if linear is None else weights | linear.weights("co_engagement")
            with staged_directory(self.out / "model", overwrite=True) as scratch:
                save_weights(shape, weights, scratch, spec_hash=self.prepared.spec.hash, metrics=metrics)

    def _load(self, folder: str) -> Progress | None:
        return load_checkpoint(self.out / folder, self.placement.state(), self.fingerprint, self.ranks)

    def _is_written(self, is_selected: bool, refitted: Progress | None) -> bool:
        """Whether the run of this directory has ended, its record included."""
        if not is_selected or read_json(self.out / "run.json")["best"] is None:
            return False
        return not self.recipe.refit_epochs or bool(refitted and is_over(refitted, self.refitting))

    def _describe(self) -> str:
        """What is trained on what, in one line."""
        world = f" × {self.ranks.world}" if self.ranks.world > 1 else ""
        return (
            f"two_tower: {self.placement.describe()}, {self.stage.loader.queries_total:,} moments an epoch, "
            f"{len(self.held.requests):,} validation users, on {self.device}{world}"
        )

    def _say_closing(self, how: str, progress: Progress) -> None:
        """How it ended, what came of it, and what to run next."""
        if not self.ranks.lead:
            return
        dataset = self.prepared.manifest["dataset"]["path"]
        Console().print(
            f"{self.out}: {how}\nbest {self.metric} {progress.best_metric:.4f} in epoch "
            f"{progress.best_epoch + 1}, model in {self.out / 'model'}\n"
            f"next: shopreel publish two_tower={self.out} dataset={dataset} out=BUNDLES",
            highlight=False,
            soft_wrap=True,
        )


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
        unclipped=("outcome_towers.",),
        table_decay=("outcome_towers.", OUTCOME_TABLE_DECAY),
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
