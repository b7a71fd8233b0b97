"""The directory of one run: ``run.json``, ``model/``, ``checkpoints/``, ``metrics.jsonl``, ``prepared/``."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.atomic import read_json, refuse_existing, staged_directory, write_json
from data.errors import ConfigError
from data.locations import local_path
from data.prepared import Prepared
from training.checkpoint import Progress, remove_leftovers
from training.config import TrainConfig
from training.distributed import Ranks
from training.progress import NoLog, RunLog


def fingerprint_of(config: TrainConfig, prepared: Prepared, processes: int = 1) -> str:
    """Hash of what a checkpoint depends on: the recipe, the seed and the prepared data.

    ``tokens`` counts times ``processes``: the same whole batches come from more processes with fewer each.
    """
    recipe = plain(config.model)
    if "tokens" in recipe:
        recipe["tokens"] *= processes
    content = json.dumps([recipe, config.seed, prepared.manifest["hash"]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def open_run(config: TrainConfig, prepared: Prepared, fingerprint: str) -> Path:
    """Make the run directory, or reopen the one to resume; refuse one of another recipe or with content."""
    out = Path(config.out)
    if not config.resume:
        refuse_existing(out, overwrite=config.overwrite)
        if out.exists():
            remove_run(out)
    elif (out / "run.json").exists() and read_json(out / "run.json").get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{out}: started with another config (model.tokens times the number of processes counts) or "
            f"other prepared data, see {out / 'run.json'}; resume with those settings, or start anew with "
            "overwrite=true resume=false"
        )
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for folder in (out, *(out / name for name in ("checkpoints", "best", "refit"))):
        remove_leftovers(folder)
    if not (out / "run.json").exists():
        write_run(out, config, prepared, fingerprint)
    return out


def open_log(out: Path, examples: int, progress: Progress, ranks: Ranks) -> RunLog | NoLog:
    """The run's log from where ``progress`` stands; ranks other than the lead tell nothing."""
    if not ranks.lead:
        return NoLog()
    return RunLog(out, examples, from_step=progress.step, lines=progress.log_lines)


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
    splits: int = 1,
    **facts: Any,
) -> None:
    """Write ``run.json`` and, once, the part of the prepared data that publishing needs.

    ``splits`` is how many splits the model learnt from: 1 training, 2 validation as well. ``facts`` are
    further JSON values to record.
    """
    best = None
    if progress is not None and progress.best_epoch >= 0:
        best = {
            "epoch": progress.best_epoch,
            "metric": metric,
            "value": progress.best_metric,
            "step": progress.best_step,
        }
    write_json(
        out / "run.json",
        {
            "schema_version": 1,
            "kind": config.model.name,
            "seed": config.seed,
            "fingerprint": fingerprint,
            "prepared": {"path": _absolute(config.prepared), "hash": prepared.manifest["hash"]},
            "config": plain(config),
            "best": best,
            "splits": splits,
            "seconds": None if progress is None else progress.seconds,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            **facts,
        },
    )
    if not (out / "prepared").exists():
        with staged_directory(out / "prepared") as scratch:
            prepared.save_tables(scratch)


def _absolute(path: str) -> str:
    local = local_path(path)
    return path if local is None else str(local.absolute())


def plain(value: Any) -> Any:
    """A config as JSON values: dataclasses to dicts, enums to their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return getattr(value, "value", value)
