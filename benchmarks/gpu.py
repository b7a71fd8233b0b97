"""What one CUDA device does: training of both models, the ranker's scorer, exact search; absolute figures.

    python benchmarks/gpu.py [out=gpu.json] [scale=1] [only=search,table,ranker,towers,scorer,compiled]

Makes its own data, takes about two minutes, and needs neither TorchRec nor FAISS (tables are plain, in one
process). Each figure is the median of five rounds with its range. Shares are of the rates of a large matrix
product and a large copy, measured first. ``scale=0.01`` is for a dry run on a processor.
"""

import gc
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.synthetic import synthetic
from data.loader import SequenceLoader
from data.prepared import Prepared
from data.ranking_loader import RankingLoader, build_features
from data.targets import TargetWeights
from models.embeddings import FeatureBatch, PlainTables, dense_widths, table_rows
from models.layers import BlockKind
from models.ranker import Ranker, UserState
from models.ranker_graph import GraphedScorer
from models.similarity import Similarity
from models.two_tower import TwoTower, TwoTowerShape
from serving.exact import ExactSearch
from serving.exact_device import DeviceExactSearch
from training.config import Device
from training.optimizers import RowWiseAdagrad
from training.placement import OneProcess, Task, UpdateRule
from training.precision import Precision, set_products, stepping
from training.prefetch import pinned, prefetch
from training.process import start_process
from training.ranker_start import begin, shape_of, watch_bins
from training.ranking_objective import RankingObjective
from training.retrieval import RetrievalObjective

ROUNDS = 5
RULE = UpdateRule(learning_rate=1e-3, weight_decay=0.01, dense_table_rows=500_000, table_learning_rate=0.02)
#: The ranker's default recipe, read without Hydra.
RANKER = SimpleNamespace(
    **yaml.safe_load(
        (Path(__file__).resolve().parent.parent / "configs" / "model" / "ranker.yaml").read_text(
            encoding="utf-8"
        )
    )
)
#: Measured at the start: matrix products by precision in flop/s, copies in bytes/s.
LIMITS: dict[str, float] = {}
ROWS: list[dict[str, Any]] = []
#: Nothing is compiled after so many seconds.
LATEST = 90.0
BEGAN = time.perf_counter()


@dataclass(slots=True)
class World:
    """One size of the towers with its data; ``flops`` per positive once counted."""

    label: str
    size: dict[str, int]
    prepared: Prepared
    loader: SequenceLoader
    batches: list[Any]
    flops: float = 0.0


WORLDS: list[World] = []


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: torch.device, repeats: int = 1) -> list[float]:
    """Seconds of one call, in five rounds of ``repeats``."""
    call()
    call()
    wait(device)
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        wait(device)
        rounds.append((time.perf_counter() - began) / repeats)
    return rounds


def tell(name: str, values: list[float], unit: str, **more: Any) -> None:
    """Keep and print a figure: median (lowest – highest)."""
    row = {
        "name": name, "median": statistics.median(values), "low": min(values), "high": max(values),
        "unit": unit, **more,
    }  # fmt: skip
    ROWS.append(row)
    extra = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in more.items())
    print(
        f"{name:<58} {row['median']:>14,.4g} ({row['low']:,.4g} – {row['high']:,.4g}) {unit}  {extra}",
        flush=True,
    )


def limits(device: torch.device, scale: float, folder: Path) -> None:
    side = 8192 if device.type == "cuda" else 512
    for precision in (Precision.float32, Precision.tf32, Precision.bfloat16):
        dtype = torch.bfloat16 if precision is Precision.bfloat16 else torch.float32
        set_products(precision)
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        rates = [2 * side**3 / s for s in seconds_of(partial(torch.mm, a, b), device, 5)]
        LIMITS[precision.value] = statistics.median(rates)
        tell(f"matrix product {side}³ {precision.value}", [r / 1e12 for r in rates], "TFLOP/s")
    size = int(2**30 * scale)
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    rates = [2 * size / s for s in seconds_of(partial(target.copy_, source), device, 5)]
    LIMITS["copy"] = statistics.median(rates)
    tell("copy on the device, bytes read and written", [r / 1e12 for r in rates], "TB/s")


