"""A YoutubeDNN on a table of a million rows: torch-rechub's, and an equal tower from shopreel's parts.

    python benchmarks/youtube_dnn.py peers_python=/path/to/python [rows=1000000] [threads=0] [clock=wall]

The user is the mean of 50 videos through a perceptron (128, 64), 4,096 positives a step, ids drawn uniformly;
Adam (torch-rechub's default) there, AdamW and row-wise Adagrad here. torch-rechub scores each positive beside
20 negatives of its own, shopreel beside 1,024 uniform ones and the other positives, corrected by how likely
they were drawn. Batches are made beforehand. Printed: positives a second, median (range).
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

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


def measure(make: Callable[[int, torch.Generator], Step], arguments: dict[str, str]) -> list[float]:
    torch.set_num_threads(int(arguments.get("threads", "0")) or len(os.sched_getaffinity(0)))
    clock = time.process_time if arguments.get("clock") == "cpu" else time.perf_counter
    step = make(int(arguments.get("rows", "1000000")), torch.Generator().manual_seed(0))
    for number in range(3):
        step(number)
    rates = []
    for turn in range(int(arguments.get("rounds", "5"))):
        began = clock()
        for number in range(6):
            step(6 * turn + number)
        rates.append(6 * BATCH / (clock() - began))
    return rates


def main(arguments: dict[str, str]) -> None:
    if "worker" in arguments:
        if arguments["worker"] == "shopreel":
            from training.config import Device
            from training.process import start_process

            start_process(0, Device.cpu, 0)
        makers = {"shopreel": shopreel, "rechub": rechub}
        print(*measure(makers[arguments["worker"]], arguments))
        return
    root, medians = Path(__file__).resolve().parent.parent, {}
    for worker in ("shopreel", "rechub"):
        python = sys.executable if worker == "shopreel" else arguments.get("peers_python", sys.executable)
        words = [f"{name}={value}" for name, value in arguments.items()]
        done = subprocess.run(
            [python, "-W", "ignore", __file__, *words, f"worker={worker}"], capture_output=True, text=True,
            check=False, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
        if done.returncode:
            print(f"{worker} left out: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
            continue
        rates = np.array(done.stdout.split()[-int(arguments.get("rounds", "5")) :], float)
        medians[worker] = statistics.median(rates)
        times = f"{medians['shopreel'] / medians[worker]:.1f}" if "shopreel" in medians else ""
        span = f"({rates.min():,.0f} – {rates.max():,.0f})"
        print(f"{worker:<10} {medians[worker]:>10,.0f} {span} positives/s  {times}", flush=True)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
