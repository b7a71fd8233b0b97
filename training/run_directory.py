"""The directory of one run: ``run.json``, ``model/``, ``checkpoints/``, ``metrics.jsonl``, ``prepared/``."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.atomic import read_json, refuse_existing, write_json
from data.errors import ConfigError
from data.prepared import Prepared
from training.checkpoint import Progress, load_checkpoint
from training.config import TrainConfig


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
            f"{out}: started with another config or other prepared data (see {out / 'run.json'}); "
            "resume with those settings, or start anew with overwrite=true resume=false"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "checkpoints").mkdir(exist_ok=True)
    restored = load_checkpoint(out / "checkpoints", model, optimizer, fingerprint) if config.resume else None
    return out, restored or Progress()


def remove_run(out: Path) -> None:
    """Delete an old run, but only what is one."""
    if not (out / "run.json").exists():
        raise ConfigError(
            f"out={out} is not a run directory (no run.json); choose another, it will not be deleted"
        )
    shutil.rmtree(out)


def write_run(
    out: Path,
    config: TrainConfig,
    prepared: Prepared,
    fingerprint: str,
    progress: Progress | None = None,
    metric: str | None = None,
) -> None:
    """Write ``run.json`` and, once, the part of the prepared data that publishing needs."""
    if not (out / "prepared").exists():
        prepared.save_tables(out / "prepared")
    best = None
    if progress is not None and progress.best_epoch >= 0:
        best = {
            "epoch": progress.best_epoch,
            "metric": metric,
            "value": progress.best_metric,
            "step": progress.step,
        }
    write_json(
        out / "run.json",
        {
            "schema_version": 1,
            "kind": config.model.name,
            "seed": config.seed,
            "fingerprint": fingerprint,
            "prepared": {"path": str(Path(config.prepared).absolute()), "hash": prepared.manifest["hash"]},
            "config": plain(config),
            "best": best,
            "seconds": None if progress is None else progress.seconds,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        },
    )


def plain(value: Any) -> Any:
    """A config as JSON values: dataclasses to dicts, enums to their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return getattr(value, "value", value)
