"""How two-tower training scales: examples a second and memory by table rows, history and batch.

    python benchmarks/scaling.py [curves=rows,history,batch] [threads=1] [clock=cpu] [rounds=5] [seconds=2]
        [videos=1000000] [users=1200]

One thing varies at a time from 1,000,000 table rows, history 50 and about 1,024 positives a step; 64
dimensions (32 where rows vary, so that 50 M rows fit), two SASRec blocks, 1,024 uniform negatives beside the
batch's own. The catalogue has a million videos whose ids are hashed into as many rows as the table has. Every
point runs in a process of its own, on the plain tables of one process, with the recipe's optimizers (AdamW on
tables of up to 500,000 rows, row-wise Adagrad above): printed are the median (range) of the rounds, the peak
of resident memory and its part that the table, with its optimizer state, takes. Batches are made beforehand.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.synthetic import synthetic
from benchmarks.training_step import RULE, train
from data.features import EncodedTable
from data.hashing import mix
from data.loader import SequenceLoader
from data.prepared import Prepared
from data.targets import TargetWeights
from models.embeddings import PlainTables, dense_widths, table_rows
from models.layers import BlockKind
from models.similarity import Similarity
from models.two_tower import TwoTower, TwoTowerShape
from training.config import Device
from training.placement import OneProcess, Task
from training.process import start_process
from training.retrieval import RetrievalObjective

#: Share of the synthetic impressions that are positives.
POSITIVE = 0.35
BASE = {"rows": 1_000_000, "history": 50, "batch": 1024, "dim": 64}
CURVES = {
    "rows": [
        dict(BASE, rows=rows, dim=32)
        for rows in (10_000, 100_000, 500_000, 1_000_000, 10_000_000, 50_000_000)
    ],
    "history": [dict(BASE, history=history) for history in (10, 30, 100, 300, 1000)],
    "batch": [dict(BASE, batch=batch) for batch in (256, 1024, 4096, 16_384)],
}


def measure(prepared: Prepared, point: dict[str, int], arguments: dict[str, str]) -> dict[str, object]:
    """One point, in this process."""
    device = start_process(0, Device.cpu, int(arguments.get("threads", "1")))
    clock = time.process_time if arguments.get("clock", "cpu") == "cpu" else time.perf_counter
    rows, dim = point["rows"], point["dim"]
    hashed = 1 + np.abs(mix(np.arange(1, prepared.video_table.num_rows), 7).astype(np.int64)) % (rows - 1)
    bags = prepared.video_table.bags | {"video_id": (hashed, prepared.video_table.bags["video_id"][1])}
    prepared.video_table = EncodedTable(prepared.video_table.num_rows, bags, {})
    loader = SequenceLoader(
        prepared, TargetWeights({"click": 1.0}, 0.0), tokens=round(point["batch"] / POSITIVE),
        max_steps=point["history"], n_uniform=1024, seed=1,
    )  # fmt: skip
    batches = list(islice(loader.epoch(), 12))
    shape = TwoTowerShape(
        video_rows=table_rows(prepared.spec, "video") | {"video_id": 2}, user_dense={}, surfaces=3, dim=dim,
        video_dense=dense_widths(prepared.spec, "video"), user_rows=table_rows(prepared.spec, "user"),
        layers=2, heads=2, dropout=0.1, block=BlockKind.sasrec, max_steps=point["history"], use_time=True,
        use_position=True, similarity=Similarity.dot,
    )  # fmt: skip
    model = TwoTower(shape, tables=partial(PlainTables, dense_rows=RULE.dense_table_rows))
    tables = model.video_tower.tables
    # drawn at once: what a run does row by row, so that ranks agree, would take minutes here
    tables.weights["video_id"] = torch.nn.Parameter(torch.empty(rows, dim).uniform_(-0.03, 0.03))
    if rows > RULE.dense_table_rows:
        tables.sparse.add("video_id")
    objective = RetrievalObjective(prepared, device, 0.0, None)
    placement = OneProcess(Task(model, lambda batch: objective.loss(model, batch)), RULE)

    for batch in batches[:2]:
        train(placement, batch)
    rates, place = [], 0
    for _ in range(int(arguments.get("rounds", "5"))):
        began, examples = clock(), 0
        while clock() - began < float(arguments.get("seconds", "2")):
            batch = batches[place % len(batches)]
            train(placement, batch)
            examples, place = examples + batch.examples, place + 1
        rates.append(examples / (clock() - began))
    return {
        **point, "median": statistics.median(rates), "low": min(rates), "high": max(rates),
        "peak_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "table_GiB": rows * (dim + 1 if rows > RULE.dense_table_rows else 4 * dim) * 4 / 2**30,
        "windows": int(np.mean([len(batch.length_B) for batch in batches])),
        "candidates": int(np.mean([len(batch.video_rows) for batch in batches])),
        "positives": int(np.mean([batch.examples for batch in batches])),
    }  # fmt: skip


def main(arguments: dict[str, str]) -> None:
    if "point" in arguments:
        found = measure(Prepared.open(arguments["prepared"]), json.loads(arguments["point"]), arguments)
        print(json.dumps(found))
        return
    clock = arguments.get("clock", "cpu")
    print(
        f"{clock} seconds, {arguments.get('threads', '1')} thread(s), torch {torch.__version__}", flush=True
    )
    root, points = Path(__file__).resolve().parent.parent, []
    with tempfile.TemporaryDirectory(dir=arguments.get("scratch")) as folder:
        path = Path(folder) / "prepared"
        users, videos = int(arguments.get("users", "1200")), int(arguments.get("videos", "1000000"))
        synthetic(path, users=users, videos=videos, steps=1000, shards=2)
        for curve in arguments.get("curves", "rows,history,batch").split(","):
            print(
                f"\n{curve:>10} {'examples/s':>12} {'range':>22} {'peak GiB':>9} {'table':>7} candidates",
                flush=True,
            )
            for point in CURVES[curve]:
                words = [f"{name}={value}" for name, value in arguments.items()]
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, *words, f"prepared={path}",
                     f"point={json.dumps(point)}"],
                    capture_output=True, text=True, check=False, cwd=root,
                    env={**os.environ, "PYTHONPATH": str(root)},
                )  # fmt: skip
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or ["?"])[-1]
                    print(f"{point[curve]:>10,} not measured: {reason}", flush=True)
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                points.append(found | {"curve": curve})
                span = f"{found['low']:,.0f} – {found['high']:,.0f}"
                print(
                    f"{point[curve]:>10,} {found['median']:>12,.0f} {span:>22} {found['peak_GiB']:>9.2f} "
                    f"{found['table_GiB']:>7.2f} {found['candidates']:>10,}", flush=True,
                )  # fmt: skip
    if "out" in arguments:
        Path(arguments["out"]).write_text(json.dumps(points, indent=1))


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
