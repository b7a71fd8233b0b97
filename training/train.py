"""``shopreel train``: prepared data → a trained model, its checkpoints and its metrics.

Reads like a story: open the data, build the model, restore, train, say what to run next.
"""

from rich.console import Console

from data.errors import ConfigError
from data.prepared import Prepared
from models.portable import save_two_tower
from models.two_tower import TwoTower
from training.baselines import train_baseline
from training.config import BaselineConfig, TrainConfig, TwoTowerConfig
from training.loop import Budget, Parts, fit
from training.optimizers import build_adamw
from training.process import start_process
from training.progress import RunLog
from training.retrieval import RetrievalObjective, build_loader, shape_of, validate
from training.run_directory import fingerprint_of, open_run, write_run
from training.validation import gain_mask, held_out

CONFIG = TrainConfig


def run(config: TrainConfig) -> None:
    """Train the configured model."""
    prepared = Prepared.open(config.prepared)
    match config.model:
        case TwoTowerConfig():
            train_two_tower(config, config.model, prepared)
        case BaselineConfig():
            train_baseline(config, config.model, prepared)
        case _:
            raise ConfigError(f"model={config.model.name}: no such model")


def train_two_tower(config: TrainConfig, recipe: TwoTowerConfig, prepared: Prepared) -> None:
    """Train a two-tower model into ``config.out``."""
    device = start_process(config.seed, config.device, config.threads)
    model = TwoTower(shape_of(recipe, prepared)).to(device)
    optimizer = build_adamw(model, recipe.optimizer.learning_rate, recipe.optimizer.weight_decay)
    try:
        loader = build_loader(recipe, prepared, config.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    held = held_out(
        prepared,
        1,
        gain_mask(prepared, recipe.validation.gain),
        recipe.validation.max_users,
        recipe.max_steps,
    )
    if not held.requests:
        raise ConfigError(
            f"{prepared.path}: no user has an unseen positive in the validation split; choose another "
            "model.validation.gain, or prepare again with other split dates"
        )
    fingerprint = fingerprint_of(config, prepared)
    out, progress = open_run(config, model, optimizer, fingerprint)
    objective = RetrievalObjective(prepared, device, recipe.id_dropout)
    log = RunLog(out, loader.targets_total, from_step=progress.step)
    write_run(out, config, prepared, fingerprint)

    def keep_best(metrics: dict[str, float]) -> None:
        save_two_tower(model, out / "model", spec_hash=prepared.spec.hash, metrics=metrics)

    parts = Parts(
        model=model,
        optimizer=optimizer,
        loader=loader,
        loss=lambda batch: objective.loss(model, batch),
        validate=lambda: validate(model, prepared, held, recipe.validation.k),
        metric=f"ndcg@{recipe.validation.k}",
        keep_best=keep_best,
        checkpoints=out / "checkpoints",
        fingerprint=fingerprint,
    )
    budget = Budget(
        max_epochs=recipe.max_epochs,
        max_seconds=config.max_minutes * 60,
        patience=recipe.patience,
        checkpoint_steps=config.checkpoint_steps,
        learning_rate=recipe.optimizer.learning_rate,
        warmup_steps=recipe.optimizer.warmup_steps,
        clip_norm=recipe.optimizer.clip_norm,
    )
    with log:
        size = sum(parameter.numel() for parameter in model.parameters())
        log.say(
            f"two_tower: {size:,} parameters, {loader.targets_total:,} positives an epoch, "
            f"{len(held.requests):,} validation users, on {device}"
        )
        progress = fit(parts, budget, progress, log)
    write_run(out, config, prepared, fingerprint, progress, parts.metric)
    Console().print(
        f"best {parts.metric} {progress.best_metric:.4f} in epoch {progress.best_epoch + 1}, "
        f"model in {out / 'model'}\n"
        f"next: shopreel publish two_tower={out} dataset={prepared.manifest['dataset']['path']} out=BUNDLES",
        highlight=False,
        soft_wrap=True,
    )
