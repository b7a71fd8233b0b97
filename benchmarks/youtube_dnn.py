"""A YoutubeDNN on a table of a million rows: torch-rechub's, and an equal tower from shopreel's parts.

    python benchmarks/youtube_dnn.py [rows=1000000] [runs=5] [threads=0] [clock=wall] [peers_python=…]

The user is the mean of 50 videos through a perceptron (128, 64), 4,096 positives a step, ids drawn uniformly;
Adam (torch-rechub's default) there, AdamW and row-wise Adagrad here. torch-rechub scores each positive beside
20 negatives of its own, shopreel beside 1,024 uniform ones and the other positives, corrected by how likely
they were drawn. Batches are made beforehand. Systems take turns, 8 steps a run after two; printed are
positives a second, median (range), and the ratio of each turn.
"""

import json
import os
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.side_by_side import in_turns, say_missing, spread, times

DIM, HISTORY, BATCH, NEGATIVES, UNIFORM = 64, 50, 4096, 20, 1024
Step = Callable[[int], None]


def shopreel(rows: int, generator: torch.Generator) -> Step:
    """The tower from our parts."""
    from torch import nn

    from models.embeddings import PlainTables, bag_means
    from models.losses import Targets, softmax_loss
    from training.optimizers import Optimizers, RowWiseAdagrad, build_adamw

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = PlainTables({"video": 2}, DIM, dense_rows=0)
            self.tables.weights["video"] = nn.Parameter(torch.randn(rows, DIM) * 0.02)
            self.user = nn.Sequential(
                nn.Linear(DIM, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.BatchNorm1d(64),
                nn.ReLU(),
            )  # fmt: skip

    model = Tower()
    table = model.tables.weights["video"]
    optimizers = Optimizers(
        build_adamw(model, 1e-3, 0.0, leave_out={"tables.weights.video"}), RowWiseAdagrad([table], 0.05)
    )
    offsets, weight = torch.arange(0, BATCH * HISTORY + 1, HISTORY), torch.ones(BATCH)
    temperature, nothing = torch.tensor(0.05), torch.empty(BATCH, 0, dtype=torch.int64)
    batches = []
    for _ in range(8):
        history = torch.randint(1, rows, (BATCH * HISTORY,), generator=generator)
        target = torch.randint(1, rows, (BATCH,), generator=generator)
        drawn = torch.cat([target, torch.randint(1, rows, (UNIFORM,), generator=generator)])
        candidates, count = drawn.unique(return_counts=True)
        correction = (count * rows / len(drawn)).log()  # uniform positives: each as likely as any
        batches.append((history, candidates, torch.searchsorted(candidates, target), correction))

    def step(number: int) -> None:
        history, candidates, target, correction = batches[number % len(batches)]
        optimizers.begin_step(1.0)
        user = nn.functional.normalize(model.user(bag_means(table, history, offsets, sparse=True)))
        video = nn.functional.normalize(
            bag_means(table, candidates, torch.arange(len(candidates) + 1), sparse=True)
        )
        targets = Targets.single(target, weight, nothing)
        softmax_loss(user, video, targets, temperature, correction).backward()
        optimizers.step()

    return step


def rechub(rows: int, generator: torch.Generator) -> Step:
    """torch-rechub's model, its trainer's loss and optimizer."""
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.matching import YoutubeDNN

    model = YoutubeDNN(
        [SequenceFeature("history", rows, DIM, pooling="mean", shared_with="video", padding_idx=0)],
        [SparseFeature("video", rows, DIM)],
        [SequenceFeature("negatives", rows, DIM, pooling="concat", shared_with="video")],
        {"dims": [128, 64], "activation": "relu", "dropout": 0.0}, temperature=0.05,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-5)
    shapes = {"history": (BATCH, HISTORY), "video": (BATCH,), "negatives": (BATCH, NEGATIVES)}
    batches = [
        {name: torch.randint(1, rows, size, generator=generator) for name, size in shapes.items()}
        for _ in range(8)
    ]
    first = torch.zeros(BATCH, dtype=torch.int64)

    def step(number: int) -> None:
        loss = torch.nn.functional.cross_entropy(model(batches[number % len(batches)]), first)
        model.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(make: Callable[[int, torch.Generator], Step], arguments: dict[str, str]) -> float:
    torch.set_num_threads(int(arguments.get("threads", "0")) or len(os.sched_getaffinity(0)))
    clock = time.process_time if arguments.get("clock") == "cpu" else time.perf_counter
    step = make(int(arguments.get("rows", "1000000")), torch.Generator().manual_seed(0))
    for number in range(2):
        step(number)
    began = clock()
    for number in range(8):
        step(number)
    return 8 * BATCH / (clock() - began)


def main(arguments: dict[str, str]) -> None:
    makers = {"shopreel": shopreel, "rechub": rechub}
    if "worker" in arguments:
        if arguments["worker"] == "shopreel":
            from training.config import Device
            from training.process import start_process

            start_process(0, Device.cpu, 0)
        print(json.dumps({"rate": measure(makers[arguments["worker"]], arguments)}))
        return
    found, missing = in_turns(__file__, arguments, tuple(makers), ("rechub",))
    rates = {system: [run["rate"] for run in runs] for system, runs in found.items()}
    for system, each in rates.items():
        beside = f"  shopreel {times(rates['shopreel'], each)}" if "shopreel" in rates else ""
        print(f"{system:<10} {spread(each, ',.0f')} positives/s{beside}")
    say_missing(missing)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
