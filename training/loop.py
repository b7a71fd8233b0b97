"""The training loop: steps, validation after each epoch, early stop, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from data.errors import ConfigError
from data.loader import LoaderPosition
from training.checkpoint import Progress, save_checkpoint
from training.distributed import ALONE, Ranks
from training.late_loss import LateLoss
from training.optimizers import warmup
from training.placement import Placement
from training.prefetch import prefetch
from training.progress import Log


class Loader(Protocol):
    """Batches of one epoch after another; each batch tells its number of ``examples``."""

    position: LoaderPosition

    def epoch(self) -> Iterator[Any]:
        """The rest of the current epoch."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When to stop, save and log, how fast to start and (``decay_steps`` above 0) to end.

    After each epoch without a better validation the learning rate is multiplied by ``plateau_factor``.
    Such an epoch counts for neither this nor ``patience`` while the rate still warms up, and by its share
    where it has fewer than ``epoch_steps`` steps: a small log has taught too little by then for a verdict.
    ``max_seconds`` counts over resumed sessions.
    """

    max_epochs: int
    max_seconds: float
    patience: int
    checkpoint_steps: int
    log_steps: int
    warmup_steps: int
    clip_norm: float
    decay_steps: int = 0
    plateau_factor: float = 1.0
    epoch_steps: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop drives: every rank of a job the same, each with its share of the batches.

    ``validate`` returns metrics of which ``metric`` decides (larger is better), equal on all ranks;
    ``keep_best`` writes the model that won so far. Both are collective.
    """

    model: nn.Module
    placement: Placement
    loader: Loader
    validate: Callable[[], dict[str, float]]
    metric: str
    keep_best: Callable[[dict[str, float]], None]
    checkpoints: Path
    fingerprint: str
    ranks: Ranks = ALONE
    #: Told of each batch before its forward pass. Collective.
    before_step: Callable[[Any], None] = lambda batch: None
    #: Where the state of the best epoch is kept, if training is to go on from there.
    best: Path | None = None


def fit(parts: Parts, budget: Budget, progress: Progress, log: Log) -> Progress:
    """Train from ``progress`` until validation stops improving or the budget is used up.

    Raises :class:`ConfigError` when the loss is not finite.
    """
    parts.loader.position = LoaderPosition(progress.epoch, progress.shard, progress.batch)
    clock = _Clock(progress.seconds)
    if not is_over(progress, budget):
        progress.stopped = ""
    parts.model.train()
    while not progress.stopped:
        out_of_time = _epoch(parts, budget, progress, log, clock)
        with parts.placement.optimizers.averaged():
            metrics = parts.validate()
            if metrics[parts.metric] > progress.best_metric:
                parts.keep_best(metrics)
        log.record(progress.step, {f"validation/{name}": value for name, value in metrics.items()})
        value = metrics[parts.metric]
        better = value > progress.best_metric
        if better:
            progress.best_metric, progress.best_epoch, progress.best_step = (
                value,
                progress.epoch,
                progress.step,
            )
            progress.stale_epochs = 0
            if parts.best is not None:
                _save(parts, progress, log, clock, parts.best)
        else:
            progress.stale_epochs += _weight(progress, budget)
        shown = "  ".join(f"{name} {number:.4f}" for name, number in metrics.items())
        log.say(f"epoch {progress.epoch + 1}  {shown}{'  *best' if better else ''}  {clock.seconds:.0f} s")
        if not out_of_time:
            # whole epochs alone, so that a run interrupted within one goes on as if it had not been
            if progress.best_whole is not None and value <= progress.best_whole:
                progress.plateaus += _weight(progress, budget)
            else:
                progress.best_whole = value
            progress.epoch, progress.shard, progress.batch = progress.epoch + 1, 0, 0
        progress.stopped = _reason_to_stop(progress, budget, out_of_time)
        _save(parts, progress, log, clock)
    return progress


