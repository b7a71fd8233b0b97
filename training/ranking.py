"""``shopreel train model=ranker``: impressions with what was known before them → a calibrated ranker.

Axes: B impressions, T tasks, E all impressions of a split.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from data.atomic import write_json
from data.errors import ConfigError
from data.prepared import Prepared
from data.ranking_loader import (
    RankingBatch,
    RankingFeatures,
    RankingLoader,
    build_features,
    funnel_parents,
)
from data.schema import LABEL_BIT
from data.sequences import Sequences
from models.calibration import Calibration, calibration_error, normalised_entropy
from models.embeddings import FeatureBatch, dense_widths, table_rows
from models.heads import order_value_loss, task_losses
from models.ranker import Ranker, RankerShape
from models.ranker_inference import RankerScorer, encode_requests
from models.ranker_portable import RankerParts, load_ranker, save_ranker
from models.value import ValueFormula
from models.watch import WatchBins, ordinal_targets
from training.checkpoint import Progress, load_checkpoint
from training.config import TrainConfig
from training.loop import Budget, Parts, fit
from training.placement import OneProcess, Task, UpdateRule
from training.process import start_process
from training.progress import RunLog
from training.ranking_config import RankerConfig
from training.run_directory import fingerprint_of, open_run, write_run

#: Validation positives (and negatives) that a task needs to take part in choosing the epoch.
MIN_OUTCOMES = 100
#: Batches from which the scale of the statistics is taken.
SCALE_BATCHES = 32


def train_ranker(config: TrainConfig, recipe: RankerConfig, prepared: Prepared) -> None:
    """Train, calibrate on validation, and write the run directory."""
    device = start_process(config.seed, config.device, config.threads)
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
                f"{prepared.path}: no labelled impression in the {split} split; widen model.train_days, or "
                "prepare with other split dates"
            )
    bins = watch_bins(recipe, prepared, loader)
    model = Ranker(shape_of(recipe, prepared, features, bins)).to(device)
    objective = RankingObjective(prepared, features, bins, recipe, device)
    rule = UpdateRule(
        learning_rate=recipe.optimizer.learning_rate, weight_decay=recipe.optimizer.weight_decay,
        dense_table_rows=recipe.optimizer.dense_table_rows,
        table_learning_rate=recipe.optimizer.table_learning_rate,
    )  # fmt: skip
    placement = OneProcess(Task(model, lambda batch: objective.loss(model, batch)), rule)
    fingerprint = fingerprint_of(config, prepared)
    out = open_run(config, prepared, fingerprint)
    progress = (
        config.resume and load_checkpoint(out / "checkpoints", placement.state(), fingerprint)
    ) or Progress()
    if progress.step == 0:
        scale_statistics(model, loader_of(recipe, prepared, features, split=0, seed=config.seed))
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
    )  # fmt: skip
    with log:
        size = sum(parameter.numel() for parameter in model.parameters())
        log.say(
            f"ranker: {size:,} parameters, heads {', '.join(heads_of(model.shape))}; "
            f"{loader.targets_total:,} impressions an epoch, {held.targets_total:,} validate, on {device}"
        )
        progress = fit(parts, budget, progress, log)
    write_run(out, config, prepared, fingerprint, progress, parts.metric)
    calibrate(out, prepared, held, str(device))
    Console().print(
        f"best mean validation auc {progress.best_metric:.4f} in epoch {progress.best_epoch + 1}, "
        f"model in {out / 'model'}\n"
        f"next: shopreel publish two_tower=RUN ranker={out} dataset={prepared.manifest['dataset']['path']} "
        "out=BUNDLES",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def loader_of(
    recipe: RankerConfig, prepared: Prepared, features: RankingFeatures, *, split: int, seed: int
) -> RankingLoader:
    """Batches of training (shuffled) or of a held-out split (in order, larger)."""
    return RankingLoader(
        prepared, features, split=split, seed=seed, train_days=recipe.train_days, shuffle=split == 0,
        batch_size=recipe.batch_size if split == 0 else 4096,
    )  # fmt: skip


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
        order_values += int((train & (examples["example_order_value_minor"] > 0)).sum())
        positions = max(positions, int(examples["example_position"][train].max(initial=-1)) + 1)
    return RankerShape(
        video_rows=table_rows(prepared.spec, "video"), video_dense=dense_widths(prepared.spec, "video"),
        user_rows=table_rows(prepared.spec, "user"), user_dense=dense_widths(prepared.spec, "user"),
        surfaces=len(prepared.surfaces), markets=len(prepared.markets), tasks=spec.tasks,
        parents=funnel_parents(prepared, spec.tasks), watch_bins=0 if bins is None else bins.mean_ms.shape[1],
        watch_groups=0 if bins is None else len(bins.mean_ms),
        order_value="purchase" in spec.tasks and order_values > 0, positions=min(positions, 200),
        user_statistics=len(spec.user_names), candidate_statistics=len(spec.candidate_names),
        field_dim=recipe.field_dim, dim=recipe.dim, heads=recipe.heads, cross_layers=recipe.cross_layers,
        cross_rank=recipe.cross_rank, experts=recipe.experts, hidden=recipe.hidden, dropout=recipe.dropout,
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
def scale_statistics(model: Ranker, loader: RankingLoader) -> None:
    """Set the buffers that bring every statistic to mean 0 and variance 1 over the first batches."""
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


@dataclass(slots=True)
class RankingObjective:
    """Loss of a batch: the sum of all heads' mean losses. Ids are hidden now and then, so that content and
    statistics must carry a video that is new.
    """

    prepared: Prepared
    features: RankingFeatures
    bins: WatchBins | None
    recipe: RankerConfig
    device: torch.device

    def loss(self, model: Ranker, batch: RankingBatch) -> Tensor:
        """Scalar training loss."""
        losses = self.losses(model, batch)
        return torch.stack(list(losses.values())).sum()

    def losses(self, model: Ranker, batch: RankingBatch) -> dict[str, Tensor]:
        """Mean loss of every head over the impressions that know it."""
        spec = self.features.spec
        rows, place = np.unique(
            np.concatenate([batch.video_B, batch.requests.video.reshape(-1)]), return_inverse=True
        )
        video_B, video_BS = (
            place[: batch.examples],
            place[batch.examples :].reshape(batch.requests.video.shape),
        )
        video_ND = model.encode_videos(
            self._hide_ids(FeatureBatch.of(self.prepared.video_table.take(rows)).to(self.device))
        )
        user = encode_requests(
            model, batch.requests, video_BS, video_ND, batch.user_statistics_BF,
            FeatureBatch.of(self.prepared.user_table.take(batch.requests.user_row)).to(self.device),
            hour=spec.hour(batch.requests.time_ms), device=self.device,
        )  # fmt: skip
        scores = model.score(
            user, video_ND[self._tensor(video_B)][:, None],
            self._tensor(batch.candidate_statistics_BG)[:, None], self._tensor(batch.position_B)[:, None],
        )  # fmt: skip
        true_BT, known_BT = labels_of(batch, spec.tasks)
        per_task = task_losses(
            scores.task_BKT[:, 0], self._tensor(true_BT).float(), self._tensor(known_BT).float(),
            model.shape.parents,
        )  # fmt: skip
        losses = dict(zip(spec.tasks, per_task, strict=True))
        if scores.watch_BKE is not None and self.bins is not None:
            seen = np.flatnonzero(batch.watch_ms_B >= 0)
            group = self.bins.group(self.features.keys.duration_ms[batch.video_B[seen]])
            target = ordinal_targets(
                self._tensor(batch.watch_ms_B[seen].astype(np.float64)),
                self._tensor(self.bins.edge_ms[group]),
            )
            logit = scores.watch_BKE[:, 0][self._tensor(seen)]
            losses["watch"] = (
                F.binary_cross_entropy_with_logits(logit, target, reduction="sum") / max(target.numel(), 1)
            ) * self.recipe.watch_weight
        if scores.order_BK2 is not None:
            value = np.where(batch.true_B & LABEL_BIT["purchase"], batch.order_value_B, -1)
            losses["order_value"] = self.recipe.order_weight * order_value_loss(
                scores.order_BK2[:, 0], self._tensor(value)
            )
        return losses

    def _hide_ids(self, features: FeatureBatch) -> FeatureBatch:
        bags = dict(features.bags)
        for name in ("video_id", "video_product_ids"):
            if name in bags and self.recipe.id_dropout > 0:
                values, offsets = bags[name]
                hidden = torch.rand(values.shape, device=values.device) < self.recipe.id_dropout
                bags[name] = (values.masked_fill(hidden, 0), offsets)
        return FeatureBatch(bags, features.dense, features.size)

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def labels_of(
    batch: RankingBatch, tasks: tuple[str, ...]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """True and known ``[B, T]``; a label is true only where it is known."""
    bits = np.array([LABEL_BIT[task] for task in tasks], np.int64)
    known = (batch.known_B[:, None] & bits) > 0
    return ((batch.true_B[:, None] & bits) > 0) & known, known


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Uncalibrated probabilities of a split's impressions with their labels and markets."""

    p_ET: npt.NDArray[np.float64]
    true_ET: npt.NDArray[np.bool_]
    known_ET: npt.NDArray[np.bool_]
    market_E: npt.NDArray[np.int64]