def table(device: torch.device, scale: float, folder: Path) -> None:
    """Forward, backward and update of 204,800 uniform lookups of 64 dimensions."""
    lookups = 4096 * 50
    for rows in (int(1e6 * scale), int(2e7 * scale)):
        model = PlainTables({"video": rows}, 1, dense_rows=0)  # drawing the rows is not measured
        model.weights["video"] = torch.nn.Parameter(torch.zeros(rows, 64, device=device))
        model.register_buffer("nothing", torch.zeros(64, device=device), persistent=False)
        optimizer = RowWiseAdagrad([model.weights["video"]], 0.05)
        id_L = torch.randint(rows, (lookups,), device=device)
        offsets = torch.arange(lookups + 1, device=device)
        gradient = torch.randn(lookups, 64, device=device)

        def step(model=model, optimizer=optimizer, id_L=id_L, offsets=offsets, gradient=gradient) -> None:
            optimizer.zero_grad()
            model(FeatureBatch({"video": (id_L, offsets)}, {}, lookups)).backward(gradient)
            optimizer.step()

        seconds = seconds_of(step, device, 5)
        moved = 2 * lookups * 64 * 4
        least = moved / LIMITS.get("copy", float("nan"))
        tell(
            f"table step, {rows:,} × 64", [s * 1e3 for s in seconds], "ms",
            times_the_bytes=statistics.median(seconds) / least,
        )  # fmt: skip


def towers(device: torch.device, scale: float, folder: Path) -> None:
    """Two-tower training: a million videos, sampled softmax over 4,096 uniform videos and the batch's own."""
    prepared = synthetic(
        folder / "towers", users=max(int(16_000 * scale), 40), videos=int(1e6 * scale), steps=256
    )
    sizes = {
        "64 wide, 2 layers, history 50": dict(dim=64, layers=2, heads=2, max_steps=50),
        "256 wide, 4 layers, history 200": dict(dim=256, layers=4, heads=4, max_steps=200),
    }
    for label, size in sizes.items():
        loader = SequenceLoader(
            prepared, TargetWeights({"click": 1.0}, 0.0), tokens=max(int(65_536 * scale), 512),
            max_steps=size["max_steps"], n_uniform=4096, seed=1,
        )  # fmt: skip
        batches = [pinned(b) if device.type == "cuda" else b for b in islice(loader.epoch(), 8)]
        WORLDS.append(World(label, size, prepared, loader, batches))
        for precision in precisions(device):
            two_tower(WORLDS[-1], precision, False, device)


def compiled(device: torch.device, scale: float, folder: Path) -> None:
    """The same with the blocks of the history encoder through torch.compile."""
    for world in reversed(WORLDS):
        if time.perf_counter() - BEGAN < LATEST:
            two_tower(world, precisions(device)[-1], True, device)


def two_tower(world: World, precision: Precision, compiled: bool, device: torch.device) -> None:
    """Measure one size in one precision, batches at hand and with the loader."""
    prepared, batches = world.prepared, world.batches
    set_products(precision)
    torch.manual_seed(0)
    shape = TwoTowerShape(
        video_rows=table_rows(prepared.spec, "video"), video_dense=dense_widths(prepared.spec, "video"),
        user_rows=table_rows(prepared.spec, "user"), user_dense=dense_widths(prepared.spec, "user"),
        surfaces=3, dropout=0.1, block=BlockKind.sasrec, use_time=True, use_position=True,
        similarity=Similarity.dot, **world.size,
    )  # fmt: skip
    model = TwoTower(shape, tables=partial(PlainTables, dense_rows=RULE.dense_table_rows))
    if compiled:
        for block in model.history.blocks:
            block.compile(dynamic=True)
    objective = RetrievalObjective(prepared, device, 0.0, None)
    task = Task(model, lambda batch: objective.loss(model, batch), around=lambda: stepping(precision, device))
    placement = OneProcess(task.to(device), RULE)
    step = partial(train, placement)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step(batches[0])
    step(batches[1])
    wait(device)
    first = time.perf_counter() - began
    if not world.flops:
        with FlopCounterMode(display=False) as counter:
            step(batches[0])
        world.flops = counter.get_total_flops() / batches[0].examples
    rates = rates_of(step, batches, device)
    name = f"towers {world.label}, {precision.value}{', blocks compiled' if compiled else ''}"
    share = statistics.median(rates) * world.flops / LIMITS[precision.value]
    tell(
        name, rates, "positives/s", share_of_product_rate=share, GFLOP_per_positive=world.flops / 1e9,
        positives_per_step=batches[0].examples, peak_GiB=peak(device), first_two_steps_s=first,
    )  # fmt: skip
    if precision is Precision.bfloat16 and not compiled:
        profiled(step, batches, device, world.label)
    streamed(step, world.loader, device, name)


