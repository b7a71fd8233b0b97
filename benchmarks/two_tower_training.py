"""Two-tower training: positives/s on one prepared log, the share of the GEMM limit, and peers beside it.

    python benchmarks/two_tower_training.py [prepared=PREPARED] [loss=full|sampled] [peers_python=PYTHON]

shopreel runs its own loader, loss, backward pass, clipping and optimizer as ``shopreel train`` does;
``block=sasrec`` and no id dropout keep the arithmetic that of a SASRec, the video tower's features being
whatever the log has. ``loss=full`` is the softmax over the catalogue, ``sampled`` the recipe's sample of it.
Without ``prepared=`` the log is made up: 12,000 videos, 8,000 users of 24 impressions. The peers
(``systems=``, see two_tower_peers.py, which runs under ``peers_python``) train on the same positives with the
same history, width, blocks and heads, their preparation of the data outside of the clock. Other sizes:
``dim= layers= heads=``.

The GEMM limit is the speed of one large float32 matrix product in the same process; the share is
(floating-point operations of the step's matrix products) / (seconds of the step · limit). ``clock=cpu``
counts the processor's seconds, for a machine that other jobs share. Medians of ``rounds``, with the range;
``profile=1`` lists the operators that cost most.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count, islice
from pathlib import Path

import numpy as np

SYSTEMS = "shopreel,rectools,rectools_sampled,recbole,replay,replay_sampled"
SHAPE = {"history": 50, "dim": 64, "layers": 2, "heads": 2}
CLOCK_NAME = "cpu" if "clock=cpu" in sys.argv else "wall"
CLOCK = time.process_time if CLOCK_NAME == "cpu" else time.perf_counter


def shopreel(arguments: dict[str, str], shape: dict[str, int], folder: Path) -> None:
    """Our step, ``rounds`` times over the same batches; writes the log for the peers."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.synthetic import synthetic
    from data.compose import compose
    from data.prepared import Prepared
    from data.trend import has_trend, training_trend
    from models.two_tower import TwoTower
    from training.config import Device
    from training.distributed import ALONE
    from training.placement import Task, UpdateRule, place, tables_factory
    from training.process import start_process
    from training.retrieval import RetrievalObjective, build_loader, shape_of
    from training.train import CONFIG

    device = start_process(0, Device.cpu, int(arguments.get("threads", "0")))
    if "prepared" in arguments:
        prepared = Prepared.open(arguments["prepared"])
    else:
        prepared = synthetic(folder / "prepared", users=8_000, videos=12_000, steps=24)
    write_log(prepared, folder / "log.parquet")
    overrides = [f"prepared={prepared.path}", f"out={folder / 'run'}", "model=two_tower"]
    overrides += [f"model.{name}={shape[name]}" for name in ("dim", "layers", "heads")]
    overrides += [f"model.max_steps={shape['history']}", "model.block=sasrec", "model.id_dropout=0"]
    overrides += [f"model.full_softmax_below={10**9 if arguments.get('loss', 'full') == 'full' else 0}"]
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
    objective = RetrievalObjective(prepared, device, recipe.id_dropout, trend)
    placement = place(
        Task(model, lambda batch: objective.loss(model, batch)), rule, ALONE, device, sharded=False
    )

    def step(batch: object) -> None:
        placement.optimizers.begin_step(1.0)
        placement.loss(batch).backward()
        placement.optimizers.clip(rates.clip_norm)
        placement.optimizers.step()
        placement.optimizers.follow(next(number))

    model.train()
    number = count(1)
    steps, rounds = int(arguments.get("steps", "20")), int(arguments.get("rounds", "5"))
    stream = loader.epoch()
    for batch in islice(stream, 3):
        step(batch)
    side = 1024
    square = torch.randn(side, side)
    speeds, limits, shares = [], [], []
    for _ in range(rounds):
        begin = CLOCK()
        batches = list(islice(stream, steps))
        for batch in batches:
            step(batch)
        seconds = CLOCK() - begin
        begin = CLOCK()
        for _ in range(10):
            square @ square
        limits.append(20 * side**3 / (CLOCK() - begin))
        with FlopCounterMode(display=False) as counter:
            for batch in batches[:3]:
                step(batch)
        positives = sum(batch.examples for batch in batches)
        flops = counter.get_total_flops() * positives / sum(batch.examples for batch in batches[:3])
        speeds.append(positives / seconds)
        shares.append(flops / seconds / limits[-1])
    say("shopreel", speeds)
    limit = statistics.median(limits) / 1e9
    print(f"  share of the GEMM limit {spread(shares, '.2f')}; limit {limit:.0f} GFLOP/s")
    if "profile" in arguments:
        with torch.profiler.profile() as profile:
            for batch in islice(stream, 5):
                step(batch)
        print(
            profile.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40
            )
        )


def write_log(prepared: object, path: Path) -> None:
    """user, video, order of every positive of training, as the peers want it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    users, videos = [], []
    for shard in prepared.shards:  # type: ignore[attr-defined]
        table = pq.read_table(shard, columns=["user_row", "example_video", "example_split", "example_true"])
        length = pa.compute.list_value_length(table["example_video"]).to_numpy()
        flat = {name: pa.compute.list_flatten(table[name]).to_numpy() for name in table.column_names[1:]}
        kept = (flat["example_split"] == 0) & (flat["example_true"] != 0)
        users.append(np.repeat(table["user_row"].to_numpy(), length)[kept])
        videos.append(flat["example_video"][kept])
    user = np.concatenate(users)
    order = np.arange(len(user))
    pq.write_table(pa.table({"user_id": user, "item_id": np.concatenate(videos), "order": order}), path)


def say(name: str, speeds: list[float]) -> None:
    print(f"{name:<18} {spread(speeds, ',.0f')} positives/s", flush=True)


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} – {max(values):{form}})"


def main(arguments: dict[str, str]) -> None:
    shape = {name: int(arguments.get(name, default)) for name, default in SHAPE.items()}
    if "worker" in arguments:
        if arguments["worker"] == "shopreel":
            shopreel(arguments, shape, Path(arguments["folder"]))
        else:
            from benchmarks.two_tower_peers import run

            say(
                arguments["worker"],
                run(arguments["worker"], shape, Path(arguments["folder"]), CLOCK, arguments),
            )
        return
    print(f"{CLOCK_NAME} seconds on {len(os.sched_getaffinity(0))} core(s); {json.dumps(shape)}", flush=True)
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        for worker in arguments.get("systems", SYSTEMS).split(","):
            python = sys.executable if worker == "shopreel" else arguments.get("peers_python", sys.executable)
            passed = [f"{name}={value}" for name, value in arguments.items()]
            command = [python, "-W", "ignore", __file__, *passed, f"worker={worker}", f"folder={folder}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root,
                                  env={**os.environ, "PYTHONPATH": str(root)})  # fmt: skip
            lines = (done.stderr.strip().splitlines() or ["failed"])[-1:] if done.returncode else []
            print(done.stdout, end="")
            for line in lines:
                print(f"{worker} left out: {line}")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