def score_split(parts: RankerParts, prepared: Prepared, held: RankingLoader, device: str) -> HeldOutScores:
    """Score every impression of a split by the inference path."""
    was_training = parts.model.training
    parts.model.eval()
    scorer = RankerScorer(parts, prepared.video_table, prepared.user_table, device)
    found: list[tuple[np.ndarray, ...]] = []
    for batch in held.epoch():
        true, known = labels_of(batch, scorer.tasks)
        found.append((scorer.raw(batch), true, known, batch.requests.market))
    parts.model.train(was_training)
    return HeldOutScores(*(np.concatenate(column) for column in zip(*found, strict=True)))


def validate(parts: RankerParts, prepared: Prepared, held: RankingLoader, device: str) -> dict[str, float]:
    """``auc``: the mean over tasks with enough outcomes; then each task's own."""
    scores = score_split(parts, prepared, held, device)
    each, trusted = {}, []
    for place, task in enumerate(parts.features.spec.tasks):
        known = scores.known_ET[:, place]
        true = scores.true_ET[known, place]
        if 0 < true.sum() < len(true):
            each[f"auc/{task}"] = auc(scores.p_ET[known, place], true)
            if min(true.sum(), (~true).sum()) >= MIN_OUTCOMES:
                trusted.append(each[f"auc/{task}"])
    mean = float(np.mean(trusted or list(each.values()) or [0.5]))
    return {"auc": mean, **each}


