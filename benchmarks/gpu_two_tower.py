"""Part of benchmarks/gpu.py: two-tower training on a million videos.

Sampled softmax over 4,096 uniform videos and the batch's own. Two sizes, each in every precision; then the
same with the encoder's blocks through ``torch.compile``.
"""

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_bench import Bench
from benchmarks.synthetic import synthetic
from benchmarks.training_step import RULE, train
from data.loader import SequenceLoader
from data.prepared import Prepared
from data.targets import TargetWeights
from models.embeddings import PlainTables, dense_widths, table_rows
from models.layers import BlockKind
from models.similarity import Similarity
from models.two_tower import TwoTower, TwoTowerShape
from training.placement import OneProcess, Task
from training.precision import Precision, set_products, stepping
from training.retrieval import RetrievalObjective

SIZES = {
    "64 wide, 2 layers, history 50": dict(dim=64, layers=2, heads=2, max_steps=50),
    "256 wide, 4 layers, history 200": dict(dim=256, layers=4, heads=4, max_steps=200),
}


@dataclass(slots=True)
class World:
    """One size of the towers with its data; ``flops`` per positive once counted."""

    label: str
    size: dict[str, int]
    prepared: Prepared
    loader: SequenceLoader
    batches: list[Any]
    flops: float = 0.0


def towers(bench: Bench) -> None:
    """Every size in every precision."""
    for label in SIZES:
        world = world_of(bench, label)
        for precision in bench.precisions:
            two_tower(bench, world, precision, compiled=False)


def compiled(bench: Bench) -> None:
    """The same with compiled blocks, in the lowest precision, as long as there is time."""
    for label in reversed(SIZES):
        if bench.may_compile():
            two_tower(bench, world_of(bench, label), bench.precisions[-1], compiled=True)
        else:
            print(f"towers {label}, blocks compiled: not measured, the time for compiling is over")


def world_of(bench: Bench, label: str) -> World:
    if label in bench.kept:
        world: World = bench.kept[label]
        return world
    path = bench.folder / "towers"
    if path.exists():
        prepared = Prepared.open(path)
    else:
        prepared = synthetic(path, users=bench.rows(16_000, 40), videos=bench.rows(1e6, 5_000), steps=256)
    loader = SequenceLoader(
        prepared, TargetWeights({"click": 1.0}, 0.0), tokens=bench.rows(65_536, 512),
        max_steps=SIZES[label]["max_steps"], n_uniform=4096, seed=1,
    )  # fmt: skip
    bench.kept[label] = world = World(label, SIZES[label], prepared, loader, bench.at_hand(loader, 8))
    return world


def shape_of(world: World) -> TwoTowerShape:
    spec, size = world.prepared.spec, world.size
    return TwoTowerShape(
        video_rows=table_rows(spec, "video"), video_dense=dense_widths(spec, "video"),
        user_rows=table_rows(spec, "user"), user_dense=dense_widths(spec, "user"), surfaces=3, dropout=0.1,
        block=BlockKind.sasrec, use_time=True, use_position=True, similarity=Similarity.dot,
        dim=size["dim"], layers=size["layers"], heads=size["heads"], max_steps=size["max_steps"],
    )  # fmt: skip


def two_tower(bench: Bench, world: World, precision: Precision, *, compiled: bool) -> None:
    """Measure one size in one precision, batches at hand and with the loader."""
    batches = world.batches
    set_products(precision)
    torch.manual_seed(0)
    model = TwoTower(shape_of(world), tables=partial(PlainTables, dense_rows=RULE.dense_table_rows))
    if compiled:
        for block in model.history.blocks:
            block.compile(dynamic=True)
    objective = RetrievalObjective(world.prepared, bench.device, 0.0, None)
    task = Task(
        model, lambda batch: objective.loss(model, batch), around=lambda: stepping(precision, bench.device)
    )
    step = partial(train, OneProcess(task.to(bench.device), RULE))
    bench.forget_peak()
    began = time.perf_counter()
    step(batches[0])
    step(batches[1])
    bench.wait()
    first = time.perf_counter() - began
    if not world.flops and not compiled:  # inside compiled blocks nothing is counted
        with FlopCounterMode(display=False) as counter:
            step(batches[0])
        world.flops = counter.get_total_flops() / batches[0].examples
    rates = bench.rates_of(step, batches)
    name = f"towers {world.label}, {precision.value}{', blocks compiled' if compiled else ''}"
    counted = {}
    if world.flops:
        share = statistics.median(rates) * world.flops / bench.limits[precision.value]
        counted = {"share_of_product_rate": share, "GFLOP_per_positive": world.flops / 1e9}
    bench.tell(
        name, rates, "positives/s", **counted, positives_per_step=batches[0].examples,
        peak_GiB=bench.peak_gib(), first_two_steps_s=first,
    )  # fmt: skip
    if precision is Precision.bfloat16 and not compiled:
        bench.profiled(step, batches, world.label)
    bench.streamed(step, world.loader, name)
