"""One table of 64 dimensions: forward, backward and update of 204,800 lookups, against the usual ways.

    python benchmarks/table_step.py rows=1000000,5000000 rounds=7 clock=wall

Every step looks up 4,096 histories of 50 ids drawn uniformly (the hardest case: nearly every id is another
row), one vector per step of the history, and receives the same gradient. Printed is the median of a round's
seconds a step with its range, and the ratio to shopreel at the same size. Systems run one after another, each
in a process of its own with the memory settings of ``shopreel train``; dense Adam of 5 M rows takes 8 GB.

"moving the bytes" is what nobody can avoid: reading the looked-up rows, and writing each touched row once.
``clock=cpu`` counts the processor's seconds, for a machine that other jobs share.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.side_by_side import ROOT, say_missing, spread
from models.embeddings import FeatureBatch, PlainTables
from training.config import Device
from training.optimizers import RowWiseAdagrad
from training.process import start_process

DIM, BATCH, HISTORY = 64, 4096, 50
LOOKUPS = BATCH * HISTORY
RATE = 0.05

#: One step on the given ids [LOOKUPS] and gradient [LOOKUPS, DIM].
Step = Callable[[Tensor, Tensor], None]


def shopreel(rows: int) -> Step:
    """Our tables: sparse gradients and row-wise Adagrad on the touched rows."""
    tables = PlainTables({"video": rows}, DIM, dense_rows=0)
    optimizer = RowWiseAdagrad(tables.parameters(), RATE)
    offsets = torch.arange(LOOKUPS + 1)

    def step(ids: Tensor, gradient: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        tables(FeatureBatch({"video": (ids, offsets)}, {}, LOOKUPS)).backward(gradient)
        optimizer.step()

    return step


def torchrec_fused(rows: int) -> Step:
    """Stock TorchRec: EmbeddingCollection, fused row-wise Adagrad, DistributedModelParallel."""
    import torch.distributed as dist
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
    from torchrec.distributed import DistributedModelParallel
    from torchrec.optim import RowWiseAdagrad as Fused
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = EmbeddingConfig(name="video", embedding_dim=DIM, num_embeddings=rows, feature_names=["video"])
    collection = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    apply_optimizer_in_backward(Fused, collection.parameters(), {"lr": RATE})
    model = DistributedModelParallel(collection, device=torch.device("cpu"))
    lengths = torch.full((BATCH,), HISTORY)

    def step(ids: Tensor, gradient: Tensor) -> None:
        found = model(KeyedJaggedTensor(["video"], ids, lengths=lengths))
        found["video"].values().backward(gradient)

    return step


def with_optimizer(
    rows: int, sparse: bool, make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
) -> Step:
    """nn.Embedding and one of torch's optimizers."""
    table = nn.Embedding(rows, DIM, sparse=sparse)
    optimizer = make(table.parameters())

    def step(ids: Tensor, gradient: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        table(ids).backward(gradient)
        optimizer.step()

    return step


def moving(rows: int) -> Step:
    """Only the memory traffic: every lookup read into its place, every touched row written once."""
    table, buffer = torch.randn(rows, DIM), torch.empty(LOOKUPS, DIM)
    known: dict[int, Tensor] = {}

    def step(ids: Tensor, gradient: Tensor) -> None:
        touched = known.setdefault(id(ids), ids.unique())
        torch.index_select(table, 0, ids, out=buffer)
        table.index_copy_(0, touched, gradient[: len(touched)])

    return step


SYSTEMS: dict[str, Callable[[int], Step]] = {
    "shopreel": shopreel,
    "moving the bytes": moving,
    "TorchRec fused": torchrec_fused,
    "sparse Adagrad": lambda rows: with_optimizer(rows, True, lambda p: torch.optim.Adagrad(p, RATE)),
    "dense Adam": lambda rows: with_optimizer(rows, False, lambda p: torch.optim.Adam(p, RATE)),
    "fused dense Adam": lambda rows: with_optimizer(
        rows, False, lambda p: torch.optim.Adam(p, RATE, fused=True)
    ),
}


def work(arguments: dict[str, str]) -> list[float]:
    """Seconds a step of each round of one system, in this process."""
    rows, rounds, steps = (int(arguments[name]) for name in ("rows", "rounds", "steps"))
    clock = time.process_time if arguments.get("clock") == "cpu" else time.perf_counter
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    start_process(0, Device.cpu, int(arguments.get("threads", "0")))
    batches, gradient = inputs(rows, steps)
    step = SYSTEMS[arguments["worker"]](rows)
    seconds = []
    for turn in range(rounds + 1):  # the first warms up: states are made, kernels chosen
        begin = clock()
        for ids in batches:
            step(ids, gradient)
        if turn:
            seconds.append((clock() - begin) / len(batches))
    return seconds


def inputs(rows: int, steps: int) -> tuple[list[Tensor], Tensor]:
    """Ids of every step, and the gradient that all of them receive."""
    random = torch.Generator().manual_seed(0)
    batches = [torch.randint(rows, (LOOKUPS,), generator=random) for _ in range(steps)]
    return batches, torch.randn(LOOKUPS, DIM, generator=random) / LOOKUPS


def measured(system: str, arguments: dict[str, str]) -> list[float] | str:
    """The seconds of a process of its own; or why there are none, such as memory that is not there."""
    words = [f"{name}={value}" for name, value in {**arguments, "worker": system}.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *words], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    seconds: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds


def main(arguments: dict[str, str]) -> None:
    if "worker" in arguments:
        print(json.dumps(work(arguments)))
        return
    rounds, steps = arguments.get("rounds", "7"), arguments.get("steps", "3")
    chosen = arguments.get("systems", ",".join(SYSTEMS)).split(",")
    print(
        f"{DIM} dimensions, {LOOKUPS:,} lookups; {arguments.get('clock', 'wall')} seconds a step, median "
        f"(least – most) of {rounds} rounds of {steps} steps; {arguments.get('threads', 'all')} thread(s) on "
        f"{len(os.sched_getaffinity(0))} core(s), torch {torch.__version__}"
    )
    for rows in arguments.get("rows", "1000000,5000000").split(","):
        seconds: dict[str, list[float]] = {}
        missing: dict[str, str] = {}
        for name in chosen:
            found = measured(name, arguments | {"rows": rows, "rounds": rounds, "steps": steps})
            if isinstance(found, str):
                missing[name] = found
            else:
                seconds[name] = found
        touched = len(inputs(int(rows), 1)[0][0].unique())
        print(f"\n{int(rows):,} rows ({touched:,} touched)")
        ours = seconds.get("shopreel", [])
        for name, each in seconds.items():
            beside = ""
            if ours and name != "shopreel":
                low, high = min(each) / max(ours), max(each) / min(ours)
                ratio = statistics.median(each) / statistics.median(ours)
                beside = f"  × {ratio:.2f} ({low:.2f} – {high:.2f}) shopreel"
            print(f"  {name:<18} {spread(each, '.4f')}{beside}", flush=True)
        say_missing(missing)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