def auc(score_E: npt.NDArray[np.float64], true_E: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve; equal scores count half. Both classes must be there."""
    values, place = np.unique(score_E, return_inverse=True)
    positives, everything = (np.bincount(x, minlength=len(values)) for x in (place[true_E], place))
    negatives = everything - positives
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))


def calibrate(out: Path, prepared: Prepared, held: RankingLoader, device: str) -> None:
    """Fit calibration of the best model on validation, store it, and print NE and ECE before and after."""
    parts = load_ranker(
        out / "model", prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        users=len(prepared.users), device=device,
    )  # fmt: skip
    # the run keeps counts from the first held-out day on, which is all that these splits read
    held.features = parts.features
    scores = score_split(parts, prepared, held, device)
    calibration = Calibration.fit(
        scores.p_ET, scores.true_ET, scores.known_ET, scores.market_E, parts.model.shape.markets
    )
    write_json(out / "model" / "calibration.json", calibration.to_json())
    after_ET = calibration.apply(scores.p_ET, scores.market_E, parts.model.shape.parents)
    table = Table("head", "auc", "ne before", "ne after", "ece before", "ece after", title="validation")
    for place, task in enumerate(parts.features.spec.tasks):
        known = scores.known_ET[:, place]
        true = scores.true_ET[known, place]
        if not 0 < true.sum() < len(true):
            continue
        columns = [auc(scores.p_ET[known, place], true)]
        for measure in (normalised_entropy, calibration_error):
            columns += [measure(p_ET[known, place], true) for p_ET in (scores.p_ET, after_ET)]
        table.add_row(task, *(f"{number:.4f}" for number in columns))
    Console().print(table)
