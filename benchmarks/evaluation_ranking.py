"""ndcg@100 on a million users × 100: shopreel evaluate against ranx, ir-measures and RecTools.

    python benchmarks/evaluation_ranking.py users=1000000 repeats=5 rectools_python=/path/to/python

All score the same random run against the same truth, two Parquet files, and must agree to 1e-6. The run's
requests have string ids, its videos int64. Every repeat is a process of its own, so that nobody profits from
another's warm caches. Two times are taken, in seconds:

- from files: reading Parquet, conversion into the library's own structures, scoring: what a user waits for.
- in memory: only the library's own conversion and scoring, from a DataFrame of the types it wants; for
  shopreel, which streams, from Arrow tables, with its checks of ranks, scores and duplicates.

Imports, and ranx's compilation (a first call on few rows), are never counted. ``peer_users=100000`` hands the
peers that many users at a time, for whole they need more memory than most machines have (ranx and ir-measures
keep every id as a Python or numba string); their time is the sum, their peak that of one part. RecTools
wants an older pandas, so it may live in another environment (with pyarrow): ``rectools_python=``. Peers that
are not installed are left out and named.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

DEPTH, RIGHT = 100, 5
GROUP = 50_000  # users in a row group
CATALOGUE = 199_999  # prime: an arithmetic progression of videos never repeats one
SYSTEMS = ("shopreel", "ranx", "ir-measures", "rectools")

#: ``clock=cpu`` counts the process's processor seconds, for a machine that other jobs share.
CLOCK_NAME = "cpu" if "clock=cpu" in sys.argv else "wall"
CLOCK = time.process_time if CLOCK_NAME == "cpu" else time.perf_counter

#: Seconds from files, seconds in memory, and ndcg@100.
Answer = tuple[float, float, float]


def write_world(folder: Path, users: int) -> None:
    """A run of ``users`` × 100 and five right videos each, two of them ranked."""
    random = np.random.default_rng(0)
    names = np.char.add("test:", np.arange(users).astype(str))
    with (
        pq.ParquetWriter(folder / "run.parquet", RUN_SCHEMA) as run,
        pq.ParquetWriter(folder / "truth.parquet", TRUTH_SCHEMA) as truth,
    ):
        for begin in range(0, users, GROUP):
            rows = min(GROUP, users - begin)
            start, step = random.integers(0, CATALOGUE, rows), random.integers(1, CATALOGUE, rows)
            video = (start[:, None] + step[:, None] * np.arange(DEPTH + RIGHT)) % CATALOGUE
            pick = np.argsort(random.random((rows, DEPTH)), axis=1)[:, : RIGHT // 2]
            right = np.take_along_axis(video, pick, axis=1)
            right = np.concatenate([right, video[:, DEPTH : DEPTH + RIGHT - RIGHT // 2]], axis=1)
            request = pa.array(names[begin : begin + rows])
            columns = [
                request.take(pa.array(np.repeat(np.arange(rows), DEPTH))),
                video[:, :DEPTH].ravel(),
                np.tile(np.arange(1, DEPTH + 1, dtype=np.int32), rows),
                np.tile(np.linspace(1, 0.01, DEPTH, dtype=np.float32), rows),
            ]
            run.write_table(pa.table(columns, schema=RUN_SCHEMA), row_group_size=rows * DEPTH)
            columns = [
                request.take(pa.array(np.repeat(np.arange(rows), RIGHT))),
                np.repeat(np.arange(begin, begin + rows), RIGHT),
                right.ravel(),
                np.ones(rows * RIGHT),
            ]
            truth.write_table(pa.table(columns, schema=TRUTH_SCHEMA), row_group_size=rows * RIGHT)


_IDS = {"request_id": pa.string(), "video_id": pa.int64()}
RUN_SCHEMA = pa.schema({**_IDS, "rank": pa.int32(), "score": pa.float32()})
TRUTH_SCHEMA = pa.schema(
    {"request_id": pa.string(), "user_id": pa.int64(), "video_id": pa.int64(), "gain": pa.float64()}
)


def shopreel(folder: Path, _: int) -> Answer:
    import pyarrow.dataset as ds

    from evaluation.hits import find_hits
    from evaluation.ranking import score_requests
    from evaluation.tables import RUN, open_table
    from evaluation.truth import read_truth

    begin = CLOCK()
    truth = read_truth(folder / "truth.parquet")
    hits = find_hits("run", open_table("run", folder / "run.parquet", RUN), truth)
    value = float(score_requests(hits, truth, ["ndcg@100"]).mean())
    from_files = CLOCK() - begin
    streamed = os.environ.get("SHOPREEL_BENCH_MEMORY") != "1"
    if streamed:
        return from_files, float("nan"), value
    kept = open_table("run", folder / "run.parquet", RUN).to_table(columns=list(RUN))

    class InMemory(ds.InMemoryDataset):  # type: ignore[misc]
        files = ("memory",)

    begin = CLOCK()
    hits = find_hits("run", InMemory(kept), truth)
    value = float(score_requests(hits, truth, ["ndcg@100"]).mean())
    return from_files, CLOCK() - begin, value


def parts(folder: Path, users: int) -> Iterator[tuple[pa.Table, pa.Table, float]]:
    """(run, truth, seconds to read them) of ``users`` users at a time."""
    run, truth = pq.ParquetFile(folder / "run.parquet"), pq.ParquetFile(folder / "truth.parquet")
    groups = max(1, users // GROUP)
    for first in range(0, run.num_row_groups, groups):
        begin = CLOCK()
        wanted = list(range(first, min(first + groups, run.num_row_groups)))
        tables = [file.read_row_groups(wanted) for file in (run, truth)]
        yield tables[0], tables[1], CLOCK() - begin


def ranx(folder: Path, users: int) -> Answer:
    import ranx

    def score(run: pa.Table, truth: pa.Table) -> Answer:
        begin = CLOCK()
        frames = [
            table.drop_columns([name]).to_pandas() for table, name in ((run, "rank"), (truth, "user_id"))
        ]
        for frame in frames:
            frame["request_id"] = frame["request_id"].astype(object)
            frame["video_id"] = frame["video_id"].astype(str).astype(object)
        frames[0]["score"] = frames[0]["score"].astype(float)
        frames[1]["gain"] = frames[1]["gain"].astype(int)
        ready = CLOCK()
        ids = {"q_id_col": "request_id", "doc_id_col": "video_id"}
        qrels = ranx.Qrels.from_df(frames[1], **ids, score_col="gain")
        value = float(ranx.evaluate(qrels, ranx.Run.from_df(frames[0], **ids, score_col="score"), "ndcg@100"))
        end = CLOCK()
        return end - begin, end - ready, value

    run, truth, _ = next(parts(folder, 1))
    score(run.slice(0, 50 * DEPTH), truth.slice(0, 50 * RIGHT))  # compiles for these types
    return _summed(folder, users, score)


def ir_measures(folder: Path, users: int) -> Answer:
    import ir_measures

    columns = {"request_id": "query_id", "video_id": "doc_id", "gain": "relevance"}

    def score(run: pa.Table, truth: pa.Table) -> Answer:
        begin = CLOCK()
        frames = [
            table.drop_columns([name]).to_pandas() for table, name in ((run, "rank"), (truth, "user_id"))
        ]
        frames = [frame.rename(columns=columns) for frame in frames]
        for frame in frames:
            frame["doc_id"] = frame["doc_id"].astype(str)
        frames[1]["relevance"] = frames[1]["relevance"].astype(int)
        ready, measure = CLOCK(), ir_measures.nDCG @ 100
        value = float(ir_measures.calc_aggregate([measure], frames[1], frames[0])[measure])
        end = CLOCK()
        return end - begin, end - ready, value

    return _summed(folder, users, score)


def rectools(folder: Path, users: int) -> Answer:
    from rectools.metrics import NDCG

    columns = {"request_id": "user_id", "video_id": "item_id"}

    def score(run: pa.Table, truth: pa.Table) -> Answer:
        begin = CLOCK()
        requests = truth["request_id"].unique()  # as integers, which pandas joins many times faster
        frames = []
        for table, others in ((run, ["score"]), (truth, ["gain", "user_id"])):
            code = pc.index_in(table["request_id"], value_set=requests)
            plain = table.set_column(0, "request_id", code).drop_columns(others)
            frames.append(plain.to_pandas().rename(columns=columns))
        frames[1]["weight"] = 1.0
        ready = CLOCK()
        value = float(NDCG(k=100, divide_by_achievable=True).calc(frames[0], frames[1]))
        end = CLOCK()
        return end - begin, end - ready, value

    return _summed(folder, users, score)


def _summed(folder: Path, users: int, score: Callable[[pa.Table, pa.Table], Answer]) -> Answer:
    """Times added up, values averaged over the users."""
    files = memory = total = count = 0.0
    for run, truth, read in parts(folder, users):
        each = score(run, truth)
        files, memory, here = files + read + each[0], memory + each[1], truth.num_rows / RIGHT
        total, count = total + each[2] * here, count + here
    return files, memory, total / count


MAKERS = {"shopreel": shopreel, "ranx": ranx, "ir-measures": ir_measures, "rectools": rectools}


def worker(system: str, folder: str, users: int) -> None:
    """One system, once. It is the first that the kernel ends when memory runs out."""
    if Path("/proc/self/oom_score_adj").exists():
        Path("/proc/self/oom_score_adj").write_text("1000")
    files, memory, value = MAKERS[system](Path(folder), users)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"files": files, "memory": memory, "peak": peak, "ndcg": value}))


def measure(python: str, memory: bool = False, **arguments: object) -> dict[str, float] | str:
    """Run one system in its own process; the last line of its error where it fails."""
    root = Path(__file__).resolve().parent.parent
    answer = subprocess.run(
        [python, "-W", "ignore", __file__, *(f"{key}={value}" for key, value in arguments.items())],
        capture_output=True, text=True, check=False, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "SHOPREEL_BENCH_MEMORY": str(int(memory))},
    )  # fmt: skip
    if answer.returncode:
        return (answer.stderr.strip().splitlines() or [f"exit {answer.returncode}"])[-1]
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def main(arguments: dict[str, str]) -> None:
    if "worker" in arguments:
        worker(arguments["worker"], arguments["folder"], int(arguments["peer_users"]))
        return
    users, repeats = int(arguments.get("users", "100000")), int(arguments.get("repeats", "5"))
    peer_users, peers = (
        int(arguments.get("peer_users", "100000")),
        int(arguments.get("peer_repeats", repeats)),
    )
    chosen = arguments.get("systems", ",".join(SYSTEMS)).split(",")
    with tempfile.TemporaryDirectory(dir=arguments.get("folder")) as name:
        write_world(Path(name), users)
        print(f"{CLOCK_NAME} seconds on {len(os.sched_getaffinity(0))} cores", end="; ")
        print(f"{users:,} users × {DEPTH}; median (least – most) of {repeats}, of peers {peers}")
        print(f"{'system':<12} {'ndcg@100':>9}  {'from files, s':<24} {'in memory, s':<24} {'peak GiB':>8}")
        values = []
        for system in chosen:
            python = arguments.get(f"{system}_python", sys.executable)
            job = {"worker": system, "folder": name, "peer_users": peer_users, "clock": CLOCK_NAME}
            ours = system == "shopreel"
            found = [measure(python, **job) for _ in range(repeats if ours else peers)]
            good = [each for each in found if isinstance(each, dict)]
            if not good:
                print(f"{system:<12} left out: {found[0]}", flush=True)
                continue
            inside = good
            if ours:  # in a process of its own, so that the table in memory is not in the streaming's peak
                kept = [measure(python, memory=True, **job) for _ in range(repeats)]
                inside = [each for each in kept if isinstance(each, dict)]
            values.append(good[0]["ndcg"])
            files, memory = [each["files"] for each in good], [each["memory"] for each in inside]
            peak = max(each["peak"] for each in good)
            print(
                f"{system:<12} {values[-1]:>9.6f}  {_spread(files):<24} {_spread(memory):<24} {peak:>8.2f}",
                flush=True,
            )
        if values:
            print(f"largest disagreement: {max(values) - min(values):.1e}")


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} – {max(seconds):.2f})"


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
