"""``shopreel prepare`` on a log of millions of impressions, the same in pandas, and a bare sort in DuckDB.

    python benchmarks/prepare_scale.py rows=20000000 runs=5 [systems=shopreel,pandas,duckdb] [threads=2]
    python benchmarks/prepare_scale.py rows=100000000 runs=1 systems=shopreel,stream memory=4

The log is made first: one file per day, 100 impressions a user, Zipf videos, four labels, watch time, surface
and market. Every system runs in a process of its own; printed are rows a second and the peak of resident
memory, median (range) of the runs, and ratios of each. ``clock=cpu`` counts the processor's seconds.
``stream`` reads one epoch of training batches of the two-tower model from what ``shopreel`` prepared, and
trains nothing.

The pandas version does what ``prepare`` does with such a log and no more: ids to rows, users shuffled, time
order, label masks, split by date, how much of the history each impression knew, one row of lists per user, in
Parquet. It makes the lists a column at a time, as whole tables of Python lists would not fit into memory.
``duckdb`` sorts the same columns by user and time into Parquet, and that is all.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.side_by_side import ROOT, say_missing, spread, times

DAY_US = 86_400_000_000
FIRST_US = 19_000 * DAY_US
DAYS = 30
IMPRESSIONS_PER_USER = 100
LABELS = {"click": 0.3, "long_view": 0.2, "like": 0.03, "purchase": 0.01}


def write_log(dataset: Path, rows: int, videos: int) -> None:
    """The dataset directory of ``rows`` impressions, a file per day, in the order of time."""
    g = np.random.default_rng(0)
    users = max(rows // IMPRESSIONS_PER_USER, 10)
    popularity = 1.0 / np.arange(1, videos + 1)
    edges = np.cumsum(popularity / popularity.sum())
    (dataset / "events").mkdir(parents=True)
    surfaces, markets = pa.array(["home", "search", "shop"]), pa.array(["de", "fr", "us", "vn"])
    for day in range(DAYS):
        count = rows // DAYS + (day < rows % DAYS)
        columns = {
            "user_id": pa.array(1_000_000_007 * g.integers(1, users + 1, count)),
            "video_id": pa.array(7_919 * np.minimum(1 + np.searchsorted(edges, g.random(count)), videos)),
            "event_time": pa.array(
                FIRST_US + day * DAY_US + np.sort(g.integers(0, DAY_US, count)), pa.timestamp("us", "UTC")
            ),
            "surface": surfaces.take(pa.array(g.integers(0, 3, count))),
            "market": markets.take(pa.array(g.integers(0, 4, count))),
            "watch_ms": pa.array(g.integers(0, 60_000, count)),
            **{name: pa.array(g.random(count) < chance) for name, chance in LABELS.items()},
        }
        pq.write_table(pa.table(columns), dataset / "events" / f"day-{day:02d}.parquet")
    ids = np.arange(1, videos + 1)
    pq.write_table(
        pa.table(
            {
                "video_id": 7_919 * ids,
                "creator_id": g.integers(1, videos // 20 + 2, videos),
                "duration_ms": g.integers(5_000, 60_000, videos),
                "category": pa.array(["a", "b", "c", "d"]).take(pa.array(g.integers(0, 4, videos))),
            }
        ),
        dataset / "videos.parquet",
    )
    info = {
        "schema_version": 1, "name": "synthetic", "source": "benchmark", "licence": "none", "notes": [],
        "time_zone": "UTC", "tasks": list(LABELS),
    }  # fmt: skip
    (dataset / "dataset.json").write_text(json.dumps(info))


def shopreel(folder: Path, arguments: dict[str, str]) -> None:
    """``shopreel prepare`` as users run it."""
    import shopreel as command

    words = [
        "prepare", f"dataset={folder / 'dataset'}", f"out={folder / 'prepared'}", "overwrite=true",
        f"threads={arguments.get('threads', '0')}", f"memory_limit_gb={arguments.get('memory', '4')}",
        f"temp_directory={folder}", "split.validation=2022-02-05", "split.test=2022-02-06",
    ]  # fmt: skip
    if command.main(words):
        raise SystemExit("shopreel prepare failed")


def pandas(folder: Path, arguments: dict[str, str]) -> None:
    """The same in pandas."""
    import pandas as pd

    events = pd.read_parquet(folder / "dataset" / "events")
    videos = pd.read_parquet(folder / "dataset" / "videos.parquet", columns=["video_id"])["video_id"]
    users = np.sort(events["user_id"].unique())
    events["user_row"] = pd.Index(users).get_indexer(events.pop("user_id")) + 1
    events["video"] = pd.Index(np.sort(videos)).get_indexer(events.pop("video_id")) + 1
    for name in ("surface", "market"):
        events[name] = events[name].astype("category").cat.codes + 1
    true = np.zeros(len(events), np.int32)
    for bit, name in enumerate(LABELS):
        true |= events.pop(name).to_numpy().astype(np.int32) << bit
    events["true"], events["known"] = true, np.int32(2 ** len(LABELS) - 1)
    events["time_ms"] = events.pop("event_time").dt.as_unit("ms").astype("int64")
    edges = [(FIRST_US + day * DAY_US) // 1000 for day in (DAYS - 2, DAYS - 1)]
    events["split"] = np.searchsorted(edges, events["time_ms"], side="right").astype(np.int8)
    place = np.random.default_rng(0).permutation(len(users) + 1)
    events["place"] = place[events["user_row"]]
    events = events.sort_values(["place", "time_ms"], kind="stable", ignore_index=True)
    by_user = events.groupby("place", sort=False)
    # an impression knows the steps strictly before its moment
    order = by_user.cumcount()
    events["history_end"] = order.groupby([events["place"], events["time_ms"]]).transform("min")
    out = {"user_row": pa.array(by_user["user_row"].first())}
    steps = ("video", "time_ms", "true", "known", "watch_ms", "surface")
    for name in (*steps, "history_end", "split", "market"):
        lists = pa.array(by_user[name].agg(list), pa.list_(pa.int64()))
        if name in steps:
            out[f"step_{name}"] = lists
        out[f"example_{name}"] = lists
    (folder / "pandas").mkdir()
    pq.write_table(pa.table(out), folder / "pandas" / "sequences.parquet", compression="zstd")


def duckdb(folder: Path, arguments: dict[str, str]) -> None:
    """Scan and sort alone."""
    import duckdb as engine

    connection = engine.connect(config={
        "threads": int(arguments.get("threads", "0")) or len(os.sched_getaffinity(0)),
        "memory_limit": f"{arguments.get('memory', '4')}GB", "temp_directory": str(folder / "spill"),
    })  # fmt: skip
    connection.sql(
        f"COPY (SELECT * FROM read_parquet('{folder / 'dataset' / 'events'}/*.parquet') "
        f"ORDER BY user_id, event_time) TO '{folder / 'sorted.parquet'}' (COMPRESSION zstd)"
    )


def stream(folder: Path, arguments: dict[str, str]) -> None:
    """One epoch of batches for the two towers."""
    from data.loader import SequenceLoader
    from data.prepared import Prepared
    from data.targets import TargetWeights

    prepared = Prepared.open(folder / "prepared")
    loader = SequenceLoader(
        prepared, TargetWeights({"click": 1.0}, 0.0), tokens=16_384, max_steps=128, n_uniform=1024, seed=0
    )
    examples = sum(batch.examples for batch in loader.epoch())
    if examples != loader.queries_total:
        raise SystemExit(f"{examples} positives streamed of {loader.queries_total}")
    print(f"{examples:,} positives", file=sys.stderr)


def measured(system: str, folder: Path, arguments: dict[str, str]) -> tuple[float, float] | str:
    """Seconds and peak GiB of a process of its own; or why there are none."""
    for leftover in ("pandas", "sorted.parquet"):
        path = folder / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    words = [f"{key}={value}" for key, value in arguments.items()]
    command = [sys.executable, "-W", "ignore", __file__, *words, f"worker={system}", f"folder={folder}"]
    began, used = time.perf_counter(), _processor_s()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    seconds = time.perf_counter() - began
    if arguments.get("clock") == "cpu":
        seconds = _processor_s() - used
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return seconds, float(done.stdout.strip().splitlines()[-1])


def _processor_s() -> float:
    """Seconds that processes which have ended took of the processor."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(arguments: dict[str, str]) -> None:
    workers = {"shopreel": shopreel, "pandas": pandas, "duckdb": duckdb, "stream": stream}
    if "worker" in arguments:
        workers[arguments["worker"]](Path(arguments["folder"]), arguments)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    rows, videos = int(arguments.get("rows", "20000000")), int(arguments.get("videos", "200000"))
    print(
        f"{rows:,} impressions, {videos:,} videos, {len(os.sched_getaffinity(0))} core(s), "
        f"{arguments.get('threads', 'all')} thread(s), {arguments.get('clock', 'wall')} seconds",
        flush=True,
    )
    with tempfile.TemporaryDirectory(dir=arguments.get("scratch")) as scratch:
        folder = Path(scratch)
        write_log(folder / "dataset", rows, videos)
        size = sum(file.stat().st_size for file in (folder / "dataset" / "events").iterdir())
        print(f"log of {size / 2**30:.2f} GiB", flush=True)
        systems = arguments.get("systems", "shopreel,pandas,duckdb").split(",")
        found: dict[str, list[tuple[float, float]]] = {system: [] for system in systems}
        missing: dict[str, str] = {}
        for turn in range(int(arguments.get("runs", "5"))):
            for system in systems:
                if system in missing:
                    continue
                one = measured(system, folder, arguments)
                if isinstance(one, str):
                    missing[system] = one
                    continue
                found[system].append(one)
                print(f"  run {turn + 1}: {system} {one[0]:.1f} s", file=sys.stderr)
        if (folder / "prepared").exists():
            size = sum(file.stat().st_size for file in (folder / "prepared" / "sequences").iterdir())
            print(f"prepared sequences of {size / 2**30:.2f} GiB, {size / rows:.1f} bytes an impression")
        seconds = {system: [one for one, _ in runs] for system, runs in found.items() if runs}
        for system, each in seconds.items():
            beside = (
                f"  {times(each, seconds['shopreel'])} shopreel"
                if "shopreel" in seconds and system != "shopreel"
                else ""
            )
            print(
                f"{system:<9} {spread(each, '.1f')} s  {rows / statistics.median(each):,.0f} rows/s  "
                f"peak {max(gib for _, gib in found[system]):.2f} GiB{beside}"
            )
        say_missing(missing)


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
