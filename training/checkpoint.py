"""Resume state of a run: weights, optimizer, loader position, random state. Tensors in safetensors, the
rest in JSON; each checkpoint is a directory that appears whole.

One process writes one file. Several write their parts through ``torch.distributed.checkpoint``, also as
safetensors; either form can be read by any number of processes. The served model is written apart, by
``models.portable``.
"""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from data.atomic import read_json, staged_directory, write_json
from data.errors import ConfigError, ContractError
from training.distributed import ALONE, Ranks

#: Older checkpoints that stay beside the newest, for the case that its disk block is lost.
KEPT_BEFORE = 1


@dataclass(slots=True)
class Progress:
    """Where a run stands: JSON values only. ``plateaus`` counts whole epochs that were no better than
    ``best_whole``, the best whole epoch before. ``stopped`` says why it ended: ``patience``, ``epochs``,
    ``time``, or nothing while it has not. ``log_lines`` are the lines of metrics.jsonl so far.
    """

    step: int = 0
    epoch: int = 0
    shard: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_metric: float = float("-inf")
    best_epoch: int = -1
    best_step: int = -1
    stale_epochs: float = 0.0
    plateaus: float = 0.0
    best_whole: float | None = None
    stopped: str = ""
    log_lines: int = 0


def save_checkpoint(
    directory: Path, state: Mapping[str, Tensor], progress: Progress, fingerprint: str, ranks: Ranks
) -> None:
    """Write ``directory/step-N`` and drop old ones; a killed process leaves the last one usable. Collective.

    ``state`` is a placement's: live tensors by name, those of large tables cut over the ranks.
    """
    tensors = {**_vectors(state), **_random_state(ranks)}
    record = {"fingerprint": fingerprint, "processes": ranks.world, **asdict(progress)}
    record["best_metric"] = None if progress.best_epoch < 0 else progress.best_metric
    target = directory / f"step-{progress.step:09d}"
    if not ranks.grouped:
        with staged_directory(target, overwrite=True) as scratch:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                scratch / "state.safetensors",
            )
            write_json(scratch / "progress.json", record)
    else:
        scratch = directory / f".{target.name}.parts"
        ranks.on_lead(lambda: _empty(scratch))
        writer = HuggingFaceStorageWriter(str(scratch), save_distributed=True)
        try:
            save(tensors, storage_writer=writer)
        except CheckpointException as error:  # a BaseException, which nothing above would expect
            raise RuntimeError(str(error)) from error
        ranks.on_lead(lambda: _complete(scratch, target, record))
    if ranks.lead:
        for old in sorted(directory.glob("step-*"))[: -1 - KEPT_BEFORE]:
            shutil.rmtree(old)


def load_checkpoint(
    directory: Path, state: Mapping[str, Tensor], fingerprint: str, ranks: Ranks = ALONE
) -> Progress | None:
    """Copy the newest checkpoint into ``state``, in place; None where there is none yet. Collective.

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
    # a process more than there were when this was written starts with a random state of its own
    random = _random_state(ranks) if ranks.rank < record.pop("processes", 1) else {}
    wanted = {**_vectors(state), **random}
    try:
        if ranks.grouped or not (newest / "state.safetensors").exists():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as asked
                reader = HuggingFaceStorageReader(str(newest))
                load(wanted, storage_reader=reader, no_dist=not ranks.grouped)
        else:
            loaded = load_file(newest / "state.safetensors")
            # written where there was no CUDA: its generator goes on as it is
            _copy(loaded, {n: t for n, t in wanted.items() if n in loaded or not n.startswith("random.cuda")})
        if record["best_metric"] is None:
            record["best_metric"] = float("-inf")
        progress = Progress(**record)
    except (
        SafetensorError,
        CheckpointException,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        OSError,
    ) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ContractError(
            f"{newest}: broken checkpoint ({reason}); delete that directory, and resume=true goes on from "
            "the one before"
        ) from None
    if random:
        torch.set_rng_state(random[f"random.cpu.{ranks.rank}"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(random[f"random.cuda.{ranks.rank}"])
    return progress


def remove_checkpoints(directory: Path) -> None:
    """Delete all checkpoints in ``directory``, if it exists."""
    shutil.rmtree(directory, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed process left half-written in ``directory``."""
    for pattern in (".step-*", ".model.*", ".prepared.*"):
        for scratch in directory.glob(pattern):
            shutil.rmtree(scratch)


def _vectors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars as vectors of one: cut tensors are addressed by slices, and a scalar has none."""
    return {name: tensor.view(1) if tensor.dim() == 0 else tensor for name, tensor in state.items()}


def _random_state(ranks: Ranks) -> dict[str, Tensor]:
    state = {f"random.cpu.{ranks.rank}": torch.get_rng_state()}
    if torch.cuda.is_available():
        state[f"random.cuda.{ranks.rank}"] = torch.cuda.get_rng_state()
    return state


def _copy(loaded: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in wanted.items():
            if loaded[name].shape != tensor.shape:
                raise ValueError(f"{name} is {tuple(loaded[name].shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(loaded[name])


def _empty(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)


def _complete(scratch: Path, target: Path, record: dict[str, Any]) -> None:
    write_json(scratch / "progress.json", record)
    if target.exists():
        shutil.rmtree(target)
    scratch.rename(target)
