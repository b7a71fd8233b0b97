"""``shopreel train model=ranker``: impressions with what was known before them → a calibrated ranker."""

from rich.console import Console

from data.errors import ConfigError
from data.prepared import Prepared
from data.ranking_loader import RankingFeatures, RankingLoader, build_features
from models.calibration import Calibration
from models.ranker import Ranker
from models.ranker_portable import RankerParts, save_ranker
from models.value import ValueFormula
from training.checkpoint import Progress, load_checkpoint
from training.config import TrainConfig
from training.loop import Budget, Parts, fit
from training.placement import OneProcess, Task, UpdateRule
from training.precision import set_products, stepping
from training.process import start_process
from training.progress import RunLog
from training.ranker_start import begin, heads_of, shape_of, watch_bins
from training.ranking_config import CalibrationKind, RankerConfig
from training.ranking_objective import RankingObjective
from training.ranking_validation import calibrate, validate
from training.run_directory import fingerprint_of, open_run, write_run


def train_ranker(config: TrainConfig, recipe: RankerConfig, prepared: Prepared) -> None:
    """Train, calibrate on validation, and write the run directory."""
    device = start_process(config.seed, config.device, config.threads)
    precision = config.precision.on(device)
    set_products(precision)
    try:
        features = build_features(
            prepared, half_life_days=tuple(recipe.half_life_days), max_steps=recipe.max_steps
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    loader = loader_of(recipe, prepared, features, split=0, seed=config.seed)
    held = loader_of(recipe, prepared, features, split=1, seed=config.seed)
    for part, split in ((loader, "training"), (held, "validation")):
        if not part.targets_total:
            raise ConfigError(
                f"{prepared.name}: no labelled impression in the {split} split; widen model.train_days, or "
                "prepare with other split dates"
            )
    bins = watch_bins(recipe, prepared, loader)
    model = Ranker(shape_of(recipe, prepared, features, bins)).to(device)
    objective = RankingObjective.of(prepared, features, bins, recipe, device)
    task = Task(model, lambda batch: objective.loss(model, batch), around=lambda: stepping(precision, device))
    placement = OneProcess(task, update_rule(recipe))
    fingerprint = fingerprint_of(config, prepared)
    out = open_run(config, prepared, fingerprint)
    progress = (
        config.resume and load_checkpoint(out / "checkpoints", placement.state(), fingerprint)
    ) or Progress()
    if progress.step == 0:
        begin(model, loader_of(recipe, prepared, features, split=0, seed=config.seed))
    value = ValueFormula.from_json(
        {"version": recipe.value.version, "watch_s": recipe.value.watch_s, "gmv": recipe.value.gmv,
         "tasks": dict(recipe.value.tasks)}
    )  # fmt: skip
    identity = Calibration.identity(len(features.spec.tasks), model.shape.markets)
    parts_of_ranker = RankerParts(model, features, bins, identity, value)
    log = RunLog(out, loader.targets_total, from_step=progress.step, lines=progress.log_lines)

    def keep_best(metrics: dict[str, float]) -> None:
        save_ranker(parts_of_ranker, out / "model", spec_hash=prepared.spec.hash, metrics=metrics)

    parts = Parts(
        model=model, placement=placement, loader=loader,
        validate=lambda: validate(parts_of_ranker, prepared, held, str(device)), metric="auc",
        keep_best=keep_best, checkpoints=out / "checkpoints", fingerprint=fingerprint,
    )  # fmt: skip
    budget = Budget(
        max_epochs=recipe.max_epochs, max_seconds=config.max_minutes * 60, patience=recipe.patience,
        checkpoint_steps=config.checkpoint_steps, log_steps=config.log_steps,
        warmup_steps=recipe.optimizer.warmup_steps, clip_norm=recipe.optimizer.clip_norm,
        decay_steps=recipe.max_epochs * -(-loader.targets_total // recipe.batch_size),
    )  # fmt: skip
    with log:
        size = sum(parameter.numel() for parameter in model.parameters())
        log.say(
            f"ranker: {size:,} parameters, heads {', '.join(heads_of(model.shape))}; "
            f"{loader.targets_total:,} impressions an epoch, {held.targets_total:,} validate, on {device}"
        )
        progress = fit(parts, budget, progress, log)
    write_run(out, config, prepared, fingerprint, progress, parts.metric)
    calibrate(out, prepared, held, str(device), isotonic=recipe.calibration is CalibrationKind.isotonic)
    Console().print(
        f"best mean validation auc {progress.best_metric:.4f} in epoch {progress.best_epoch + 1}, "
        f"model in {out / 'model'}\n"
        f"next: shopreel publish two_tower=RUN ranker={out} dataset={prepared.manifest['dataset']['path']} "
        "out=BUNDLES",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def update_rule(recipe: RankerConfig) -> UpdateRule:
    """How the ranker's parameters learn.

    The order head is not clipped: few impressions teach it, with a loss that is large in their batches alone.
    Clipped with the others, it would make whatever is in a batch with a purchase weigh less.
    """
    return UpdateRule(
        learning_rate=recipe.optimizer.learning_rate, weight_decay=recipe.optimizer.weight_decay,
        dense_table_rows=recipe.optimizer.dense_table_rows,
        table_learning_rate=recipe.optimizer.table_learning_rate, unclipped=("order_",),
    )  # fmt: skip


def loader_of(
    recipe: RankerConfig, prepared: Prepared, features: RankingFeatures, *, split: int, seed: int
) -> RankingLoader:
    """Batches of training (shuffled) or of a held-out split (in order, larger)."""
    return RankingLoader(
        prepared, features, split=split, seed=seed, train_days=recipe.train_days, shuffle=split == 0,
        batch_size=recipe.batch_size if split == 0 else 4096,
    )  # fmt: skip