def go_on(parts: Parts, budget: Budget, progress: Progress, log: Log) -> Progress:
    """Train ``budget.max_epochs`` further epochs, or as many as the time allows, without validating."""
    parts.loader.position = LoaderPosition(progress.epoch, progress.shard, progress.batch)
    clock = _Clock(progress.seconds)
    progress.stopped = ""
    parts.model.train()
    while not progress.stopped:
        if _epoch(parts, budget, progress, log, clock):
            progress.stopped = "time"
        else:
            progress.epoch, progress.shard, progress.batch = progress.epoch + 1, 0, 0
            progress.stopped = "epochs" if progress.epoch >= budget.max_epochs else ""
        _save(parts, progress, log, clock)
    return progress


def is_over(progress: Progress, budget: Budget) -> bool:
    """Whether the run has ended, and not merely run out of a time that now is longer."""
    return bool(progress.stopped) and (progress.stopped != "time" or progress.seconds >= budget.max_seconds)


def _epoch(parts: Parts, budget: Budget, progress: Progress, log: Log, clock: "_Clock") -> bool:
    """Run the rest of the current epoch; True when the time ran out within it."""
    log.begin_epoch(progress.epoch)
    warm, optimizers = warmup(budget.warmup_steps, budget.decay_steps), parts.placement.optimizers
    slowed = budget.plateau_factor**progress.plateaus
    total, count, late = 0.0, 0, False
    late_loss = LateLoss()
    batches = prefetch(parts.loader, pin=next(parts.model.parameters()).is_cuda)
    try:
        for batch, position in batches:
            optimizers.begin_step(warm(progress.step) * slowed)
            parts.before_step(batch)
            loss = parts.placement.loss(batch)
            late = clock.seconds > budget.max_seconds
            value, late, examples = _agree(parts.ranks, late_loss.after(loss), late, batch.examples)
            _refuse_infinite(value, progress.step)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = optimizers.clip(budget.clip_norm)
            optimizers.step()
            progress.step += 1
            optimizers.follow(progress.step)
            progress.shard, progress.batch = position.shard, position.batch
            total, count = total + value * examples, count + examples
            left = max(budget.max_seconds - clock.seconds, 0.0) / 60
            log.step(progress.epoch, examples, total / count, left)
            if progress.step % budget.log_steps == 0:
                log.record(progress.step, {"train/loss": value, "train/gradient_norm": float(norm)})
            if progress.step % budget.checkpoint_steps == 0:
                _refuse_infinite(late_loss.last(), progress.step)
                _save(parts, progress, log, clock)
            if late:
                break
    finally:
        batches.close()  # type: ignore[attr-defined]
    _refuse_infinite(late_loss.last(), progress.step)
    return late


def _weight(progress: Progress, budget: Budget) -> float:
    """How much an epoch without a better validation says, in [0, 1]."""
    if progress.step < budget.warmup_steps:
        return 0.0
    return min(1.0, progress.step / (progress.epoch + 1) / budget.epoch_steps)


def _refuse_infinite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise ConfigError(
            f"loss is {loss} at step {step}; lower model.optimizer.learning_rate, or look for extreme "
            "values in dense features"
        )


def _agree(ranks: Ranks, loss: float, late: bool, examples: int) -> tuple[float, bool, int]:
    """Loss of the whole batch, whether any rank is out of time, and the examples of all ranks."""
    total, late_ranks, all_examples = ranks.sum([loss, late, examples])
    return total / ranks.world, late_ranks > 0, int(all_examples)


def _reason_to_stop(progress: Progress, budget: Budget, out_of_time: bool) -> str:
    if out_of_time:
        return "time"
    if progress.stale_epochs >= budget.patience:
        return "patience"
    return "epochs" if progress.epoch >= budget.max_epochs else ""


def _save(parts: Parts, progress: Progress, log: Log, clock: "_Clock", directory: Path | None = None) -> None:
    progress.seconds, progress.log_lines = clock.seconds, log.lines
    save_checkpoint(
        directory or parts.checkpoints, parts.placement.state(), progress, parts.fingerprint, parts.ranks
    )


class _Clock:
    """Seconds trained, those of earlier sessions included."""

    def __init__(self, before: float) -> None:
        self.before = before
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start
