"""Resume state of a run: weights, optimizer, loader position, random state. Tensors in safetensors, the
rest in JSON; each checkpoint is a directory that appears whole.

The served model is written apart, by ``models.portable``.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.atomic import read_json, staged_directory, write_json
from data.errors import ConfigError, ContractError


@dataclass(slots=True)
class Progress:
    """Where a run stands: JSON values only."""

    step: int = 0
    epoch: int = 0
    shard: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_metric: float = float("-inf")
    best_epoch: int = -1
    stale_epochs: int = 0
    finished: bool = False


def save_checkpoint(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, fingerprint: str
) -> None:
    """Write ``directory/step-N`` and drop older ones; a killed process leaves the older one usable."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    record: dict[str, Any] = {name: getattr(progress, name) for name in Progress.__dataclass_fields__}
    record["best_metric"] = None if progress.best_epoch < 0 else progress.best_metric
    target = directory / f"step-{progress.step:09d}"
    with staged_directory(target, overwrite=True) as scratch:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            scratch / "state.safetensors",
        )
        write_json(scratch / "progress.json", {"fingerprint": fingerprint, **record})
    for old in directory.glob("step-*"):
        if old.name < target.name:
            shutil.rmtree(old)


def load_checkpoint(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> Progress | None:
    """Restore the newest checkpoint in place; None where there is none yet.

    Refuses one that was written under another config or other prepared data.
    """
    newest = max(directory.glob("step-*"), default=None)
    if newest is None:
        return None
    record = read_json(newest / "progress.json")
    if record.pop("fingerprint", None) != fingerprint:
        raise ConfigError(
            f"{newest}: written with another config or other prepared data; resume with the settings in "
            f"{directory.parent / 'run.json'}, or start anew with overwrite=true resume=false"
        )
    try:
        tensors = load_file(newest / "state.safetensors")
        model.load_state_dict(_part(tensors, "model."))
        _restore_optimizer(optimizer, _part(tensors, "optimizer."))
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
    except (SafetensorError, RuntimeError, KeyError, OSError) as error:
        raise ContractError(
            f"{newest}: broken checkpoint ({str(error).splitlines()[0]}); delete it"
        ) from None
    if record["best_metric"] is None:
        record["best_metric"] = float("-inf")
    return Progress(**record)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
