"""100 M prediction rows streamed: every metric of one task and of watch time, time and peak memory.

    python benchmarks/evaluation_predictions.py rows=100000000 folder=/somewhere/large

Writes a Parquet file of that many rows (about 35 bytes each), then measures it in a process of its own; a
second file of that size, the rows brought together by user, comes and goes beside it. Prints wall and
processor seconds, from opening the file to the last interval, and the peak of resident memory, whose goal is
4 GiB.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP = 1_000_000


def write_rows(path: Path, rows: int) -> None:
    """Users in no order, a probability, its label (some unknown), watch time and its prediction."""
    random = np.random.default_rng(0)
    users = max(rows // 40, 1)
    with pq.ParquetWriter(path, _batch(random, 1, users).schema) as writer:
        for begin in range(0, rows, GROUP):
            writer.write_table(_batch(random, min(GROUP, rows - begin), users))


def _batch(random: np.random.Generator, rows: int, users: int) -> pa.Table:
    probability = random.beta(1, 12, rows)
    label = pa.array(random.random(rows) < probability, mask=random.random(rows) < 0.02)
    watched = random.gamma(2.0, 8000.0, rows)
    return pa.table(
        {
            "user_id": random.integers(0, users, rows),
            "p_click": probability,
            "label_click": label,
            "predicted_watch_ms": watched * random.lognormal(0.0, 0.6, rows),
            "watch_ms": watched.astype(np.int64),
        }
    )


def worker(path: str) -> None:
    from evaluation.predictions import measure, open_predictions

    begin, used = time.perf_counter(), time.process_time()
    found = measure(open_predictions("benchmark", path), [10], replicates=1000, seed=0)
    metrics = {name: [e.value, e.low, e.high] for name, e in found.estimates.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    print(json.dumps({"seconds": seconds, "cpu": used, "peak_gib": peak, "metrics": metrics}))


def main(arguments: dict[str, str]) -> None:
    if "worker" in arguments:
        worker(arguments["worker"])
        return
    rows = int(arguments.get("rows", "10000000"))
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(dir=arguments.get("folder")) as name:
        path = Path(name) / "predictions.parquet"
        write_rows(path, rows)
        answer = subprocess.run(
            [sys.executable, __file__, f"worker={path}"],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": name},
        )
    found = json.loads(answer.stdout.splitlines()[-1])
    seconds, cpu, peak = found["seconds"], found["cpu"], found["peak_gib"]
    print(f"{rows:,} rows: {seconds:.1f} s, {cpu:.1f} processor seconds, peak {peak:.2f} GiB")
    for metric, (value, low, high) in found["metrics"].items():
        print(f"  {metric:<18} {value:.6f}  {low:.6f} … {high:.6f}")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
