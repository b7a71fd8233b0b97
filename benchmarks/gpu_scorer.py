"""Part of benchmarks/gpu.py: the ranker's per-candidate part for one request, history 64.

Eager, in bfloat16, compiled, and as a recorded CUDA graph, which is what serving uses.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_bench import Bench
from benchmarks.gpu_ranker import RankerWorld
from models.ranker import Ranker, UserState
from models.ranker_graph import GraphedScorer
from training.precision import Precision, set_products
from training.ranker_start import watch_bins

CANDIDATES = (500, 2000, 16_000)


def scorer(bench: Bench) -> None:
    """Every way at every number of candidates."""
    world = RankerWorld.of(bench)
    set_products(Precision.float32)
    model = world.model(watch_bins(world.recipe, world.prepared, world.loader(64))).eval().to(bench.device)
    width = model.videos.width + model.shape.dim  # as encode_videos says it: also normalised
    compiled = torch.compile(model.score, dynamic=False)
    with torch.inference_mode():
        user = anybody(model, bench.device)
        for count in CANDIDATES:
            video = torch.randn(1, count, width, device=bench.device)
            statistic = torch.randn(1, count, model.shape.candidate_statistics, device=bench.device)
            calls: dict[str, Callable[[], object]] = {
                "eager": partial(model.score, user, video, statistic),
                "eager, bfloat16": partial(low, model, bench.device, user, video, statistic),
            }
            if bench.cuda:
                calls["recorded graph"] = partial(GraphedScorer(model).score, user, video, statistic)
                if count == CANDIDATES[1] and bench.may_compile():
                    calls["compiled"] = partial(compiled, user, video, statistic)
            else:
                bench.lacks(f"scorer, {count:,} candidates, recorded graph")
            for how, call in calls.items():

                def answered(call: Callable[[], object] = call) -> None:
                    call()
                    bench.wait()  # a request waits for its answer

                seconds = bench.seconds_of(answered, 30)
                bench.tell(
                    f"scorer, {count:,} candidates, {how}", [count / s for s in seconds], "candidates/s",
                    ms_per_request=statistics.median(seconds) * 1e3,
                )  # fmt: skip


def anybody(model: Ranker, device: torch.device) -> UserState:
    """A user of random numbers."""
    shape = model.shape
    return UserState(
        torch.randn(1, shape.dim, device=device), torch.randn(1, shape.width, device=device),
        torch.randn(1, len(shape.tasks), device=device), torch.randn(1, 65, 2 * shape.dim, device=device),
        torch.ones(1, 64, dtype=torch.bool, device=device),
        torch.randn(1, shape.tastes, shape.dim, device=device),
        torch.zeros(int(shape.order_value), device=device),
    )  # fmt: skip


def low(model: Ranker, device: torch.device, *rest: Any) -> object:
    with torch.autocast(device.type, torch.bfloat16):
        return model.score(*rest)