def train(placement: OneProcess, batch: Any) -> None:
    placement.optimizers.begin_step(1.0)
    placement.loss(batch).backward()
    placement.optimizers.clip(1.0)
    placement.optimizers.step()


def rates_of(step: Callable[[Any], None], batches: list[Any], device: torch.device) -> list[float]:
    """Examples a second, batches at hand, in five rounds."""
    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for batch in batches:
            step(batch)
        wait(device)
        rates.append(sum(batch.examples for batch in batches) / (time.perf_counter() - began))
    return rates


def streamed(step: Callable[[Any], None], loader: Any, device: torch.device, name: str) -> None:
    """The same with the loader making each batch in its thread, as training does."""
    batches = prefetch(loader, depth=4, pin=device.type == "cuda")
    for batch, _ in islice(batches, 6):
        step(batch)
    wait(device)
    began, examples = time.perf_counter(), 0
    for batch, _ in islice(batches, 10):
        step(batch)
        examples += batch.examples
    wait(device)
    tell(f"{name}, with the loader", [examples / (time.perf_counter() - began)], "examples/s")
    batches.close()  # type: ignore[attr-defined]


def profiled(step: Callable[[Any], None], batches: list[Any], device: torch.device, label: str) -> None:
    if device.type != "cuda":
        return
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        for batch in batches[:3]:
            step(batch)
        wait(device)
    table = profile.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=60
    )
    out = Path(os.environ.get("OUT", ".")) / f"profile-{label.split(maxsplit=1)[0]}.txt"
    out.write_text(table)


def peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")


def ranker(device: torch.device, scale: float, folder: Path) -> None:
    """Ranker training at the default recipe's size, histories of 64."""
    prepared = synthetic(
        folder / "ranker", users=max(int(2_000 * scale), 40), videos=max(int(1e5 * scale), 2000), steps=128
    )
    features = build_features(prepared, half_life_days=(3.0, 30.0), max_steps=64)
    for batch_size in (1024, 16_384):

        def loader_of(size: int = batch_size) -> RankingLoader:
            return RankingLoader(prepared, features, split=0, batch_size=size, seed=1)

        loader = loader_of()
        bins = watch_bins(RANKER, prepared, loader)
        took = time.perf_counter()
        batches = [pinned(b) if device.type == "cuda" else b for b in islice(loader.epoch(), 6)]
        took = (time.perf_counter() - took) / len(batches)
        flops = 0.0
        for precision in precisions(device):
            set_products(precision)
            torch.manual_seed(0)
            model = Ranker(shape_of(RANKER, prepared, features, bins))
            begin(model, loader_of(1024))
            model = model.to(device)
            objective = RankingObjective.of(prepared, features, bins, RANKER, device)
            task = Task(model, partial(objective.loss, model), around=partial(stepping, precision, device))
            step = partial(train, OneProcess(task, RULE))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step(batches[0])
            step(batches[1])
            if not flops:
                with FlopCounterMode(display=False) as counter:
                    step(batches[0])
                flops = counter.get_total_flops() / batches[0].examples
            rates = rates_of(step, batches, device)
            tell(
                f"ranker training, batch {batch_size:,}, {precision.value}", rates, "rows/s",
                share_of_product_rate=statistics.median(rates) * flops / LIMITS[precision.value],
                MFLOP_per_row=flops / 1e6, peak_GiB=peak(device), loader_rows_per_s=batch_size / took,
            )  # fmt: skip


