"""Two-tower training: positives/s on one log, the share of the GEMM limit, and peers beside it.

    python benchmarks/two_tower_training.py [prepared=PREPARED] [systems=…] [runs=5] [seconds=4]

shopreel runs its own loader, loss, backward pass, clipping, optimizer and average of weights as
``shopreel train`` does; ``block=sasrec`` and no id dropout keep the arithmetic that of a SASRec, the video
tower's features being whatever the log has. ``shopreel`` is the softmax over the catalogue,
``shopreel_sampled`` the recipe's sample of it (1,024 uniform negatives and the batch's own). Without
``prepared=`` the log is made up: an order and nothing else, 8,000 users of 24 of 12,000 videos. The peers
(see two_tower_peers.py; ``peers_python=`` runs them) train on the same positives with the same history,
width, blocks, heads and about 128 users a step (RecBole: 2,048 samples), their preparation of the data
outside of the clock. Other sizes: ``dim= layers= heads=``; ``model="…"``: overrides of the recipe.

Systems take turns, each run a process of its own, ``seconds=`` long after a step or two (two steps at
least). A peer with the loss over the catalogue is compared with ``shopreel``, one with a sampled loss with
``shopreel_sampled``: the ratio of each turn, its median and range.

The GEMM limit is the speed of one large float32 matrix product in the same process; the share is
(floating-point operations of the step's matrix products) / (seconds of the step · limit). ``clock=cpu``
counts the processor's seconds, for a machine that other jobs share. ``profile=1`` lists the operators of
shopreel's step that cost most, and nothing else.
"""

import json
import os
import sys
import tempfile
import time
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.side_by_side import in_turns, say_missing, spread, times

if TYPE_CHECKING:  # the peers' Python has no need of it
    from data.prepared import Prepared

OURS = ("shopreel", "shopreel_sampled")
#: Peers and which of ours has the like loss.
PEERS = {
    "rectools": "shopreel",
    "recbole": "shopreel",
    "replay": "shopreel",
    "replay_two_tower": "shopreel",
    "rectools_sampled": "shopreel_sampled",
    "replay_sampled": "shopreel_sampled",
    "replay_two_tower_sampled": "shopreel_sampled",
}
SHAPE = {"history": 50, "dim": 64, "layers": 2, "heads": 2}
USERS = 128


