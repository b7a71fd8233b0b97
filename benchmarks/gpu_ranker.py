"""Part of benchmarks/gpu.py: training of the ranker by its default recipe, histories of 64."""

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_bench import Bench
from benchmarks.synthetic import synthetic
from benchmarks.training_step import RULE, ranker_recipe, train
from data.prepared import Prepared
from data.ranking_loader import RankingFeatures, RankingLoader, build_features
from models.ranker import Ranker
from models.watch import WatchBins
from training.placement import OneProcess, Task
from training.precision import Precision, set_products, stepping
from training.ranker_start import begin, shape_of, watch_bins
from training.ranking_objective import RankingObjective


@dataclass(slots=True)
class RankerWorld:
    """The recipe and made-up impressions."""

    recipe: Any
    prepared: Prepared
    features: RankingFeatures

    @classmethod
    def of(cls, bench: Bench) -> "RankerWorld":
        path = bench.folder / "ranker"
        if path.exists():
            prepared = Prepared.open(path)
        else:
            prepared = synthetic(path, users=bench.rows(2_000, 40), videos=bench.rows(1e5, 2_000), steps=128)
        features = build_features(prepared, half_life_days=(3.0, 30.0), max_steps=64)
        return cls(ranker_recipe(), prepared, features)

    def loader(self, batch_size: int) -> RankingLoader:
        return RankingLoader(self.prepared, self.features, split=0, batch_size=batch_size, seed=1)

    def model(self, bins: WatchBins | None) -> Ranker:
        torch.manual_seed(0)
        return Ranker(shape_of(self.recipe, self.prepared, self.features, bins))


def ranker(bench: Bench) -> None:
    """Two sizes of batch, each in every precision."""
    world = RankerWorld.of(bench)
    for batch_size in (1024, 16_384):
        bins = watch_bins(world.recipe, world.prepared, world.loader(batch_size))
        began = time.perf_counter()
        batches = bench.at_hand(world.loader(batch_size), 6)
        loaded = batch_size * len(batches) / (time.perf_counter() - began)
        flops = 0.0
        for precision in bench.precisions:
            step = step_of(bench, world, bins, precision)
            bench.forget_peak()
            step(batches[0])
            step(batches[1 % len(batches)])
            if not flops:
                with FlopCounterMode(display=False) as counter:
                    step(batches[0])
                flops = counter.get_total_flops() / batches[0].examples
            rates = bench.rates_of(step, batches)
            bench.tell(
                f"ranker training, batch {batch_size:,}, {precision.value}", rates, "rows/s",
                share_of_product_rate=statistics.median(rates) * flops / bench.limits[precision.value],
                MFLOP_per_row=flops / 1e6, peak_GiB=bench.peak_gib(), loader_rows_per_s=loaded,
            )  # fmt: skip


def step_of(bench: Bench, world: RankerWorld, bins: WatchBins | None, precision: Precision) -> Any:
    set_products(precision)
    model = world.model(bins)
    begin(model, world.loader(1024))
    model = model.to(bench.device)
    objective = RankingObjective.of(world.prepared, world.features, bins, world.recipe, bench.device)
    task = Task(model, partial(objective.loss, model), around=partial(stepping, precision, bench.device))
    return partial(train, OneProcess(task, RULE))