def scorer(device: torch.device, scale: float, folder: Path) -> None:
    """The per-candidate part for one request, history 64: eager, as recorded graphs, compiled, bfloat16."""
    prepared = Prepared.open(folder / "ranker")
    features = build_features(prepared, half_life_days=(3.0, 30.0), max_steps=64)
    bins = watch_bins(RANKER, prepared, RankingLoader(prepared, features, split=0, batch_size=64, seed=1))
    torch.manual_seed(0)
    set_products(Precision.float32)
    model = Ranker(shape_of(RANKER, prepared, features, bins)).eval().to(device)
    shape, candidates = model.shape, (500, 2000, 16_000)
    compiled = torch.compile(model.score, dynamic=False)
    with torch.inference_mode():
        user = UserState(
            torch.randn(1, shape.dim, device=device), torch.randn(1, shape.width, device=device),
            torch.randn(1, len(shape.tasks), device=device),
            torch.randn(1, 65, 2 * shape.dim, device=device),
            torch.ones(1, 64, dtype=torch.bool, device=device),
        )  # fmt: skip
        for count in candidates:
            video = torch.randn(1, count, model.videos.width, device=device)
            statistic = torch.randn(1, count, shape.candidate_statistics, device=device)
            calls: dict[str, Callable[[], object]] = {
                "eager": partial(model.score, user, video, statistic),
                "eager, bfloat16": partial(low, model, device, user, video, statistic),
            }
            if device.type == "cuda":
                calls["recorded graph"] = partial(GraphedScorer(model).score, user, video, statistic)
                if count == candidates[1] and time.perf_counter() - BEGAN < LATEST:
                    calls["compiled"] = partial(compiled, user, video, statistic)
            for how, call in calls.items():

                def answered(call: Callable[[], object] = call) -> None:
                    call()
                    wait(device)  # a request waits for its answer

                seconds = seconds_of(answered, device, 30)
                tell(
                    f"scorer, {count:,} candidates, {how}", [count / s for s in seconds], "candidates/s",
                    ms_per_request=statistics.median(seconds) * 1e3,
                )  # fmt: skip


def low(model: Ranker, device: torch.device, *rest: Any) -> object:
    with torch.autocast(device.type, torch.bfloat16):
        return model.score(*rest)


def search(device: torch.device, scale: float, folder: Path) -> None:
    """Exact top 100 of a million videos of 64 dimensions, in batches of 4,096 users."""
    g = np.random.default_rng(0)
    vectors = g.standard_normal((int(1e6 * scale) + 1, 64), np.float32)
    users = g.standard_normal((max(int(4096 * scale), 64), 64), np.float32)
    on_device = DeviceExactSearch(vectors, device)
    found = on_device.search(users, 100)
    seconds = seconds_of(lambda: on_device.search(users, 100), device)
    name = f"exact search, {len(vectors) - 1:,} videos, on the device"
    tell(name, [len(users) / s for s in seconds], "users/s", vectors_GiB=vectors.nbytes / 2**30)
    on_cpu = ExactSearch(vectors)
    some = users[:64]
    wanted = on_cpu.search(some, 100)
    seconds = [took(partial(on_cpu.search, some, 100)) for _ in range(3)]
    same = all(
        np.array_equal(a.video_row, b.video_row) and np.array_equal(a.score, b.score)
        for a, b in zip(found, wanted, strict=False)
    )
    tell(
        "exact search, same videos, on the CPU",
        [len(some) / s for s in seconds],
        "users/s",
        same_answers=same,
    )


def took(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def precisions(device: torch.device) -> list[Precision]:
    if device.type != "cuda":
        return [Precision.float32]
    return [Precision.float32, Precision.tf32, Precision.bfloat16]


def main(arguments: dict[str, str]) -> None:
    device = start_process(0, Device.auto, int(arguments.get("threads", "0")))
    scale = float(arguments.get("scale", "1"))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
    print(f"{name}; torch {torch.__version__}; {torch.get_num_threads()} threads", flush=True)
    every = (limits, search, table, ranker, towers, scorer, compiled)
    parts = {part.__name__: part for part in every}
    wanted = arguments.get("only", ",".join(parts)).split(",")
    errors, spent = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for part in ["limits", *(p for p in wanted if p != "limits")]:
            began = time.perf_counter()
            try:
                parts[part](device, scale, Path(folder))
            except Exception:  # the other parts still tell
                errors[part] = traceback.format_exc()
                print(f"{part} failed:\n{errors[part]}", flush=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            spent[part] = round(time.perf_counter() - began, 1)
    report = {
        "device": name, "torch": torch.__version__, "figures": ROWS, "seconds": spent, "errors": errors,
    }  # fmt: skip
    out = Path(arguments.get("out") or Path(os.environ.get("OUT", ".")) / "gpu.json")
    out.write_text(json.dumps(report, indent=1))
    print(f"\n{name}, seconds {spent}; {out}")
    for row in ROWS:
        share = row.get("share_of_product_rate")
        last = "" if share is None else f"{share:.3f} of the product rate"
        print(f"{row['name']:<72} {row['median']:>12,.4g} {row['unit']:<13} {last}")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