def shopreel(
    arguments: dict[str, str], shape: dict[str, int], prepared: "Prepared", folder: Path
) -> dict[str, Any]:
    """One run of our step."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from data.compose import compose
    from data.trend import has_trend, training_trend
    from models.two_tower import TwoTower
    from training.config import Device
    from training.distributed import ALONE
    from training.placement import Task, UpdateRule, place, tables_factory
    from training.process import start_process
    from training.retrieval import RetrievalObjective, build_loader, shape_of
    from training.train import CONFIG

    clock = time.process_time if arguments.get("clock") == "cpu" else time.perf_counter
    device = start_process(0, Device.cpu, int(arguments.get("threads", "0")))
    overrides = [f"prepared={prepared.path}", f"out={folder / 'run'}", "model=two_tower"]
    overrides += [f"model.{name}={shape[name]}" for name in ("dim", "layers", "heads")]
    overrides += [f"model.max_steps={shape['history']}", "model.block=sasrec", "model.id_dropout=0"]
    overrides += [f"model.full_softmax_below={10**9 if arguments['worker'] == 'shopreel' else 0}"]
    overrides += [f"model.tokens={arguments['tokens']}"]
    recipe = compose("train", overrides + arguments.get("model", "").split(), CONFIG).model
    loader = build_loader(recipe, prepared, 0)
    rates = recipe.optimizer
    rule = UpdateRule(
        learning_rate=rates.learning_rate,
        weight_decay=rates.weight_decay,
        dense_table_rows=rates.dense_table_rows,
        table_learning_rate=rates.table_learning_rate,
        average=recipe.average,
    )
    tables = tables_factory(ALONE, sharded=False, dense_table_rows=rule.dense_table_rows)
    model = TwoTower(shape_of(recipe, prepared), tables=tables)
    trend = training_trend(prepared) if has_trend(prepared) else None
    objective = RetrievalObjective(
        prepared, device, recipe.id_dropout, trend, ignored=recipe.ignored_weight
    )  # fmt: skip
    placement = place(
        Task(model, lambda batch: objective.loss(model, batch)), rule, ALONE, device, sharded=False
    )
    number = count(1)

    def step(batch: object) -> None:
        placement.optimizers.begin_step(1.0)
        placement.loss(batch).backward()
        placement.optimizers.clip(rates.clip_norm)
        placement.optimizers.step()
        placement.optimizers.follow(next(number))

    def stream() -> Any:
        while True:
            yield from loader.epoch()

    model.train()
    batches = stream()
    for batch in islice(batches, 2):
        step(batch)
    if "profile" in arguments:
        with torch.profiler.profile() as profile:
            for batch in islice(batches, 5):
                step(batch)
        print(
            profile.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40
            ),
            file=sys.stderr,
        )
    begin, done = clock(), []
    while len(done) < 2 or clock() - begin < float(arguments.get("seconds", "4")):
        done.append(next(batches))
        step(done[-1])
    seconds, positives = clock() - begin, sum(batch.examples for batch in done)
    side = 1024
    square = torch.randn(side, side)
    square @ square
    begin = clock()
    for _ in range(20):
        square @ square
    limit = 40 * side**3 / (clock() - begin)
    with FlopCounterMode(display=False) as counter:
        for batch in done[:3]:
            step(batch)
    flops = counter.get_total_flops() * positives / sum(batch.examples for batch in done[:3])
    return {
        "rate": positives / seconds, "step": positives / len(done), "limit": limit / 1e9,
        "share": flops / seconds / limit, "candidates": len(done[0].video_rows),
    }  # fmt: skip


def write_log(prepared: "Prepared", path: Path) -> int:
    """user, video, order of every positive of training, as the peers want it; how many a user has."""
    users, videos = [], []
    for shard in prepared.shards:
        table = pq.read_table(shard, columns=["user_row", "example_video", "example_split", "example_true"])
        length = pc.list_value_length(table["example_video"]).to_numpy()
        flat = {name: pc.list_flatten(table[name]).to_numpy() for name in table.column_names[1:]}
        kept = (flat["example_split"] == 0) & (flat["example_true"] != 0)
        users.append(np.repeat(table["user_row"].to_numpy(), length)[kept])
        videos.append(flat["example_video"][kept])
    user = np.concatenate(users)
    order = np.arange(len(user))
    pq.write_table(pa.table({"user_id": user, "item_id": np.concatenate(videos), "order": order}), path)
    return round(len(user) / len(np.unique(user)))


def work(arguments: dict[str, str]) -> dict[str, Any]:
    """One run of one system."""
    shape = {name: int(arguments.get(name, default)) for name, default in SHAPE.items()}
    folder, worker = Path(arguments["folder"]), arguments["worker"]
    if worker in OURS:
        from data.prepared import Prepared

        return shopreel(arguments, shape, Prepared.open(arguments["prepared"]), folder)
    from benchmarks.two_tower_peers import run

    return run(worker, shape, folder, arguments)


def main(arguments: dict[str, str]) -> None:
    if "worker" in arguments:
        print(json.dumps(work(arguments)))
        return
    shape = {name: int(arguments.get(name, default)) for name, default in SHAPE.items()}
    systems = arguments.get("systems", ",".join([*OURS, *PEERS])).split(",")
    from data.prepared import Prepared

    with tempfile.TemporaryDirectory() as folder:
        if "prepared" in arguments:
            prepared = Prepared.open(arguments["prepared"])
        else:
            from benchmarks.synthetic import synthetic

            prepared = synthetic(
                Path(folder) / "prepared", users=8_000, videos=12_000, steps=24, order_only=True
            )
        positives = write_log(prepared, Path(folder) / "log.parquet")
        told = {"prepared": str(prepared.path), "folder": folder, "tokens": str(USERS * (positives + 1))}
        clock, threads = arguments.get("clock", "wall"), arguments.get("threads", "all")
        print(
            f"{clock} seconds on {len(os.sched_getaffinity(0))} core(s), {threads} thread(s), "
            f"{json.dumps(shape)};\n{len(prepared.catalogue) - 1:,} videos, {positives} positives a user; "
            f"median (least – most) of {arguments.get('runs', '5')} runs, ratios of each run",
            flush=True,
        )
        found, missing = in_turns(__file__, told | arguments, systems, tuple(PEERS))
    rates = {system: [run["rate"] for run in runs] for system, runs in found.items()}
    for system, each in rates.items():
        ours = rates.get(PEERS.get(system, ""))
        beside = f"  {PEERS[system]} {times(ours, each)}" if ours else ""
        a_step = f"{found[system][0]['step']:,.0f} a step"
        print(f"{system:<26} {spread(each, ',.0f')} positives/s, {a_step}{beside}")
        if system in OURS:
            share = spread([run["share"] for run in found[system]], ".2f")
            limit = spread([run["limit"] for run in found[system]], ".0f")
            print(
                f"  {found[system][0]['candidates']:,} candidates; share of the GEMM limit {share}; "
                f"limit {limit} GFLOP/s"
            )
    say_missing(missing)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
