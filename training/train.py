"""``shopreel train``: prepared data → a trained model, its checkpoints and its metrics.

Reads like a story: open the data, build the model, restore, train, say what to run next.
"""

import ctypes
import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from data.atomic import read_json, refuse_existing, write_json
from data.errors import ConfigError
from data.prepared import Prepared
from models.portable import save_two_tower
from models.two_tower import TwoTower
from training.checkpoint import Progress, load_checkpoint
from training.config import Device, TrainConfig, TwoTowerConfig
from training.loop import Budget, Parts, fit
from training.optimizers import build_adamw
from training.progress import RunLog
from training.retrieval import RetrievalObjective, build_loader, shape_of, validate
from training.validation import gain_mask, held_out

CONFIG = TrainConfig


def run(config: TrainConfig) -> None:
    """Train the configured model."""
    prepared = Prepared.open(config.prepared)
    match config.model:
        case TwoTowerConfig():
            train_two_tower(config, config.model, prepared)
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
        prepared, 1, gain_mask(prepared, recipe.validation.gain), recipe.validation.max_users, recipe.max_steps
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
        model=model, optimizer=optimizer, loader=loader, loss=lambda batch: objective.loss(model, batch),
        validate=lambda: validate(model, prepared, held, recipe.validation.k), metric=f"ndcg@{recipe.validation.k}",
        keep_best=keep_best, checkpoints=out / "checkpoints", fingerprint=fingerprint,
    )  # fmt: skip
    budget = Budget(
        max_epochs=recipe.max_epochs, max_seconds=config.max_minutes * 60, patience=recipe.patience,
        checkpoint_steps=config.checkpoint_steps, learning_rate=recipe.optimizer.learning_rate,
        warmup_steps=recipe.optimizer.warmup_steps, clip_norm=recipe.optimizer.clip_norm,
    )  # fmt: skip
    with log:
        size = sum(parameter.numel() for parameter in model.parameters())
        log.say(
            f"two_tower: {size:,} parameters, {loader.targets_total:,} positives an epoch, "
            f"{len(held.requests):,} validation users, on {device}"
        )
        progress = fit(parts, budget, progress, log)
    write_run(out, config, prepared, fingerprint, progress, parts.metric)
    Console().print(
        f"best {parts.metric} {progress.best_metric:.4f} in epoch {progress.best_epoch + 1}; model in {out / 'model'}\n"
        f"next: shopreel publish two_tower={out} dataset={prepared.manifest['dataset']['path']} out=BUNDLES",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def start_process(seed: int, device: Device, threads: int) -> torch.device:
    """Seed every generator, choose the device, keep large CPU blocks from going back to the kernel."""
    if device is Device.cuda and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch sees no CUDA device; use device=auto, or run shopreel doctor")
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries that draw from the global generator
    random.seed(seed)
    if threads > 0:
        torch.set_num_threads(threads)
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: each step reuses its large blocks
        libc.mallopt(-1, 1 << 31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library has other habits
    cuda = device is not Device.cpu and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def fingerprint_of(config: TrainConfig, prepared: Prepared) -> str:
    """Hash of what a checkpoint depends on: the recipe, the seed and the prepared data."""
    recipe = json.dumps([plain(config.model), config.seed, prepared.manifest["hash"]], sort_keys=True)
    return hashlib.sha256(recipe.encode()).hexdigest()


def open_run(
    config: TrainConfig, model: torch.nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> tuple[Path, Progress]:
    """Make or reopen the run directory and restore its newest checkpoint when resuming."""
    out = Path(config.out)
    if not config.resume:
        refuse_existing(out, overwrite=config.overwrite)
        if out.exists():
            remove_run(out)
    elif (out / "run.json").exists() and read_json(out / "run.json").get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{out}: this run was started with another config or other prepared data (see {out / 'run.json'}); "
            "resume with those settings, or start anew with overwrite=true resume=false"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "checkpoints").mkdir(exist_ok=True)
    restored = load_checkpoint(out / "checkpoints", model, optimizer, fingerprint) if config.resume else None
    return out, restored or Progress()


def remove_run(out: Path) -> None:
    """Delete an old run, but only what is one."""
    import shutil

    if not (out / "run.json").exists():
        raise ConfigError(f"out={out} is not a run directory (no run.json); choose another, it will not be deleted")
    shutil.rmtree(out)


def write_run(
    out: Path, config: TrainConfig, prepared: Prepared, fingerprint: str, progress: Progress | None = None,
    metric: str | None = None,
) -> None:  # fmt: skip
    """Write ``run.json`` and, once, the part of the prepared data that publishing needs."""
    if not (out / "prepared").exists():
        prepared.export(out / "prepared")
    best = None
    if progress is not None and progress.best_epoch >= 0:
        best = {"epoch": progress.best_epoch, "metric": metric, "value": progress.best_metric, "step": progress.step}
    write_json(
        out / "run.json",
        {
            "schema_version": 1, "kind": config.model.name, "seed": config.seed, "fingerprint": fingerprint,
            "prepared": {"path": str(Path(config.prepared).absolute()), "hash": prepared.manifest["hash"]},
            "config": plain(config), "best": best, "seconds": None if progress is None else progress.seconds,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        },
    )  # fmt: skip


def plain(value: Any) -> Any:
    """A config as JSON values: dataclasses to dicts, enums to their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return getattr(value, "value", value)
