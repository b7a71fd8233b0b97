"""Part of benchmarks/gpu.py: forward, backward and update of 204,800 uniform lookups of 64 dimensions."""

import statistics
from functools import partial

import torch

from benchmarks.gpu_bench import Bench
from models.embeddings import FeatureBatch, PlainTables
from training.optimizers import RowWiseAdagrad

LOOKUPS, DIM = 4096 * 50, 64


def table(bench: Bench) -> None:
    """At a million rows, and at twenty."""
    for rows in (bench.rows(1e6, 100), bench.rows(2e7, 100)):
        model = PlainTables({"video": rows}, 1, dense_rows=0)  # drawing the rows is not measured
        model.weights["video"] = torch.nn.Parameter(torch.zeros(rows, DIM, device=bench.device))
        model.register_buffer("nothing", torch.zeros(DIM, device=bench.device), persistent=False)
        optimizer = RowWiseAdagrad([model.weights["video"]], 0.05)
        id_L = torch.randint(rows, (LOOKUPS,), device=bench.device)
        offsets = torch.arange(LOOKUPS + 1, device=bench.device)
        gradient = torch.randn(LOOKUPS, DIM, device=bench.device)
        batch = FeatureBatch({"video": (id_L, offsets)}, {}, LOOKUPS)
        step = partial(update, model, optimizer, batch, gradient)
        seconds = bench.seconds_of(step, 5)
        least = 2 * LOOKUPS * DIM * 4 / bench.limits["copy"]
        bench.tell(
            f"table step, {rows:,} × {DIM}", [s * 1e3 for s in seconds], "ms",
            times_the_bytes=statistics.median(seconds) / least,
        )  # fmt: skip


def update(
    model: PlainTables, optimizer: RowWiseAdagrad, batch: FeatureBatch, gradient: torch.Tensor
) -> None:
    optimizer.zero_grad()
    model(batch).backward(gradient)
    optimizer.step()
