"""The training loop: steps, validation after each epoch, early stop, checkpoints."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.errors import ConfigError
from data.loader import Batch, LoaderPosition, SequenceLoader
from training.checkpoint import Progress, save_checkpoint
from training.optimizers import warmup
from training.prefetch import prefetch
from training.progress import RunLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When to stop, when to save, how fast to learn. ``max_seconds`` counts over resumed sessions."""

    max_epochs: int
    max_seconds: float
    patience: int
    checkpoint_steps: int
    learning_rate: float
    warmup_steps: int
    clip_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop drives. ``loss`` maps a batch to a scalar, ``validate`` returns metrics of which
    ``metric`` decides (larger is better), ``keep_best`` writes the model that won so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: SequenceLoader
    loss: Callable[[Batch], Tensor]
    validate: Callable[[], dict[str, float]]
    metric: str
    keep_best: Callable[[dict[str, float]], None]
    checkpoints: Path
    fingerprint: str


def fit(parts: Parts, budget: Budget, progress: Progress, log: RunLog) -> Progress:
    """Train from ``progress`` until validation stops improving or the budget is used up.

    Raises :class:`ConfigError` when the loss is not finite.
    """
    parts.loader.position = LoaderPosition(progress.epoch, progress.shard, progress.batch)
    clock = _Clock(progress.seconds)
    parts.model.train()
    while not progress.finished:
        out_of_time = _epoch(parts, budget, progress, log, clock)
        progress.seconds = clock.seconds
        metrics = parts.validate()
        log.record(progress.step, {f"validation/{name}": value for name, value in metrics.items()})
        value = metrics[parts.metric]
        better = value > progress.best_metric
        if better:
            progress.best_metric, progress.best_epoch, progress.stale_epochs = value, progress.epoch, 0
            parts.keep_best(metrics)
        else:
            progress.stale_epochs += 1
        shown = "  ".join(f"{name} {number:.4f}" for name, number in metrics.items())
        log.say(f"epoch {progress.epoch + 1}  {shown}{'  *best' if better else ''}  {clock.seconds:.0f} s")
        if not out_of_time:
            progress.epoch, progress.shard, progress.batch = progress.epoch + 1, 0, 0
        progress.finished = (
            out_of_time or progress.stale_epochs >= budget.patience or progress.epoch >= budget.max_epochs
        )
        progress.seconds = clock.seconds
        save_checkpoint(parts.checkpoints, parts.model, parts.optimizer, progress, parts.fingerprint)
    return progress


def _epoch(parts: Parts, budget: Budget, progress: Progress, log: RunLog, clock: "_Clock") -> bool:
    """Run the rest of the current epoch; True when the time ran out within it."""
    log.begin_epoch(progress.epoch)
    warm = warmup(budget.warmup_steps)
    total, count = 0.0, 0
    batches = prefetch(parts.loader)
    try:
        for batch, position in batches:
            for group in parts.optimizer.param_groups:
                group["lr"] = budget.learning_rate * warm(progress.step)
            loss = parts.loss(batch)
            value = loss.item()
            if not math.isfinite(value):
                raise ConfigError(
                    f"loss is {value} at step {progress.step}; lower model.optimizer.learning_rate "
                    f"(now {budget.learning_rate}) or look for extreme values in dense features"
                )
            parts.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(parts.model.parameters(), budget.clip_norm)
            parts.optimizer.step()
            progress.step += 1
            progress.shard, progress.batch = position.shard, position.batch
            progress.seconds = clock.seconds
            examples = len(batch.target_video_P)
            total, count = total + value * examples, count + examples
            left = max(budget.max_seconds - clock.seconds, 0.0) / 60
            log.step(progress.epoch, examples, total / count, left)
            if progress.step % 20 == 0:
                log.record(progress.step, {"train/loss": value, "train/gradient_norm": float(norm)})
            if progress.step % budget.checkpoint_steps == 0:
                save_checkpoint(parts.checkpoints, parts.model, parts.optimizer, progress, parts.fingerprint)
            if clock.seconds > budget.max_seconds:
                return True
    finally:
        batches.close()  # type: ignore[attr-defined]
    return False


class _Clock:
    """Seconds trained, those of earlier sessions included."""

    def __init__(self, before: float) -> None:
        self.before = before
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start
