"""Training of the ranker: rows a second beside DeepCTR-Torch's and torch-rechub's MMoE of the same size.

    python benchmarks/ranker_training.py [runs=5] [batches=16] [threads=0] [clock=wall] [peers_python=…]

All train four tasks on made-up impressions (100,000 videos, 50,000 creators, 2,000 users) in batches of 1,024
with three experts of 64 and embeddings of 8; the peers' hidden layers are as wide as gives them as many
parameters beside the tables as shopreel's ranker has. ``shopreel`` is the default recipe: attention of the
candidate over 64 steps, statistics, watch time; ``no_history`` reads one step, which is the closest to an
MMoE, that reads none. Both with the loader that makes their batches from the log in a thread, as in a run.
The peers' rows lie in memory; DeepCTR-Torch runs its own ``fit``, torch-rechub its model under Adam. Systems
take turns: ``batches=`` a run, after some that do not count; median (range) and the ratio of each turn.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.side_by_side import in_turns, say_missing, spread, times

TASKS, BATCH = 4, 1024
ROWS = {"user": 2_001, "market": 13, "video": 100_001, "creator": 50_001, "category": 101, "surface": 4}
Clock = Callable[[], float]


def shopreel(folder: Path, clock: Clock, batches: int, steps: int) -> dict[str, Any]:
    """Our recipe with histories of so many steps."""
    from functools import partial

    from benchmarks.synthetic import synthetic
    from benchmarks.training_step import RULE, ranker_recipe, train
    from data.prepared import Prepared
    from data.ranking_loader import RankingLoader, build_features
    from models.ranker import Ranker
    from training.config import Device
    from training.placement import OneProcess, Task
    from training.prefetch import prefetch
    from training.process import start_process
    from training.ranker_start import begin, shape_of, watch_bins
    from training.ranking_objective import RankingObjective

    device = start_process(0, Device.cpu, torch.get_num_threads())
    path = folder / "prepared"
    prepared = (
        Prepared.open(path) if path.exists() else synthetic(path, users=2_000, videos=100_000, steps=128)
    )
    recipe = ranker_recipe()
    recipe.max_steps, recipe.attention_steps = max(steps, 1), min(steps, recipe.attention_steps)
    features = build_features(prepared, half_life_days=(3.0, 30.0), max_steps=steps)
    loader = RankingLoader(prepared, features, split=0, batch_size=BATCH, seed=1)
    bins = watch_bins(recipe, prepared, loader)
    model = Ranker(shape_of(recipe, prepared, features, bins))
    begin(model, RankingLoader(prepared, features, split=0, batch_size=BATCH, seed=1))
    objective = RankingObjective.of(prepared, features, bins, recipe, device)
    placement = OneProcess(Task(model, partial(objective.loss, model)), RULE)
    model.train()
    stream = prefetch(loader)
    for batch, _ in islice(stream, 5):
        train(placement, batch)
    began, rows = clock(), 0
    for batch, _ in islice(stream, batches):
        train(placement, batch)
        rows += batch.examples
    rate = rows / (clock() - began)
    stream.close()  # type: ignore[attr-defined]
    dense = sum(p.numel() for n, p in model.named_parameters() if "tables" not in n and "embedding" not in n)
    return {"rate": rate, "dense": dense}


def inputs(rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    g = np.random.default_rng(0)
    return {name: g.integers(1, size, rows) for name, size in ROWS.items()}, g.integers(0, 2, (rows, TASKS))


def width_for(dense: int, make: Callable[[int], torch.nn.Module]) -> int:
    """The width of the first layer at which a peer has about ``dense`` parameters beside its tables."""
    sizes = {}
    for width in range(32, 1025, 16):
        model = make(width)
        sizes[width] = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
    return min(sizes, key=lambda width: abs(sizes[width] - dense))


def deepctr(clock: Clock, batches: int, dense: int) -> dict[str, Any]:
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import MMOE

    columns = [SparseFeat(name, size, embedding_dim=8) for name, size in ROWS.items()]
    small = [SparseFeat(name, 2, embedding_dim=8) for name in ROWS]

    def make(width: int, features: list[Any] = small) -> torch.nn.Module:
        model: torch.nn.Module = MMOE(
            features, num_experts=3, expert_dnn_hidden_units=(width, 64), gate_dnn_hidden_units=(),
            tower_dnn_hidden_units=(64,), task_types=["binary"] * TASKS,
            task_names=[f"task{n}" for n in range(TASKS)],
        )  # fmt: skip
        return model

    model = make(width_for(dense, make), columns)
    model.compile("adam", loss=["binary_crossentropy"] * TASKS)
    x, y = inputs(batches * BATCH)
    model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
    began = clock()
    model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
    rate = len(y) / (clock() - began)
    size = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
    return {"rate": rate, "dense": size}


def rechub(clock: Clock, batches: int, dense: int) -> dict[str, Any]:
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import MMOE

    def make(width: int, rows: dict[str, int] | None = None) -> torch.nn.Module:
        features = [SparseFeature(name, (rows or {}).get(name, 2), embed_dim=8) for name in ROWS]
        model: torch.nn.Module = MMOE(
            features, ["classification"] * TASKS, 3, {"dims": [width, 64], "activation": "relu"},
            [{"dims": [64], "activation": "relu"}] * TASKS,
        )  # fmt: skip
        return model

    model = make(width_for(dense, make), ROWS)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x, y = inputs(batches * BATCH)
    x, y = {name: torch.from_numpy(ids) for name, ids in x.items()}, torch.from_numpy(y).float()

    def epoch() -> None:
        for begin in range(0, len(y), BATCH):
            part = slice(begin, begin + BATCH)
            said = model({name: ids[part] for name, ids in x.items()})
            loss = torch.nn.functional.binary_cross_entropy(said, y[part])
            model.zero_grad()
            loss.backward()
            optimizer.step()

    epoch()
    began = clock()
    epoch()
    rate = len(y) / (clock() - began)
    size = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
    return {"rate": rate, "dense": size}


def work(arguments: dict[str, str]) -> dict[str, Any]:
    torch.set_num_threads(int(arguments.get("threads", "0")) or len(os.sched_getaffinity(0)))
    clock = time.process_time if arguments.get("clock") == "cpu" else time.perf_counter
    dense, batches = int(arguments.get("dense", "0")), int(arguments.get("batches", "16"))
    match arguments["worker"]:
        case "shopreel":
            return shopreel(Path(arguments["folder"]), clock, batches, 128)
        case "no_history":
            return shopreel(Path(arguments["folder"]), clock, batches, 1)
        case "deepctr":
            return deepctr(clock, batches, dense)
        case _:
            return rechub(clock, batches, dense)


def main(arguments: dict[str, str]) -> None:
    if "worker" in arguments:
        print(json.dumps(work(arguments)))
        return
    peers = ("deepctr", "rechub")
    with tempfile.TemporaryDirectory() as folder:
        told = arguments | {"folder": folder}
        found, missing = in_turns(
            __file__, told, ("shopreel", "no_history", *peers), peers,
            lambda found: {"dense": found["shopreel"][0]["dense"]} if found["shopreel"] else {},
        )  # fmt: skip
    rates = {system: [run["rate"] for run in runs] for system, runs in found.items()}
    for system, each in rates.items():
        ratios = "".join(
            f"  {ours} {times(rates[ours], each, '.2f')}"
            for ours in ("shopreel", "no_history")
            if ours in rates and ours != system and system in peers
        )
        dense = found[system][0]["dense"]
        print(f"{system:<11} {spread(each, ',.0f')} rows/s, {dense:,} dense parameters{ratios}")
    say_missing(missing)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
